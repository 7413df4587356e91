"""How each operator carries labels."""
