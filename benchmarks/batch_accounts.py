"""What a batch over many accounts does in a second: the part ``accounts``.

As a program: a batch in a process of its own. Arguments: base URL, journal (``-`` for
none), accounts, requests a second of each, seconds. Prints one line of JSON, a
`Throughput`.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import CancelRequest, RefundsClient
from async_refunds.batch import Batch
from benchmarks.batch_child import CONCURRENCY, KEY
from benchmarks.canned import canned_server

if TYPE_CHECKING:
    from collections.abc import Iterator

WORK = ((1, 10_000.0), (100, 25.0), (1000, 25.0))
"""Accounts, and the requests a second that each may send."""


class Throughput(msgspec.Struct, frozen=True):
    """What a child did after its first second."""

    items: int
    seconds: float
    cpu: float
    """Seconds of CPU: user and system, all threads."""

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


def requests(accounts: int) -> Iterator[CancelRequest]:
    """Yield refunds of each account in turn, without end."""
    for number in count():
        yield CancelRequest(f"re_{number:024d}", f"acct_{number % accounts:05d}")


async def run(
    base_url: str, journal: str | None, accounts: int, rate: float, seconds: float
) -> Throughput:
    """Cancel for a while, and measure after the first second."""
    async with RefundsClient(KEY, base_url=base_url) as refunds:
        batch = Batch(
            refunds,
            requests(accounts),
            journal=journal,
            concurrency=CONCURRENCY,
            rate=rate,
        )
        items, began, cpu = 0, time.perf_counter(), 0.0
        measured_from: float | None = None
        found: Throughput | None = None
        async for result in batch.results():
            now = time.perf_counter()
            if measured_from is None and now - began > 1.0:
                measured_from, items, cpu = now, 0, time.process_time()
            items += result.outcome == "canceled"
            if measured_from is not None and found is None and now - began > seconds:
                spent = time.process_time() - cpu
                found = Throughput(items, now - measured_from, spent)
                batch.stop()
    assert found is not None  # noqa: S101 - the input has no end
    return found


def measured(
    base_url: str, journal: Path | None, accounts: int, rate: float, seconds: float
) -> Throughput:
    """Run a batch in a process of its own, and return what it measured."""
    path = "-" if journal is None else str(journal)
    words = [base_url, path, str(accounts), str(rate), str(seconds)]
    told = subprocess.run(  # noqa: S603 - this module, by this interpreter
        [sys.executable, str(Path(__file__).resolve()), *words],
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(told.stdout, type=Throughput)


def accounts(rounds: int, seconds: float, folder: Path) -> dict[str, float]:
    """Return the items a second with and without a journal, and their CPU."""
    found: dict[str, float] = {}
    paths = (folder / f"accounts-{number}.sqlite3" for number in count())
    with canned_server() as base_url:
        for many, rate in WORK:
            without: list[Throughput] = []
            kept: list[Throughput] = []
            for _ in range(rounds):
                without.append(measured(base_url, None, many, rate, seconds))
                kept.append(measured(base_url, next(paths), many, rate, seconds))
            plain = statistics.median(each.rate for each in without)
            journaled = statistics.median(each.rate for each in kept)
            name = f"{many} accounts" if many > 1 else "1 account"
            found |= {
                f"items/s, {name}, without a journal": plain,
                f"items/s, {name}, with one": journaled,
                f"% of the limit, {name}, with one": 100 * journaled / many / rate,
                f"with / without, {name}": journaled / plain,
                f"µs CPU that a journal adds, {name}": 1e6
                * (
                    statistics.median(each.cpu / each.items for each in kept)
                    - statistics.median(each.cpu / each.items for each in without)
                ),
            }
    return found


if __name__ == "__main__":
    _, url, place, how_many, pace, duration = sys.argv
    journal = None if place == "-" else place
    told = asyncio.run(run(url, journal, int(how_many), float(pace), float(duration)))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
