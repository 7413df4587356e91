"""Quantization: weights that share few values."""
