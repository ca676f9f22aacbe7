"""A batch with a journal, in a process that may be killed at any moment."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import time
import traceback
from typing import TYPE_CHECKING, TypedDict

from async_refunds import (
    Attempt,
    CancelResult,
    JournalError,
    RefundsClient,
    RetryPolicy,
)
from async_refunds.batch import Batch
from async_refunds.journal import Run, SqliteJournal

from .canaries import KEY, leaks
from .world import OddError

if TYPE_CHECKING:
    from collections.abc import Callable

# Real seconds, and short: the server is in the next process.
POLICY = RetryPolicy(max_retries=2, deadline=3.0, initial_delay=0.01, max_delay=0.05)
ATTEMPT_TIMEOUT = 0.4
PATIENCE = 0.5


class Job(TypedDict):
    """What a process is to do."""

    url: str
    journal: str
    told: str
    """The file that each result goes to before the next one is waited for."""
    refunds: list[str]
    """The input; empty to go on with what the journal has."""
    concurrency: int
    twice: bool
    """Whether two batches use one journal object, one after the other."""
    hook: int
    """Which exception `on_attempt` raises, and at which attempt; 0 is none."""
    file_size: int
    """Bytes that a file may have, 0 for any: what a full disk does."""
    age: float
    """Seconds by which the journal's clock is late."""


_RAISED: tuple[type[BaseException], ...] = (
    *(SystemExit, KeyboardInterrupt, OddError, GeneratorExit, MemoryError),
)


def work(job: Job) -> int:
    """Run the batch of a job, and return the exit code.

    Returns:
        0 if it ended, 2 after a `JournalError`, 3 after anything else.
    """
    told = os.open(job["told"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(**line: object) -> None:
        os.write(told, json.dumps(line).encode() + b"\n")

    if job["file_size"]:
        limit = (job["file_size"], job["file_size"])
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    try:
        asyncio.run(_run(job, tell))
    except JournalError as error:
        tell(error=str(error), leaks=leaks(error, deep=False))
        return 2
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
        tell(error=repr(error), foreign="".join(traceback.format_exception(error)))
        return 3
    tell(end=True)
    return 0


async def _run(job: Job, tell: Callable[..., None]) -> None:
    async with RefundsClient(
        KEY,
        base_url=job["url"],
        retry=POLICY,
        attempt_timeout=ATTEMPT_TIMEOUT,
        on_attempt=_hook(job["hook"]),
    ) as refunds:
        if not job["twice"] and not job["age"]:
            await _batch(refunds, job, job["refunds"], job["journal"], tell)
            return
        run = Run(base_url=refunds.base_url, livemode=refunds.livemode)
        journal = SqliteJournal.open(
            job["journal"], run, clock=lambda: time.time() - job["age"]
        )
        async with journal:
            if job["twice"]:
                half = job["refunds"][::2]
                await _batch(refunds, job, half, journal, tell)
            await _batch(refunds, job, job["refunds"], journal, tell)


async def _batch(
    refunds: RefundsClient,
    job: Job,
    names: list[str],
    journal: str | SqliteJournal,
    tell: Callable[..., None],
) -> None:
    batch = Batch(
        refunds,
        names,
        journal=journal,
        concurrency=job["concurrency"],
        rate=5000,
        patience=PATIENCE,
    )
    async for result in batch.results():
        tell(**_line(result))


def _hook(value: int) -> Callable[[Attempt], None] | None:
    if not value:
        return None
    calls = itertools.count(1)

    def raising(_: Attempt) -> None:
        if next(calls) == value:
            raise _RAISED[value % len(_RAISED)]("of a hook")

    return raising


def _line(result: CancelResult) -> dict[str, object]:
    found = [] if result.error is None else leaks(result.error, deep=False)
    return {
        "refund": result.refund_id,
        "outcome": result.outcome,
        "key": result.idempotency_key,
        "settled": result.settled,
        "leaks": found,
        "why": None if result.error is None else str(result.error)[:200],
    }
