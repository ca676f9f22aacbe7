"""What does a batch cost, does it find Stripe's pace, and does it lose anything?

Parts, each of which can be asked for alone: ``journal`` (CPU and memory per item, with
one and without), ``accounts`` (items a second over 1, 100 and 1,000 accounts),
``resume`` (how long until a run of many goes on), ``pace`` (against a limit that halves
in mid-run, and two clients at once), ``brownout`` (every answer 503 for a while),
``kills`` (killed again and again under faults).
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import CancelRequest, RefundsClient
from async_refunds.batch import Batch
from async_refunds.journal import JournalReader, Run, SqliteJournal
from benchmarks import batch_accounts, batch_child, batch_kills, batch_pace, report
from benchmarks.canned import canned_server
from benchmarks.harness import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.emulator import ReceivedRequest

QUESTION = "What does a batch cost, does it find Stripe's pace, does it lose anything?"


_ACCOUNTS = 5000
"""Of the largest run: those of a large platform."""


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    parts: tuple[str, ...]
    items: int
    seconds: int
    kills: int


class Report(report.Report, frozen=True, kw_only=True):
    """What each part found, by the name of the figure."""

    parts: dict[str, dict[str, float]]


class Bench:
    """A run of the parts that were asked for."""

    def __init__(self, asked: Flags, folder: Path) -> None:
        self._asked = asked
        self._folder = folder
        self.log: list[ReceivedRequest] = []
        """The requests of the part ``pace``."""

    def journal(self) -> dict[str, float]:
        """Return what a journal adds to an item, and what memory many items take."""
        few, many = min(1000, self._asked.items), self._asked.items
        sample = min(50_000, many)
        paths = (self._folder / f"cost-{number}.sqlite3" for number in count())
        with canned_server() as base_url:
            turns = in_turn(
                {
                    "without": lambda: batch_child.measured(base_url, None, sample),
                    "with": lambda: batch_child.measured(base_url, next(paths), sample),
                },
                self._asked.rounds,
                warm_up=False,
            )
            without, kept = (
                [turn.cpu / sample * 1e6 for turn in each] for each in turns.values()
            )
            small = batch_child.measured(base_url, self._folder / "few.sqlite3", few)
            large = batch_child.measured(
                base_url, self._folder / "many.sqlite3", many, _ACCOUNTS
            )
        return {
            "µs CPU an item without a journal": statistics.median(without),
            "µs CPU an item with one": statistics.median(kept),
            "µs CPU that a journal adds": statistics.median(
                more - less for more, less in zip(kept, without, strict=True)
            ),
            f"MB, {few} items": small.memory / 1e6,
            f"MB, {many} items of {_ACCOUNTS} accounts": large.memory / 1e6,
            "MB between them": (large.memory - small.memory) / 1e6,
            f"s, {many} items": large.seconds,
        }

    def accounts(self) -> dict[str, float]:
        """Return the items a second over many accounts, with a journal and without."""
        seconds = min(10.0, float(self._asked.seconds))
        return batch_accounts.accounts(self._asked.rounds, seconds, self._folder)

    def resume(self) -> dict[str, float]:
        """Return how long it takes until a run of many items goes on."""
        path, items = self._folder / "resume.sqlite3", self._asked.items
        with canned_server() as base_url:
            run = Run(base_url=base_url, livemode=False)
            began = time.perf_counter()
            with SqliteJournal.open(path, run) as store:
                store.load(CancelRequest(each) for each in batch_child.ids(items))
            loaded = time.perf_counter() - began
            # Half of them are settled, as after a kill in the midst.
            half = subprocess.Popen(  # noqa: S603 - our own module, by this interpreter
                batch_child.command(base_url, path, 0), stdout=subprocess.DEVNULL
            )
            while half.poll() is None and _settled(path) < items // 2:
                time.sleep(0.5)
            half.kill()
            half.wait()
            if _settled(path) == items:
                raise SystemExit(
                    "resume: all were settled before the kill; more --items"
                )
            return {
                f"s to load {items} items": loaded,
                "s from the start of the batch to its first result": asyncio.run(
                    _first(base_url, path)
                ),
            }

    def pace(self) -> dict[str, float]:
        """Return what share of a limit gets through, before and after it halves."""
        self.log, found = batch_pace.pace(self._asked.seconds)
        return found

    def brownout(self) -> dict[str, float]:
        """Return what it costs when every answer is a 503 for a while in mid-run."""
        return batch_pace.brownout(self._asked.seconds)

    def kills(self) -> dict[str, float]:
        """Return what was lost or done twice by runs that were killed."""
        return batch_kills.kills(self._asked.kills, self._folder)


def _settled(path: Path) -> int:
    tally = JournalReader(path).tally()
    return tally.outcomes.total() - tally.open


async def _first(base_url: str, path: Path) -> float:
    began = time.perf_counter()
    async with RefundsClient(batch_child.KEY, base_url=base_url) as refunds:
        batch = Batch(refunds, (), journal=path)
        results = batch.results()
        await anext(results)
        seconds = time.perf_counter() - began
        await results.aclose()
    return seconds


PARTS: dict[str, Callable[[Bench], dict[str, float]]] = {
    "journal": Bench.journal,
    "accounts": Bench.accounts,
    "resume": Bench.resume,
    "pace": Bench.pace,
    "brownout": Bench.brownout,
    "kills": Bench.kills,
}


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=3)
    parser.add_argument(
        "--parts",
        type=report.some_of(tuple(PARTS)),
        default=",".join(PARTS),
        help="by commas; default: %(default)s",
    )
    for name, default, words in (
        ("--items", 1_000_000, "of the largest run"),
        ("--seconds", 60, "of each half of the part pace, and of the brownout"),
        ("--kills", 100, "over all weathers"),
    ):
        parser.add_argument(name, type=report.count, default=default, help=words)
    asked = report.read(parser, Flags)
    if asked.plot is not None and "pace" not in asked.parts:
        parser.error("--plot draws the part pace, which is not asked for")
    return asked


def main() -> None:
    """Measure what was asked for, and print it."""
    asked = flags()
    found: dict[str, dict[str, float]] = {}
    if not asked.json:
        how = f"{asked.rounds} rounds of the part journal, all else once"
        print(report.heading(QUESTION, how), flush=True)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(asked, Path(name))
        for part in asked.parts:
            report.say(f"{part} ...")
            found[part] = PARTS[part](bench)
            if not asked.json:
                lines = (
                    f"{value:12.2f}  {what}" for what, value in found[part].items()
                )
                print("\n".join(("", part, *lines)), flush=True)
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines={
            f"{part}: {what}": value
            for part, figures in found.items()
            for what, value in figures.items()
        },
        parts=found,
    )
    report.finish(
        asked, whole, lambda path: batch_pace.draw(bench.log, asked.seconds, path)
    )


if __name__ == "__main__":
    main()
