"""Measures models: their size, their work, their latency, and how well they answer."""
