"""Pruning: what can be removed, how important it is, and the removal itself."""
