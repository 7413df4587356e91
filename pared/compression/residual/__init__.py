"""Finds whole residual blocks on a model's graph, without its source, and removes them with all that only they use."""

from pared.compression.residual.removal import BlockRemoval, apply_block_removal, remove_blocks

__all__ = ["BlockRemoval", "apply_block_removal", "remove_blocks"]
