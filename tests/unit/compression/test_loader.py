"""Batches that a thread makes ahead of whoever takes them."""

from __future__ import annotations

import threading

import pytest

from pared.compression.data.loader import ahead


def loaders():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_all_items_come_in_their_order():
    assert list(ahead(iter(range(50)), 3)) == list(range(50))
    assert list(ahead(iter([]), 3)) == []
    assert list(ahead(iter([None, 1]), 3)) == [None, 1]


def test_no_more_are_made_than_asked_for():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    found = ahead(items(), 2)
    assert next(found) == 0
    found.close()
    assert len(made) <= 5
    assert not loaders()


def test_an_error_is_raised_where_the_items_are_taken():
    def items():
        yield 1
        raise MemoryError("no room")

    found = ahead(items(), 2)
    assert next(found) == 1
    with pytest.raises(MemoryError, match="no room"):
        next(found)
    assert not loaders()


def test_whoever_stops_taking_ends_the_thread():
    for number in ahead(iter(range(1000)), 3):
        if number == 5:
            break
    assert not loaders()
