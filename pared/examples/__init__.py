"""Scripts that a user could have written: they know nothing of pared."""
