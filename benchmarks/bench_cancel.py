"""What does a successful cancel cost, and what do other ways to send it cost?

The clients, and the pool of connections that each has, are in `cancel_clients`; they
ask a canned server on loopback, on the same core.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import drawing, report
from benchmarks.cancel_clients import CLIENTS, checked
from benchmarks.canned import canned_server
from benchmarks.harness import Result, compare, on_one_core

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUESTION = "What does a successful cancel cost?"
BASELINES = ("bare", "bare_plain", "tuned", "official_aiohttp")
OURS = "async_refunds"

_MICRO, _MILLI = 1e6, 1e3


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: int
    concurrency: tuple[int, ...]
    clients: tuple[str, ...]
    uvloop: bool


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    loop: str
    calls: int
    results: list[Result]


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=5)
    parser.add_argument(
        "--calls", type=report.count, default=1000, help="of each client in each round"
    )
    parser.add_argument(
        "--concurrency",
        type=report.counts,
        default="1,50,500",
        help="calls in flight, several by commas; default: %(default)s",
    )
    parser.add_argument(
        "--clients",
        type=report.some_of(tuple(CLIENTS)),
        default=",".join(CLIENTS),
        help="by commas; default: %(default)s",
    )
    parser.add_argument("--uvloop", action="store_true", help="instead of asyncio's")
    asked = report.read(parser, Flags)
    if asked.uvloop:
        report.require(parser, "uvloop", "--uvloop")
    return asked


def measure(asked: Flags, base_url: str, concurrency: int) -> list[Result]:
    """Return a result for each client that was asked for."""
    with asyncio.Runner(loop_factory=_loop_factory(asked)) as runner:
        return runner.run(
            compare(
                {name: checked(CLIENTS[name]) for name in asked.clients},
                base_url,
                concurrency=concurrency,
                rounds=asked.rounds,
                calls=asked.calls,
                # With none of the usual ones, the first is what there is.
                baselines=[name for name in BASELINES if name in asked.clients]
                or [asked.clients[0]],
            )
        )


def _loop_factory(asked: Flags) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not asked.uvloop:
        return None
    import uvloop  # noqa: PLC0415 - not to be had on Windows, so only when asked for

    return uvloop.new_event_loop


def headlines(results: Sequence[Result]) -> dict[str, float]:
    """Return this project's cost, as so many times that of others."""
    found: dict[str, float] = {}
    for result in results:
        if result.client != OURS:
            continue
        for what, ratios in (
            ("CPU", result.cpu_ratios),
            ("req/s", result.rate_ratios),
            ("p99", result.p99_ratios),
        ):
            for baseline, value in ratios.items():
                name = f"{what} x {baseline}, {result.concurrency} in flight"
                found[name] = value.median
    return found


def table(rows: Sequence[Result]) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    baselines = list(rows[0].cpu_ratios)
    ratios = (f"x {name}" for name in baselines)
    return report.table(
        ["client", "µs CPU/call", *ratios, "req/s", "p50 ms", "p99 ms"],
        [
            [
                row.client,
                report.shown(row.cpu, 1, _MICRO),
                *(report.shown(row.cpu_ratios[name], 3) for name in baselines),
                report.shown(row.rate, 0),
                report.shown(row.p50, 2, _MILLI),
                report.shown(row.p99, 2, _MILLI),
            ]
            for row in rows
        ],
    )


def draw(found: Report, path: Path) -> None:
    """Write a bar for each client's CPU per call, a panel for each concurrency."""
    panels = list(dict.fromkeys(result.concurrency for result in found.results))
    clients = len({result.client for result in found.results})
    height = 0.6 + len(panels) * (0.8 + 0.3 * clients)
    title = f"{found.question} ({found.loop})"
    with drawing.sheet(path, title, size=(8, height), panels=len(panels)) as sheet:
        for axes, concurrency in zip(sheet, panels, strict=True):
            rows = [row for row in found.results if row.concurrency == concurrency]
            baseline = next(iter(rows[0].cpu_ratios))
            drawing.bars(
                axes,
                [row.client for row in rows],
                [row.cpu.median * _MICRO for row in rows],
                [
                    f"{row.cpu.median * _MICRO:,.0f} µs, "
                    f"{row.cpu_ratios[baseline].median:.2f} x {baseline}"
                    for row in rows
                ],
                spreads=[row.cpu.iqr * _MICRO / 2 for row in rows],
                log=True,
            )
            axes.set_title(f"{concurrency} in flight")
            axes.set_xlabel("µs of CPU per call")
            # The whole story is from 0.02 ms to some ms, and the label needs room.
            axes.set_xlim(10, 100_000)
            axes.minorticks_off()
            axes.xaxis.set_major_formatter("{x:,.0f}")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    asked = flags()
    loop = "uvloop" if asked.uvloop else "asyncio"
    if not asked.json:
        how = f"medians of {asked.rounds} rounds of {asked.calls} calls, ± IQR / 2"
        print(report.heading(QUESTION, f"loop: {loop}; {how}"), flush=True)
    results: list[Result] = []
    on_one_core()
    with canned_server() as base_url:
        for concurrency in asked.concurrency:
            report.say(f"{concurrency} in flight, {asked.rounds} rounds ...")
            found = measure(asked, base_url, concurrency)
            results.extend(found)
            if not asked.json:
                # At once: the next may take minutes, and somebody may stop it.
                lines = ("", f"{concurrency} in flight", *table(found))
                print("\n".join(lines), flush=True)
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines=headlines(results),
        loop=loop,
        calls=asked.calls,
        results=results,
    )
    report.finish(asked, whole, lambda path: draw(whole, path))


if __name__ == "__main__":
    main()
