"""Owns what happens when a batch does not fit into memory: it is halved until it does, down to one sample."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from pared.errors import OutOfMemory, telling_line

T = TypeVar("T")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or a card; TorchScript says so in a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("allocate memory", "CUDA out of memory", "STATUS_ALLOC_FAILED")
    )


class BatchSize:
    """How many samples run at once.

    `size`: as many as have not been seen to be too many. `largest`: the most that have run; 0 at first.
    """

    def __init__(self, size: int) -> None:
        self.size, self.largest = size, 0

    def run(self, work: Callable[[int], T], samples: int, what: str) -> T:
        """Do some work with at most `size` samples at once, and all of it again with half of that when memory runs out.

        Args:
            work: handed how many samples to run at once.
            samples: how many there are.
            what: what they do, for the error: "train".

        Raises:
            OutOfMemory: one sample at a time is too many.
        """
        while True:
            try:
                done = work(self.size)
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise self._out_of_memory(error, what) from None  # whose frames hold the memory
            else:
                self.largest = max(self.largest, min(self.size, samples))
                return done
            # Outside the except block, so that nothing holds what the failed run had made.
            self.size = max(1, min(self.size, samples) // 2)
            gc.collect(1)  # the frames of the failed run are young; all that lives is not walked through
            torch.cuda.empty_cache()  # does nothing where no card is in use

    def _out_of_memory(self, error: Exception, what: str) -> OutOfMemory:
        most = f"The largest batch that did fit was {self.largest}." if self.largest else "No batch did fit."
        words = telling_line(error, words=["memory"]).rstrip(".")
        return OutOfMemory(
            f"There is not enough memory to {what} with one sample at a time: {words}. {most} Use a smaller model or "
            "smaller inputs, or a machine with more memory."
        )
