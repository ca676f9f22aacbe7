"""What does it cost to import this project, and to get to a first cancel?

Each turn is a fresh interpreter, with all bytecode written before; what one that does
nothing costs is taken off. An import may put off a part of its work, so two further
stages are measured: a client made, and the first cancel answered (over plain HTTP by a
canned server), when nothing is left to be imported.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import drawing, report
from benchmarks.canned import canned_server
from benchmarks.harness import Figure, figure, in_turn, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUESTION = "What does an import cost?"
ROOT = Path(__file__).resolve().parent.parent
OURS, BARE, OFFICIAL = "async_refunds", "aiohttp", "official"
IMPORTED, MADE, CANCELED = "imported", "client made", "first cancel"

CODE = {
    (IMPORTED, BARE): "import aiohttp",
    (IMPORTED, OURS): "from async_refunds import RefundsClient",
    (IMPORTED, OFFICIAL): "import stripe",
    # An aiohttp session is made in a running loop: nothing to measure before.
    (MADE, OURS): """
import async_refunds
async_refunds.RefundsClient("sk_test_bench")
""",
    (MADE, OFFICIAL): """
import stripe
stripe.StripeClient("sk_test_bench", http_client=stripe.AIOHTTPClient())
""",
    (CANCELED, BARE): """
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession() as session:
        response = await session.post("{base_url}/v1/refunds/re_1/cancel")
        await response.json()
asyncio.run(main())
""",
    (CANCELED, OURS): """
import asyncio, async_refunds
async def main():
    key, url = "sk_test_bench", "{base_url}"
    async with async_refunds.RefundsClient(key, base_url=url) as refunds:
        await refunds.cancel("re_1")
asyncio.run(main())
""",
    (CANCELED, OFFICIAL): """
import asyncio, stripe
async def main():
    http = stripe.AIOHTTPClient()
    addresses = {{"api": "{base_url}"}}
    client = stripe.StripeClient(
        "sk_test_bench", http_client=http, base_addresses=addresses
    )
    await client.v1.refunds.cancel_async("re_1")
    await http.close_async()
asyncio.run(main())
""",
}
"""What a fresh interpreter runs, by stage and package."""

# Appended to each. What it imports itself is in none of the figures but the memory, and
# there it is little, and in all of them.
_TELL = """
import sys, time
cpu, modules = time.process_time(), len(sys.modules)
from benchmarks import memory
print(f'{{"cpu": {cpu}, "modules": {modules}, "memory": {memory.peak()}}}')
"""


class Told(msgspec.Struct, frozen=True):
    """What one interpreter tells of itself."""

    cpu: float
    """Seconds from its start: user and system, all threads."""
    memory: int
    """Bytes: the peak."""
    modules: int
    """How many are imported."""


class Turn(msgspec.Struct, frozen=True):
    """One fresh interpreter."""

    told: Told
    wall: float
    """Seconds from its start to its end."""


class Result(msgspec.Struct, frozen=True):
    """One package at one stage, over all rounds, less a bare interpreter."""

    stage: str
    package: str
    cpu: Figure
    """Seconds."""
    wall: Figure
    """Seconds."""
    memory: Figure
    """Bytes."""
    modules: Figure
    cpu_ratio: Figure
    """Over that of aiohttp, at this stage or else imported."""


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    results: list[Result]


# The round before the first writes the bytecode, also where somebody wants none.
_ENVIRONMENT = {**os.environ}
_ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)


def _turn(code: str) -> Turn:
    began = time.perf_counter()
    told = subprocess.run(  # noqa: S603 - code of this file, by this interpreter
        [sys.executable, "-c", code + _TELL],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env=_ENVIRONMENT,
    )
    return Turn(
        told=msgspec.json.decode(told.stdout, type=Told),
        wall=time.perf_counter() - began,
    )


def measure(rounds: int) -> list[Result]:
    """Return a result for each stage and package."""
    nothing = ("", "")
    with canned_server() as base_url:
        turns = in_turn(
            {
                each: functools.partial(_turn, code.format(base_url=base_url))
                for each, code in ({nothing: ""} | CODE).items()
            },
            rounds,
        )
    idle = turns[nothing]

    def less_idle(
        subject: tuple[str, str], read: Callable[[Turn], float]
    ) -> list[float]:
        both = zip(turns[subject], idle, strict=True)
        return [read(turn) - read(other) for turn, other in both]

    def cpu(subject: tuple[str, str]) -> list[float]:
        return less_idle(subject, lambda turn: turn.told.cpu)

    found: list[Result] = []
    for stage, package in CODE:
        subject = (stage, package)
        against = (stage, BARE) if (stage, BARE) in CODE else (IMPORTED, BARE)
        found.append(
            Result(
                stage=stage,
                package=package,
                cpu=figure(cpu(subject)),
                wall=figure(less_idle(subject, lambda turn: turn.wall)),
                memory=figure(less_idle(subject, lambda turn: turn.told.memory)),
                modules=figure(less_idle(subject, lambda turn: turn.told.modules)),
                cpu_ratio=ratio(cpu(subject), cpu(against)),
            )
        )
    return found


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    return report.table(
        ["", "ms CPU", f"x {BARE}", "ms", "MiB", "modules"],
        [
            [
                f"{result.package}, {result.stage}",
                report.shown(result.cpu, 1, 1e3),
                report.shown(result.cpu_ratio, 3),
                report.shown(result.wall, 1, 1e3),
                report.shown(result.memory, 1, 2**-20),
                f"{result.modules.median:.0f}",
            ]
            for result in results
        ],
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a bar of CPU for each package, a panel for each stage."""
    stages = list(dict.fromkeys(result.stage for result in results))
    with drawing.sheet(path, QUESTION, size=(8, 5.4), panels=len(stages)) as sheet:
        most = max(result.cpu.median for result in results)
        for axes, stage in zip(sheet, stages, strict=True):
            rows = [result for result in results if result.stage == stage]
            drawing.bars(
                axes,
                [row.package for row in rows],
                [row.cpu.median * 1e3 for row in rows],
                [
                    f"{row.cpu.median * 1e3:.0f} ms, {row.cpu_ratio.median:.2f} x, "
                    f"{row.memory.median / 2**20:.0f} MiB"
                    for row in rows
                ],
                spreads=[row.cpu.iqr * 1e3 / 2 for row in rows],
            )
            axes.set_title(stage)
            # One scale for all stages, with room for the labels.
            axes.set_xlim(0, most * 1.4e3)
        sheet[-1].set_xlabel(f"ms of CPU; x is times {BARE}")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    asked = report.read(report.parser(QUESTION, rounds=15), report.Flags)
    if not asked.json:
        how = f"medians of {asked.rounds} rounds, ± IQR / 2, less a bare interpreter"
        print(report.heading(QUESTION, how), flush=True)
    results = measure(asked.rounds)
    if not asked.json:
        print("\n".join(("", *table(results))), flush=True)
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines={
            f"CPU x {BARE}, {result.stage}": result.cpu_ratio.median
            for result in results
            if result.package == OURS
        },
        results=results,
    )
    report.finish(asked, whole, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
