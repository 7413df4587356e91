"""Where tensors and code live, what arithmetic computes in, and how much memory there is."""
