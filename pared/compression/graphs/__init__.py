"""TorchScript graphs as a whole: what is computed from what, and modules made anew around a changed graph."""
