"""What does it take to write the report of a run, and to look at it?

Each form is written by a process of its own from one journal; JSON is the least that a
report can do, and the others are compared with it. The page is then opened in a browser
that is installed (Chromium), without a window: how long until it is complete, and until
a search and a sort have been shown.
"""

from __future__ import annotations

import asyncio
import functools
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds.errors import RefundsError
from async_refunds.journal import Run, SqliteJournal
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult
from benchmarks import drawing, report
from benchmarks.harness import Figure, figure, in_turn, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from playwright.sync_api import Browser

    from async_refunds.journal import Claim

QUESTION = "What does a report cost to write and to look at?"
ROOT = Path(__file__).resolve().parent.parent
FORMS = ("json", "csv", "html")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PORTION = 1000
"""Items that are written to the journal at a time."""

# Milliseconds until the page is complete, then those of a search at once, of another,
# and of a sort. What they change is laid out before the time is taken.
LOOK = """() => {
    const [navigation] = performance.getEntriesByType("navigation");
    const timed = (act) => {
        const began = performance.now();
        act();
        document.body.getBoundingClientRect();
        return performance.now() - began;
    };
    const search = (words) => timed(() => {
        const input = document.getElementById("search");
        input.value = words;
        input.dispatchEvent(new Event("input"));
    });
    return {
        complete: navigation.domComplete,
        first_search: search("jpy 2026"),
        search: search("requires_action"),
        sort: timed(() => document.querySelectorAll("#all th button")[2].click()),
    };
}"""


class Flags(report.Flags, frozen=True, kw_only=True):
    """What can be asked for."""

    items: tuple[int, ...]


class Written(msgspec.Struct, frozen=True):
    """One report, written by a process of its own."""

    cpu: float
    """Seconds of CPU: user and system, the interpreter's start among them."""
    wall: float
    """Seconds."""
    size: int
    """Bytes."""


class Looked(msgspec.Struct, frozen=True):
    """The page in a browser, in milliseconds."""

    complete: float
    """From the navigation to ``domComplete``."""
    first_search: float
    search: float
    sort: float


class Result(msgspec.Struct, frozen=True):
    """The reports of one journal, over all rounds."""

    items: int
    cpu: dict[str, Figure]
    """Seconds, by form."""
    wall: dict[str, Figure]
    """Seconds, by form."""
    size: dict[str, int]
    """Bytes, by form."""
    cpu_ratios: dict[str, Figure]
    """CPU over that of JSON, by form."""
    looked: dict[str, Figure] | None
    """Milliseconds in the browser; None where there is none."""


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    results: list[Result]


async def fill(path: Path, items: int) -> None:
    """Write the journal of a run in which one refund in a hundred failed."""
    drawn = random.Random(1)  # noqa: S311 - no secret
    ids = [f"re_1{drawn.getrandbits(92):023x}" for _ in range(items)]
    run = Run("https://api.stripe.com", livemode=True)
    async with SqliteJournal.open(path, run) as journal:
        for start in range(0, items, PORTION):
            some = ids[start : start + PORTION]
            await journal.add([CancelRequest(each) for each in some])
        while claims := (await journal.claim({None: PORTION}))[None]:
            await journal.settle([(each, _result(each, drawn)) for each in claims])


def _result(claim: Claim, drawn: random.Random) -> CancelResult:
    bad, suffix = drawn.randrange(100) == 0, claim.refund_id[3:]
    refund = Refund(
        claim.refund_id,
        "refund",
        drawn.randint(500, 250_000),
        drawn.choice(("jpy", "eur", "usd")),
        1_790_000_000 - drawn.randint(0, 40 * 86_400),
        "requires_action" if bad else "canceled",
        charge=f"ch_{suffix}",
        payment_intent=f"pi_{suffix}",
        failure_balance_transaction=None if bad else f"txn_{suffix}",
    )
    return CancelResult(
        refund_id=claim.refund_id,
        stripe_account=None,
        outcome="failed" if bad else "canceled",
        refund=refund,
        error=RefundsError(f"{claim.refund_id} was not canceled") if bad else None,
        idempotency_key=claim.idempotency_key,
    )


def write(journal: Path, form: str) -> Written:
    """Write a report by the command."""
    target = journal.with_suffix(f".{form}")
    flags = [f"--{form}"]
    if form == "html":
        flags += [str(target), "--force"]  # in place of the empty one made here
    before, began = _cpu_of_children(), time.perf_counter()
    with target.open("wb") as file:
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "async_refunds", "report", str(journal), *flags],
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=False,  # some are not canceled: 1
            cwd=ROOT,
        )
    return Written(
        cpu=_cpu_of_children() - before,
        wall=time.perf_counter() - began,
        size=target.stat().st_size,
    )


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def look(browser: Browser, page: Path) -> Looked:
    """Open a page, search and sort it."""
    opened = browser.new_page()
    opened.goto(page.as_uri())
    seen = opened.evaluate(LOOK)
    opened.close()
    return msgspec.convert(seen, Looked)


def start_browser(stack: ExitStack) -> Browser | None:
    """Start a browser for as long as the stack is open, if there is one."""
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        report.say("no browser is installed: the page is not looked at")
        return None
    # It is only needed here, and takes a second to import.
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - as said

    playwright = stack.enter_context(sync_playwright())
    browser = playwright.chromium.launch(executable_path=command)
    stack.callback(browser.close)
    return browser


def measure(journal: Path, items: int, rounds: int) -> Result:
    """Return what the reports of one journal cost."""
    turns = in_turn(
        {form: functools.partial(write, journal, form) for form in FORMS},
        rounds,
        warm_up=False,
    )
    with ExitStack() as stack:
        looked = None
        if browser := start_browser(stack):
            page = journal.with_suffix(".html")
            looks = [look(browser, page) for _ in range(rounds)]
            looked = {
                name: figure(getattr(each, name) for each in looks)
                for name in Looked.__struct_fields__
            }

    def figures(read: Callable[[Written], float]) -> dict[str, Figure]:
        return {form: figure(map(read, turns[form])) for form in FORMS}

    cpu = {form: [turn.cpu for turn in turns[form]] for form in FORMS}
    return Result(
        items=items,
        cpu=figures(lambda turn: turn.cpu),
        wall=figures(lambda turn: turn.wall),
        size={form: turns[form][0].size for form in FORMS},
        cpu_ratios={form: ratio(cpu[form], cpu["json"]) for form in FORMS},
        looked=looked,
    )


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    rows = [
        [
            f"{form}, {result.items:,} refunds",
            report.shown(result.cpu[form], 2),
            report.shown(result.cpu_ratios[form], 2),
            report.shown(result.wall[form], 2),
            f"{result.size[form] / 2**20:.1f}",
        ]
        for result in results
        for form in FORMS
    ]
    lines = report.table(["", "s CPU", "x json", "s", "MiB"], rows)
    looked = [
        [
            f"page, {result.items:,} refunds",
            *(report.shown(value, 0) for value in result.looked.values()),
        ]
        for result in results
        if result.looked
    ]
    if not looked:
        return lines
    head = ["ms in the browser", *Looked.__struct_fields__]
    return [*lines, "", *report.table(head, looked)]


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a bar for each form and size."""
    with drawing.sheet(path, QUESTION, size=(8, 3.4)) as (axes,):
        rows = [(result, form) for result in results for form in FORMS]
        drawing.bars(
            axes,
            [f"{form}, {result.items:,} refunds" for result, form in rows],
            [result.cpu[form].median for result, form in rows],
            [
                f"{result.cpu[form].median:.2f} s, "
                f"{result.cpu_ratios[form].median:.2f} x json"
                for result, form in rows
            ],
            ours="html",
        )
        axes.set_xlabel("seconds of CPU")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    parser = report.parser(QUESTION, rounds=3)
    parser.add_argument(
        "--items",
        type=report.counts,
        default=(1_000, 100_000),
        help="refunds of each journal, by commas; default: 1000,100000",
    )
    asked = report.read(parser, Flags)
    if not asked.json:
        how = f"medians of {asked.rounds} rounds, ± IQR / 2"
        print(report.heading(QUESTION, how), flush=True)
    results: list[Result] = []
    for items in asked.items:
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder, "run.sqlite3")
            asyncio.run(fill(journal, items))
            results.append(measure(journal, items, asked.rounds))
    if not asked.json:
        print("\n".join(("", *table(results))), flush=True)
    most = results[-1]
    headlines = {
        f"seconds to write the page of {most.items:,}": most.wall["html"].median,
        f"CPU x JSON of the page of {most.items:,}": most.cpu_ratios["html"].median,
    }
    if most.looked:
        complete = most.looked["complete"].median / 1000
        headlines[f"seconds until the page of {most.items:,} is complete"] = complete
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines=headlines,
        results=results,
    )
    report.finish(asked, whole, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
