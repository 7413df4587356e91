"""Owns the processes (ranks) that train one job together: the share of a batch that each takes, and what they exchange.

They are confined like any other process of a job, so they have no network: numbers go through memory that all of them
map, and bytes in pipes, from and to the first rank, say when they are there.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pared.errors import BY_CODE, ParedError, Stalled

T = TypeVar("T")


class RankLost(Exception):
    """Another of the processes has ended."""


class Ranks:
    """One of the processes of a job, and its way to the others. All of them must make the same calls in the same order.

    `rank`: from 0, the one that reports and writes checkpoints. `count`: of all of them.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        *,
        memory: int | None = None,
        pipes: Sequence[tuple[int, int]] = (),
        threads: int = 1,
        limit_s: float | None = None,
    ) -> None:
        """Set up.

        Args:
            memory: the descriptor of a file in memory that all of them have.
            pipes: for the first rank a descriptor to read from and one to write to for each of the others, in order;
                for the others one pair, to the first.
            threads: of the whole job, which one rank has while it runs alone.
            limit_s: how long the first rank waits for another one; None: as long as it lives. (The others wait for
                the first as long as it lives, which may have work that takes long.)
        """
        self.rank, self.count = rank, count
        self._pipes, self._threads, self._limit_s = pipes, threads, limit_s
        self._half = 0
        if memory is not None:
            size = os.fstat(memory).st_size
            # Two halves, each with a slot for each rank. They take turns: by the time that one is written again, all
            # have met over the other, and so have read what they wanted of it.
            self._memory = torch.frombuffer(mmap.mmap(memory, size), dtype=torch.uint8).view(2, count, -1)

    @classmethod
    def of(cls, rank: int, count: int, shared: Sequence[int], *, threads: int, limit_s: float) -> Ranks:
        """Args: shared: the memory, and the pipes one after the other; nothing where it is alone."""
        if not shared:
            return cls(rank, count, threads=threads)
        memory, *pipes = shared
        pairs = list(zip(pipes[::2], pipes[1::2], strict=True))
        return cls(rank, count, memory=memory, pipes=pairs, threads=threads, limit_s=limit_s)

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self.count == 1

    # -- shares of a batch -----------------------------------------------------------------------

    def parts(self, samples: int) -> int:
        """How many ranks have a share of so many samples: of at least two, without which no batch norm can do."""
        return max(1, min(self.count, samples // 2))

    def share(self, samples: int) -> slice:
        """Which samples of a batch are this rank's; shares differ by one sample at most, and may be empty."""
        parts = self.parts(samples)
        least, more = divmod(samples, parts)
        begin, end = (min(samples, rank * least + min(rank, more)) for rank in (self.rank, self.rank + 1))
        return slice(begin, end)

    def largest_share(self, samples: int) -> int:
        """Most samples of a batch that a rank has."""
        return -(-samples // self.parts(samples))

    # -- exchange ---------------------------------------------------------------------------------

    def sum_(self, numbers: Tensor) -> None:
        """Put the sum over all ranks in the place of each one's numbers: floats (n,), on the CPU.

        It is added up in the order of the ranks, and all have the same bits.

        Raises:
            RankLost: another process has ended.
            Stalled: another one does not come.
        """
        if self.alone:
            return
        for piece in torch.split(numbers, self._memory.shape[2] // numbers.element_size()):
            slots = self._slots(numbers.dtype)[:, : len(piece)]
            slots[self.rank].copy_(piece)
            self._meet()
            first, *others = slots.tensor_split(self.count, dim=1)[self.rank]  # (n / count,) of each rank
            for other in others:
                first.add_(other)
            self._meet()
            piece.copy_(slots[0])

    def copy_first_(self, tensors: Sequence[Tensor]) -> None:
        """Put the first rank's numbers in the place of each one's."""
        if self.alone:
            return
        raw = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
        packed = torch.cat(raw) if raw else torch.empty(0, dtype=torch.uint8)
        self._spread(packed)
        if self.rank:
            for tensor, piece in zip(tensors, torch.split(packed, [len(each) for each in raw]), strict=True):
                # A clone, for a piece may begin where no number of this type may lie.
                tensor.detach().copy_(piece.clone().view(tensor.dtype).view(tensor.shape))

    def agreed(self, value: T) -> T:
        """The first rank's value, for all."""
        if self.alone:
            return value
        packed = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        length = torch.tensor([len(packed)])
        self._spread(length.view(torch.uint8))
        if self.rank:
            packed = torch.empty(int(length), dtype=torch.uint8)
        self._spread(packed)
        agreed: T = pickle.loads(packed.numpy().tobytes())  # noqa: S301 - of the same job, in the same sandbox
        return agreed

    def led(self, run: Callable[[], T]) -> T:
        """What the first rank comes to, while the others wait and leave it all threads: for what hangs on time.

        Raises:
            ParedError: the first rank failed so, and with it all do.
        """
        if self.alone:
            return run()
        self._meet()
        outcome: tuple[Any, str | None, str] = (None, None, "")
        if not self.rank:
            own = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                outcome = run(), None, ""
            except ParedError as error:
                outcome = None, error.code, error.detail
            finally:
                torch.set_num_threads(own)
        value, code, detail = self.agreed(outcome)
        if code is not None:
            raise BY_CODE[code](detail)
        led: T = value
        return led

    def _slots(self, dtype: torch.dtype) -> Tensor:
        """The next half: (ranks, numbers)."""
        self._half = 1 - self._half
        return self._memory[self._half].view(dtype)

    def _spread(self, raw: Tensor) -> None:
        """Put the first rank's bytes in the place of each one's."""
        for piece in torch.split(raw, self._memory.shape[2]):
            slot = self._slots(torch.uint8)[0, : len(piece)]
            if not self.rank:
                slot.copy_(piece)
            self._meet()
            if self.rank:
                piece.copy_(slot)

    def _meet(self) -> None:
        """Return once all ranks have come here."""
        if self.rank:
            self._call(self._pipes[0][1])
            self._hear(self._pipes[0][0], 0, None)
            return
        for other, (reading, _) in enumerate(self._pipes, 1):
            self._hear(reading, other, self._limit_s)
        for _, writing in self._pipes:
            self._call(writing)

    def _call(self, writing: int) -> None:
        try:
            os.write(writing, b".")
        except BrokenPipeError as error:
            raise RankLost from error

    def _hear(self, reading: int, other: int, limit_s: float | None) -> None:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        began = time.monotonic()
        if not poll.poll(None if limit_s is None else 1000 * limit_s):
            raise Stalled(
                f"Process {other + 1} of the {self.count} that train together kept the others waiting for "
                f"{time.monotonic() - began:.0f} seconds."
            )
        if not os.read(reading, 1):
            raise RankLost


ALONE = Ranks()
