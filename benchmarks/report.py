"""The flags that every benchmark has, and what it prints and draws."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.canned import canned_server
from benchmarks.harness import Report, Result, compare, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.harness import Figure, Opener

_MICRO, _MILLI = 1e6, 1e3


class Options(msgspec.Struct, frozen=True):
    """What the command line asked for."""

    rounds: int
    calls: int
    concurrency: tuple[int, ...]
    clients: tuple[str, ...]
    uvloop: bool
    json: bool
    plot: Path | None


def options(question: str, clients: Sequence[str]) -> Options:
    """Read the command line; a wrong one ends the program with a message."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--rounds", type=_count, default=9, help="kept ones")
    parser.add_argument(
        "--calls", type=_count, default=1000, help="of each client in each round"
    )
    parser.add_argument(
        "--concurrency",
        type=_counts,
        default="1,50,500",
        help="calls in flight, several by commas; default: %(default)s",
    )
    parser.add_argument(
        "--clients", default=",".join(clients), help="by commas; default: %(default)s"
    )
    parser.add_argument("--uvloop", action="store_true", help="instead of asyncio's")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".svg or .png")
    given = parser.parse_args()
    named = tuple(given.clients.split(","))
    if unknown := set(named) - set(clients):
        parser.error(f"no client {min(unknown)!r}: there are {', '.join(clients)}")
    if given.plot is not None:
        # Said now, and not after minutes of measuring.
        if given.plot.suffix not in (".svg", ".png"):
            parser.error("--plot takes a file that ends in .svg or .png")
        _require(parser, "matplotlib", "--plot")
    if given.uvloop:
        _require(parser, "uvloop", "--uvloop")
    return Options(
        rounds=given.rounds,
        calls=given.calls,
        concurrency=given.concurrency,
        clients=named,
        uvloop=given.uvloop,
        json=given.json,
        plot=given.plot,
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _require(parser: argparse.ArgumentParser, package: str, flag: str) -> None:
    if importlib.util.find_spec(package) is None:
        parser.error(f"{flag} needs {package}: python -m pip install {package}")


def run(
    question: str, openers: Mapping[str, Opener], baselines: Sequence[str]
) -> Report:
    """Measure as the command line says; print, and draw if asked.

    Args:
        question: What the benchmark answers, in a line.
        openers: Every client there is, by name.
        baselines: The names to give ratios to, the most important first. Those not
            measured are left out; with none of them, it is the first client.
    """
    asked = options(question, tuple(openers))
    chosen = {name: openers[name] for name in asked.clients}
    against = [name for name in baselines if name in chosen] or [asked.clients[0]]
    report = Report(
        question=question,
        loop="uvloop" if asked.uvloop else "asyncio",
        rounds=asked.rounds,
        calls=asked.calls,
        versions=versions(),
        results=[],
    )
    if not asked.json:
        print(heading(report))
    with canned_server() as base_url:
        for concurrency in asked.concurrency:
            _say(f"{concurrency} in flight, {asked.rounds} rounds ...")
            with asyncio.Runner(loop_factory=_loop_factory(asked)) as runner:
                found = runner.run(
                    compare(
                        chosen,
                        base_url,
                        concurrency=concurrency,
                        rounds=asked.rounds,
                        calls=asked.calls,
                        baselines=against,
                    )
                )
            report.results.extend(found)
            if not asked.json:
                # At once: the next may take minutes, and somebody may stop it.
                print("\n".join(("", f"{concurrency} in flight", *table(found))))
    if asked.json:
        print(msgspec.json.encode(report).decode())
    if asked.plot is not None:
        draw(report, asked.plot)
    return report


def _loop_factory(asked: Options) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not asked.uvloop:
        return None
    import uvloop  # noqa: PLC0415 - not to be had on Windows, so only when asked for

    return uvloop.new_event_loop


def _say(line: str) -> None:
    # For people; stdout is for the figures.
    print(line, file=sys.stderr, flush=True)


def heading(report: Report) -> str:
    """Return what was measured, and with what."""
    named = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return "\n".join(
        (
            report.question,
            f"{named}; loop: {report.loop}",
            f"medians of {report.rounds} rounds of {report.calls} calls, ± IQR / 2",
        )
    )


def table(rows: Sequence[Result]) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    baselines = list(rows[0].cpu_ratios)
    head = ["client", "µs CPU/call", *(f"x {name}" for name in baselines)]
    cells = [[*head, "req/s", "p50 ms", "p99 ms"]]
    cells += [
        [
            row.client,
            _shown(row.cpu, 1, _MICRO),
            *(_shown(row.cpu_ratios[name], 3) for name in baselines),
            _shown(row.rate, 0),
            _shown(row.p50, 2, _MILLI),
            _shown(row.p99, 2, _MILLI),
        ]
        for row in rows
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            # The name to the left, figures to the right.
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _shown(value: Figure, digits: int, scale: float = 1.0) -> str:
    return f"{value.median * scale:.{digits}f} ±{value.iqr * scale / 2:.{digits}f}"


def draw(report: Report, path: Path) -> None:
    """Write a bar for each client's CPU per call, a panel for each concurrency."""
    # By name, since it is no dependency of the benchmarks and need not be installed.
    figures = importlib.import_module("matplotlib.figure")
    panels = list(dict.fromkeys(result.concurrency for result in report.results))
    clients = list(dict.fromkeys(result.client for result in report.results))
    sheet = figures.Figure(
        figsize=(8, 0.8 + len(panels) * (0.8 + 0.3 * len(clients))),
        layout="constrained",
    )
    sheet.suptitle(report.question)
    for axes, concurrency in zip(
        sheet.subplots(len(panels), squeeze=False, sharex=True)[:, 0],
        panels,
        strict=True,
    ):
        rows = [found for found in report.results if found.concurrency == concurrency]
        rows.reverse()  # the first client on top
        bars = axes.barh(
            [row.client for row in rows],
            [row.cpu.median * _MICRO for row in rows],
            xerr=[row.cpu.iqr * _MICRO / 2 for row in rows],
            color=[f"C{clients.index(row.client)}" for row in rows],
        )
        # The whole story is from 0.1 ms to some ms.
        axes.set_xscale("log")
        ratios = [next(iter(row.cpu_ratios.items())) for row in rows]
        axes.bar_label(bars, [f" {found.median:.2f}x" for _, found in ratios])
        axes.set_title(f"{concurrency} in flight; x is times {ratios[0][0]}")
        axes.set_xlabel("µs of CPU per call")
        axes.margins(x=0.15)
    sheet.savefig(path)
    _say(f"drawn: {path}")
