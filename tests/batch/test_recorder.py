"""How many results one commit serves, and how long a result waits for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from async_refunds import CancelResult
from async_refunds.batch.recorder import ResultRecorder
from async_refunds.journal import Claim, MemoryJournal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

COMMIT = 0.02
LIMIT = 20


class Commits(MemoryJournal):
    """A journal that tells how many results came when, and takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, int]] = []
        self._began = asyncio.get_running_loop().time()

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        if known:
            now = asyncio.get_running_loop().time()
            self.found.append((round(now - self._began, 4), len(known)))
            await asyncio.sleep(COMMIT)


def record(recorder: ResultRecorder, count: int = 1) -> None:
    for number in range(count):
        claim = Claim(number, "re_1", None, "key", 0.0, maybe_sent=False)
        result = CancelResult(refund_id="re_1", stripe_account=None, outcome="canceled")
        recorder.record(claim, result)


@asynccontextmanager
async def recording() -> AsyncGenerator[tuple[ResultRecorder, Commits]]:
    journal = Commits()
    recorder = ResultRecorder(journal, LIMIT, on_lost=lambda accounts: accounts)
    task = asyncio.create_task(recorder.run())
    yield recorder, journal
    recorder.finish()
    await task


async def test_result_that_comes_alone_is_kept_at_once() -> None:
    async with recording() as (recorder, journal):
        for _ in range(3):
            record(recorder)
            await asyncio.sleep(1.0)
    assert journal.found == [(0.0, 1), (1.0, 1), (2.0, 1)]


async def test_results_that_follow_each_other_share_a_commit() -> None:
    async with recording() as (recorder, journal):
        for _ in range(100):
            record(recorder)
            await asyncio.sleep(0.01)
    counts = [count for _, count in journal.found]
    assert sum(counts) == 100
    # One commit and the time for which they gather: six results each.
    assert len(counts) <= 20


async def test_as_many_as_make_workers_wait_are_kept_at_once() -> None:
    async with recording() as (recorder, journal):
        record(recorder)
        await asyncio.sleep(COMMIT + 0.001)
        record(recorder)
        await asyncio.sleep(0.005)
        record(recorder, LIMIT // 2 - 1)
        await asyncio.sleep(1.0)
    assert journal.found == [(0.0, 1), (pytest.approx(COMMIT + 0.006), LIMIT // 2)]


@pytest.mark.parametrize("gathers", [True, False])
async def test_last_results_are_kept_at_once(gathers: bool) -> None:  # noqa: FBT001 - a parameter
    """While they gather, and while others are kept."""
    began = COMMIT + 0.001 if gathers else 0.001
    async with recording() as (recorder, journal):
        record(recorder)
        await asyncio.sleep(began)
        record(recorder)
        await asyncio.sleep(0.001)
    kept = max(COMMIT, began + 0.001)
    assert journal.found == [(0.0, 1), (pytest.approx(kept), 1)]
