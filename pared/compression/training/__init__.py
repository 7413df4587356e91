"""Training: the loop, its gradients, and what it keeps."""
