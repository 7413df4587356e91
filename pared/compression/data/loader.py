"""Takes samples to a card: they live in its memory where they fit, else they travel ahead of the steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pared.compression.data.columns import Column

SHARE_OF_MEMORY = 0.4
"""Most of a card's free memory that samples may take."""
_AHEAD = 3  # batches that are ready before they are asked for

T = TypeVar("T")


class Loader:
    """Makes batches on one card, out of tensors in the CPU's memory."""

    def __init__(self, device: str, room_bytes: float) -> None:
        """Args: room_bytes: how much of the card's memory whole tensors may take."""
        self._device, self._room = device, room_bytes
        # With the tensors themselves, so that none of their ids is used twice.
        self._resident: dict[int, tuple[Tensor, Tensor | None]] = {}

    def batches(
        self, columns: Sequence[Column], order: Tensor, batch_size: int, finish: Callable[[list[Tensor]], T]
    ) -> Iterator[T]:
        """`finish` of the rows of all columns, in this order; it is handed tensors on the card.

        Nothing waits for the card: rows of resident columns are picked there, those of others are picked here by a
        thread, into pinned memory, while earlier batches are worked on.
        """
        homes = [self._home(column) for column in columns]
        there = _sent(order, self._device)

        def made() -> Iterator[T]:
            for here, indices in zip(torch.split(order, batch_size), torch.split(there, batch_size), strict=True):
                yield finish(
                    [
                        _sent(column.index_select(0, here), self._device)
                        if home is None
                        else home.index_select(0, indices)
                        for column, home in zip(columns, homes, strict=True)
                    ]
                )

        return made() if all(home is not None for home in homes) else ahead(made(), _AHEAD)

    def _home(self, column: Column) -> Tensor | None:
        """The column in the card's memory; None: there is no room for it, or it is read as needed."""
        if not isinstance(column, Tensor):
            return None
        if id(column) not in self._resident:
            fits = column.nbytes <= self._room
            home = column.to(self._device) if fits or column.device.type != "cpu" else None
            if home is not None:
                self._room -= column.nbytes
            self._resident[id(column)] = column, home
        return self._resident[id(column)][1]


def loader_for(device: str) -> Loader:
    """A loader that leaves most of the card's free memory to the model."""
    free, _ = torch.cuda.mem_get_info(device)
    return Loader(device, SHARE_OF_MEMORY * free)


def _sent(tensor: Tensor, device: str) -> Tensor:
    """A copy on the card, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True)


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, made by a thread up to `depth` ahead of whoever takes them. Its errors are raised here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    unwanted = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not unwanted.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the items are taken
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=make, name="loader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        unwanted.set()
        thread.join()
