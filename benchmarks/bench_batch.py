"""What does a batch cost, does it find Stripe's pace, and does it lose anything?

Parts, each of which can be asked for alone: ``journal`` (CPU and memory per item, with
one and without), ``accounts`` (items a second over 1, 100 and 1,000 accounts),
``resume`` (how long until a run of many goes on), ``pace`` (against a limit that halves
in mid-run, and two clients at once), ``brownout`` (every answer 503 for a while),
``kills`` (killed again and again under faults). The last three wait most of their time:
they run side by side once all else is measured, and beside them the largest run of
``journal``, of which the memory counts.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from async_refunds import CancelRequest, CancelResult, RefundsClient
from async_refunds.batch import Batch
from async_refunds.journal import Claim, Run, SqliteJournal
from benchmarks import (
    batch_accounts,
    batch_child,
    batch_kills,
    batch_pace,
    batch_sizes,
    drawing,
    report,
)
from benchmarks.canned import canned_server
from benchmarks.harness import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from async_refunds.emulator import ReceivedRequest

QUESTION = "What does a batch cost, does it find Stripe's pace, does it lose anything?"


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    parts: tuple[str, ...]
    items: int
    seconds: int
    kills: int


class Bench:
    """A run of the parts that were asked for."""

    def __init__(self, asked: Flags, folder: Path) -> None:
        self._asked = asked
        self._folder = folder
        self.log: list[ReceivedRequest] = []
        """The requests of the part ``pace``."""
        self.costs: list[batch_accounts.Cost] = []
        """By the number of accounts."""
        self.sizes: list[batch_sizes.Size] = []
        """Runs of different lengths."""

    def journal(self) -> dict[str, float]:
        """Return what a journal adds to an item."""
        sample = min(20_000, self._asked.items)
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
        typical = sorted(turns["with"], key=lambda turn: turn.cpu)[len(kept) // 2]
        self.sizes.append(batch_sizes.size(typical, sample))
        return {
            "µs CPU an item without a journal": statistics.median(without),
            "µs CPU an item with one": statistics.median(kept),
            "µs CPU that a journal adds": statistics.median(
                more - less for more, less in zip(kept, without, strict=True)
            ),
        }

    def accounts(self) -> dict[str, float]:
        """Return the items a second over many accounts, with a journal and without."""
        seconds = min(8.0, float(self._asked.seconds))
        self.costs, found = batch_accounts.accounts(
            self._asked.rounds, seconds, self._folder
        )
        return found

    def resume(self) -> dict[str, float]:
        """Return how long it takes until a run of many items goes on."""
        path, items = self._folder / "resume.sqlite3", self._asked.items
        with canned_server() as base_url:
            run = Run(base_url=base_url, livemode=False)
            began = time.perf_counter()
            with SqliteJournal.open(path, run) as store:
                store.load(CancelRequest(each) for each in batch_child.ids(items))
            loaded = time.perf_counter() - began
            asyncio.run(_settle_half(path, items))
            return {
                f"s to load {items} items": loaded,
                "s from the start of the batch to its first result": asyncio.run(
                    _first(base_url, path)
                ),
            }

    def waiting(self, parts: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield what these parts found, which run side by side.

        Each is a process of its own. A fork would have our threads' locks.
        """
        seconds = self._asked.seconds
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(BESIDE), mp_context=spawn) as pool:
            work: dict[str, Callable[[], Future[Any]]] = {
                "pace": lambda: pool.submit(batch_pace.pace, seconds),
                "brownout": lambda: pool.submit(batch_pace.brownout, seconds),
                "kills": lambda: pool.submit(
                    batch_kills.kills, self._asked.kills, self._folder
                ),
                "journal": lambda: pool.submit(
                    batch_sizes.sizes, self._asked.items, self._folder
                ),
            }
            running: dict[str, Future[Any]] = {part: work[part]() for part in parts}
            for part, future in running.items():
                told: Any = future.result()
                if part == "pace":
                    self.log, told = told
                elif part == "journal":
                    self.sizes += told
                    told = batch_sizes.figures(*told)
                yield part, told

    def draw(self, _: report.Parts, path: Path) -> None:
        """Draw what was measured, a panel for each of three questions."""
        panels: list[Callable[[Any], None]] = []
        if self.log:
            panels.append(
                lambda axes: batch_pace.draw(self.log, self._asked.seconds, axes)
            )
        if self.costs:
            panels.append(lambda axes: batch_accounts.draw(self.costs, axes))
        if self.sizes:
            panels.append(lambda axes: batch_sizes.draw(self.sizes, axes))
        size = (8.0, 3.5 * len(panels))
        with drawing.sheet(path, QUESTION, size=size, panels=len(panels)) as sheet:
            for draw, axes in zip(panels, sheet, strict=True):
                draw(axes)


async def _settle_half(path: Path, items: int) -> None:
    """Claim and settle half of the items, and leave some claimed as a kill does."""
    page = max(1, min(5000, items // 4))
    async with SqliteJournal.open(path) as journal:
        journal.begin()
        for _ in range(max(1, items // 2 // page)):
            claims = (await journal.claim({None: page}))[None]
            known = [(claim, _canceled(claim)) for claim in claims]
            await journal.settle(known)
        await journal.claim({None: min(page, batch_child.CONCURRENCY)})


def _canceled(claim: Claim) -> CancelResult:
    return CancelResult(
        refund_id=claim.refund_id,
        stripe_account=claim.stripe_account,
        outcome="canceled",
        idempotency_key=claim.idempotency_key,
    )


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
}
WAITING = ("pace", "brownout", "kills")
BESIDE = (*WAITING, "journal")
"""What runs side by side, the largest run of ``journal`` too."""


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=3)
    report.add_parts(
        parser,
        (*PARTS, *WAITING),
        more=". The last three run side by side, and beside them the largest run of "
        "journal",
    )
    report.add_counts(
        parser,
        ("--items", 1_000_000, "of the largest run, and of that which is resumed"),
        ("--seconds", 60, "of each half of the part pace, and of the brownout"),
        ("--kills", 100, "over all weathers"),
    )
    asked = report.read(parser, Flags)
    if asked.plot is not None and not {"pace", "accounts", "journal"} & {*asked.parts}:
        parser.error("--plot draws pace, accounts and journal: ask for one of them")
    return asked


def measured(
    bench: Bench, parts: Sequence[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what each part found, those that wait at the end; ``journal`` twice."""
    for part in parts:
        if part in PARTS:
            report.say(f"{part} ...")
            yield part, PARTS[part](bench)
    if waiting := [part for part in BESIDE if part in parts]:
        report.say(f"{', '.join(waiting)} ...")
        yield from bench.waiting(waiting)


def main() -> None:
    """Measure what was asked for, and print it."""
    asked = flags()
    how = f"{asked.rounds} rounds of the part journal, all else once"
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(asked, Path(name))
        report.tell_parts(
            asked, QUESTION, how, measured(bench, asked.parts), bench.draw
        )


if __name__ == "__main__":
    main()
