"""A batch with a journal, in a process that may be killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from typing import TypedDict

from async_refunds import CancelResult, JournalError, RefundsClient, RetryPolicy
from async_refunds.batch import Batch

from .canaries import KEY, leaks

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


def work(job: Job) -> int:
    """Run the batch of a job, and return the exit code.

    Returns:
        0 if it ended, 2 after a `JournalError`, 3 after anything else.
    """
    told = os.open(job["told"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(**line: object) -> None:
        os.write(told, json.dumps(line).encode() + b"\n")

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


async def _run(job: Job, tell: object) -> None:
    assert callable(tell)
    async with RefundsClient(
        KEY, base_url=job["url"], retry=POLICY, attempt_timeout=ATTEMPT_TIMEOUT
    ) as refunds:
        batch = Batch(
            refunds,
            job["refunds"],
            journal=job["journal"],
            concurrency=job["concurrency"],
            rate=5000,
            patience=PATIENCE,
        )
        async for result in batch.results():
            tell(**_line(result))


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
