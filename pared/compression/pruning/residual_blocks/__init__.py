"""Finds whole residual blocks on a model's graph, without its source, and removes them with all that only they use."""

from pared.compression.pruning.residual_blocks.removal import (
    BlockRemoval,
    RemovableBlocks,
    apply_block_removal,
    remove_blocks,
)

__all__ = ["BlockRemoval", "RemovableBlocks", "apply_block_removal", "remove_blocks"]
