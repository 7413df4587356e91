"""Compression as a library: `from pared.compression import prune, distill, pipeline` works without any server."""

# Not loaded on first use: `prune` and `distill` are names of modules of this package too, and whichever is bound last
# is what a reader gets. Here that is always the function.
from pared.compression.library import Result, distill, pipeline, prune, quantize, run_spec
from pared.compression.work import Observer, SilentObserver

__all__ = ["Observer", "Result", "SilentObserver", "distill", "pipeline", "prune", "quantize", "run_spec"]
