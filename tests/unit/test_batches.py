"""What many requests ask for together is done together, after each has asked, and fails nobody who did not ask it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Collection

import pytest

from service.batches import KEPT, MOST, Batches
from service.turns_of_the_loop import OncePerTurn


class Doing:
    """Answers with how many batches there were before; a batch ends when it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on = threading.Semaphore(0)

    def __call__(self, asked: Collection[str]) -> dict[str, int]:
        self.batches.append(list(asked))
        assert self.go_on.acquire(timeout=30)
        if "bad" in asked:
            raise ValueError("bad")
        return {each: len(self.batches) for each in asked if each != "nothing"}


async def begun(doing: Doing, batches: int) -> None:
    for _ in range(1000):
        if len(doing.batches) == batches:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{len(doing.batches)} batches instead of {batches}")


def ask(batches: Batches[str, int], *asked: str) -> list[asyncio.Task[int | None]]:
    return [asyncio.create_task(batches.get(each)) for each in asked]


def test_who_asks_while_a_batch_is_under_way_is_in_the_next():
    async def run() -> None:
        doing = Doing()
        batches = Batches(doing)
        first = ask(batches, "a", "b", "nothing")
        await begun(doing, 1)
        later = ask(batches, "a", "c")
        doing.go_on.release()
        assert await asyncio.gather(*first) == [1, 1, None]
        await begun(doing, 2)
        doing.go_on.release()
        assert await asyncio.gather(*later) == [2, 2], "read after it was asked for"
        assert doing.batches == [["a", "b", "nothing"], ["a", "c"]]
        assert batches._lanes == {}

    asyncio.run(run())


def test_a_batch_that_fails_fails_those_in_it_alone_and_who_leaves_takes_none_along():
    async def run() -> None:
        doing = Doing()
        batches = Batches(doing)
        failing = ask(batches, "bad", "a")
        await begun(doing, 1)
        later = ask(batches, "a", "b", "c")
        await asyncio.sleep(0)
        later[0].cancel()
        doing.go_on.release(2)
        assert [str(each) for each in await asyncio.gather(*failing, return_exceptions=True)] == ["bad", "bad"]
        assert await asyncio.gather(*later[1:]) == [2, 2]
        with pytest.raises(asyncio.CancelledError):
            await later[0]

    asyncio.run(run())


def test_a_batch_is_bounded_and_a_lane_waits_for_no_other():
    async def run() -> None:
        doing = Doing()
        batches = Batches(doing, lane_of=lambda asked: asked.startswith("slow"))
        ask(batches, "slow")
        await begun(doing, 1)
        asked = ask(batches, *map(str, range(MOST + 5)))
        await begun(doing, 2)
        doing.go_on.release(3)
        assert set(await asyncio.gather(*asked)) <= {2, 3}
        assert sorted(map(len, doing.batches)) == [1, 5, MOST]

    asyncio.run(run())


def test_an_answer_is_given_again_only_while_what_it_is_of_has_not_changed(monkeypatch: pytest.MonkeyPatch):
    async def run() -> None:
        doing = Doing()
        version: list[int | None] = [1]
        batches = Batches(doing, version=lambda: version[0])

        async def asked(key: str, *, batch: int) -> int | None:
            if batch > len(doing.batches):
                doing.go_on.release()
            answer = await batches.get(key)
            assert len(doing.batches) == batch
            return answer

        assert await asked("a", batch=1) == await asked("a", batch=1) == 1
        version[0] = 2
        assert await asked("a", batch=2) == await asked("a", batch=2) == 2
        changed_meanwhile = ask(batches, "b")
        await begun(doing, 3)
        version[0] = 3
        doing.go_on.release()
        await changed_meanwhile[0]
        assert await asked("b", batch=4) == await asked("b", batch=4) == 4
        version[0] = None  # not known
        assert [await asked("b", batch=batch) for batch in (5, 6)] == [5, 6]
        version[0] = 4
        assert await asked("b", batch=7) == 7
        at = time.monotonic() + 1.0
        monkeypatch.setattr("service.batches.time.monotonic", lambda: at)
        assert await asked("b", batch=8) == 8, "some answers change as time goes by"

    asyncio.run(run())


def test_who_has_an_answer_already_lets_a_batch_under_way_end_first():
    async def run() -> None:
        doing = Doing()
        batches = Batches(doing, version=lambda: 1)
        doing.go_on.release()
        assert await batches.get("a") == 1
        first, again = ask(batches, "b", "a")
        await begun(doing, 2)
        assert not (await asyncio.wait([again], timeout=0.05))[0]
        doing.go_on.release()
        assert await asyncio.gather(first, again) == [2, 1]
        assert len(doing.batches) == 2

    asyncio.run(run())


def test_few_answers_are_kept_and_none_that_is_too_large():
    async def run() -> None:
        batches: Batches[int, int] = Batches(
            lambda asked: {each: each for each in asked}, version=lambda: 1, keep=lambda answer: answer != 5
        )
        await asyncio.gather(*(batches.get(each) for each in range(2 * KEPT)))
        assert len(batches._kept) == KEPT
        assert 5 not in batches._kept

    asyncio.run(run())


def test_a_batch_that_follows_another_gathers_what_comes_soon_after(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.batches.GATHER_S", 0.5)

    async def run() -> None:
        doing = Doing()
        doing.go_on.release(2)
        batches = Batches(doing)
        first = ask(batches, "a")
        await begun(doing, 1)
        second = ask(batches, "b")
        await first[0]
        second += ask(batches, "c")  # the first batch has ended, and the second has not begun
        assert await asyncio.gather(*second) == [2, 2]
        assert doing.batches == [["a"], ["b", "c"]]

    asyncio.run(run())


def test_what_is_found_once_in_a_turn_of_the_loop_is_found_again_in_the_next():
    async def run() -> None:
        found = itertools.count()
        now = OncePerTurn(lambda: next(found))
        assert [now(), now()] == [0, 0]
        later: list[int] = []
        asyncio.get_running_loop().call_soon(lambda: later.append(now()))  # what a turn begins with comes behind
        await asyncio.sleep(0)
        assert [*later, now(), now()] == [1, 1, 1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert now() == 2

    asyncio.run(run())
