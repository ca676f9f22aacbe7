"""A batch in a process of its own, to be measured alone.

Arguments: base URL, journal (``-`` for none), how many ids, over how many accounts.
Prints one line of JSON at its end, a `Measured`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import CancelRequest, RefundsClient, RetryPolicy, cancel_many
from benchmarks import memory

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk_test_bench"
CONCURRENCY = 500
RATE = 100_000.0
"""No pace at all: the question is what this process costs."""

_POLICY = RetryPolicy(deadline=10.0, initial_delay=0.05, max_delay=0.2)


class Measured(msgspec.Struct, frozen=True):
    """What a child tells of itself."""

    first: float
    """Seconds from the start of the batch to its first result."""
    seconds: float
    cpu: float
    """Seconds of CPU of the batch: user and system, all threads."""
    memory: int
    """Bytes: the peak of the process."""


def ids(count: int) -> Iterator[str]:
    """Yield ids that stand in no order, without keeping them."""
    for number in range(count):
        yield f"re_{number * 618_033_988_749_894_848_204_587 % 10**24:024d}"


def requests(count: int, accounts: int) -> Iterator[CancelRequest]:
    """Yield these ids, of each account in turn; the client's own if it is but one."""
    for number, refund_id in enumerate(ids(count)):
        account = f"acct_{number % accounts:05d}" if accounts > 1 else None
        yield CancelRequest(refund_id, account)


def command(
    base_url: str, journal: Path | None, count: int, accounts: int = 1
) -> list[str]:
    """Return what starts a batch in a process of its own."""
    path = "-" if journal is None else str(journal)
    script = str(Path(__file__).resolve())
    return [sys.executable, script, base_url, path, str(count), str(accounts)]


def measured(
    base_url: str, journal: Path | None, count: int, accounts: int = 1
) -> Measured:
    """Run a batch in a process of its own, and return what it measured."""
    told = subprocess.run(  # noqa: S603 - this module, by this interpreter
        command(base_url, journal, count, accounts), stdout=subprocess.PIPE, check=True
    )
    return msgspec.json.decode(told.stdout, type=Measured)


async def run(
    base_url: str, journal: str | None, count: int, accounts: int
) -> Measured:
    """Cancel so many, and measure."""
    began, cpu, first = time.perf_counter(), time.process_time(), 0.0
    async with RefundsClient(
        KEY, base_url=base_url, retry=_POLICY, attempt_timeout=0.5
    ) as refunds:
        async for result in cancel_many(
            refunds,
            requests(count, accounts),
            journal=journal,
            concurrency=CONCURRENCY,
            rate=RATE,
        ):
            if not first:
                first = time.perf_counter() - began
            if result.outcome != "canceled":
                sys.stderr.write(f"{result.refund_id}: {result.outcome}\n")
    return Measured(
        first=first,
        seconds=time.perf_counter() - began,
        cpu=time.process_time() - cpu,
        memory=memory.peak(),
    )


if __name__ == "__main__":
    _, url, path, number, accounts = sys.argv
    journal = None if path == "-" else path
    told = asyncio.run(run(url, journal, int(number), int(accounts)))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
