"""What a batch over many accounts does in a second: the part ``accounts``.

As a program: a batch in a process of its own. Arguments: base URL, journal (``-`` for
none), accounts, requests a second of each, seconds that the input lasts. Prints one
line of JSON, a `Throughput`.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import CancelRequest, RefundsClient
from async_refunds.batch import Batch
from benchmarks import drawing
from benchmarks.batch_child import CONCURRENCY, KEY
from benchmarks.canned import canned_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORK = ((1, 10_000.0), (100, 25.0), (1000, 25.0))
"""Accounts, and the requests a second that each may send."""


_MOST = 2500.0
"""Items a second that the input is made for, where the limit would allow more: as many
items as those of 100 accounts."""


class Throughput(msgspec.Struct, frozen=True):
    """What a child did in a whole run, the reading of the input included."""

    items: int
    seconds: float
    cpu: float
    """Seconds of CPU: user and system, all threads."""

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


class Cost(msgspec.Struct, frozen=True):
    """What an item costs over so many accounts, in microseconds of CPU."""

    accounts: int
    without: float
    kept: float
    """With a journal."""


def requests(accounts: int, items: int) -> Iterator[CancelRequest]:
    """Yield refunds of each account in turn."""
    for number in range(items):
        yield CancelRequest(f"re_{number:024d}", f"acct_{number % accounts:05d}")


async def run(
    base_url: str, journal: str | None, accounts: int, rate: float, seconds: float
) -> Throughput:
    """Cancel what the limit lets through in so many seconds."""
    items = int(min(accounts * rate, _MOST) * seconds)
    async with RefundsClient(KEY, base_url=base_url) as refunds:
        began, cpu = time.perf_counter(), time.process_time()
        batch = Batch(
            refunds,
            requests(accounts, items),
            journal=journal,
            concurrency=CONCURRENCY,
            rate=rate,
        )
        canceled = 0
        async for result in batch.results():
            canceled += result.outcome == "canceled"
        seconds = time.perf_counter() - began
        return Throughput(canceled, seconds, time.process_time() - cpu)


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


def _cpu(runs: Sequence[Throughput]) -> float:
    return statistics.median(each.cpu / each.items for each in runs) * 1e6


def accounts(
    rounds: int, seconds: float, folder: Path
) -> tuple[list[Cost], dict[str, float]]:
    """Return the items a second with and without a journal, and their CPU."""
    found: dict[str, float] = {}
    costs: list[Cost] = []
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
            cost = Cost(many, _cpu(without), _cpu(kept))
            name = f"{many} accounts" if many > 1 else "1 account"
            found |= {
                f"items/s, {name}, without a journal": plain,
                f"items/s, {name}, with one": journaled,
                f"% of the limit, {name}, with one": 100 * journaled / many / rate,
                f"with / without, {name}": journaled / plain,
                f"µs CPU that a journal adds, {name}": cost.kept - cost.without,
            }
            costs.append(cost)
    return costs, found


def draw(costs: Sequence[Cost], axes: Any) -> None:  # noqa: ANN401 - see `drawing.bars`
    """Draw what an item costs with a journal and without, by the number of accounts."""
    names: list[str] = []
    lengths: list[float] = []
    for cost in costs:
        for name, length in (("without", cost.without), ("with", cost.kept)):
            names.append(f"{name} a journal, {cost.accounts:,} accounts")
            lengths.append(length)
    labels = [f"{length:.0f} µs" for length in lengths]
    drawing.bars(axes, names, lengths, labels, ours="with a")
    axes.set_xlabel("µs of CPU an item")


if __name__ == "__main__":
    _, url, place, how_many, pace, duration = sys.argv
    journal = None if place == "-" else place
    told = asyncio.run(run(url, journal, int(how_many), float(pace), float(duration)))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
