"""One worker in a process of its own, to be measured alone.

Arguments: base URL, ``sqlite`` or ``postgres``, path or address, how many items are
open, requests a second of each account (0 for no limit). Prints one line of JSON at its
end, a `Work`.
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

from async_refunds import RefundsClient, cancel_many
from benchmarks.batch_child import CONCURRENCY, KEY, RATE

if TYPE_CHECKING:
    from async_refunds.results import CancelResult


class Work(msgspec.Struct, frozen=True):
    """What a worker did from its start to the last result."""

    items: int
    seconds: float
    cpu: float
    """Seconds of CPU of the process: user and system, all threads."""


async def _in_sqlite(refunds: RefundsClient, path: str, rate: float) -> int:
    canceled = 0
    async for result in cancel_many(
        refunds, (), journal=path, concurrency=CONCURRENCY, rate=rate
    ):
        canceled += result.outcome == "canceled"
    return canceled


async def _in_postgres(
    refunds: RefundsClient, address: str, rate: float, items: int
) -> int:
    # Here, since the other kind of process must not pay for it.
    from async_refunds.workers import work  # noqa: PLC0415

    canceled, stop = 0, asyncio.Event()

    def count(result: CancelResult) -> None:
        nonlocal canceled
        canceled += result.outcome == "canceled"
        if canceled == items:
            stop.set()

    await work(
        address,
        refunds,
        concurrency=CONCURRENCY,
        rate=rate,
        stop=stop,
        on_result=count,
    )
    return canceled


async def run(base_url: str, kind: str, place: str, items: int, rate: float) -> Work:
    """Cancel all that is open, and measure."""
    rate = rate or RATE
    async with RefundsClient(KEY, base_url=base_url) as refunds:
        began, cpu = time.perf_counter(), time.process_time()
        if kind == "sqlite":
            canceled = await _in_sqlite(refunds, place, rate)
        else:
            canceled = await _in_postgres(refunds, place, rate, items)
        return Work(canceled, time.perf_counter() - began, time.process_time() - cpu)


def measured(base_url: str, kind: str, place: str, items: int, rate: float) -> Work:
    """Run a worker in a process of its own, and return what it measured."""
    words = [base_url, kind, place, str(items), str(rate)]
    told = subprocess.run(  # noqa: S603 - this module, by this interpreter
        [sys.executable, str(Path(__file__).resolve()), *words],
        stdout=subprocess.PIPE,
        check=True,
    )
    work = msgspec.json.decode(told.stdout, type=Work)
    if work.items != items:
        raise SystemExit(f"{kind}: {work.items} of {items} were canceled")
    return work


if __name__ == "__main__":
    _, url, kind, place, number, pace = sys.argv
    told = asyncio.run(run(url, kind, place, int(number), float(pace)))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
