"""What memory does a cancel take while it waits for its answer?

Each client holds so many calls in flight that a server never answers, in a process of
its own; it is weighed with few of them and with many, and the difference is divided by
the calls between, so that what a process takes anyway is in no figure. ``resident`` is
what the machine is short of; ``traced`` is what Python's allocators gave out, in a run
of its own.

A call that has a connection holds more than one that waits for one, so both are
measured: a connection for each call (each client on a user's ``aiohttp.ClientSession``
without a limit), and aiohttp's default pool of 100 connections, which all three have
when nothing is said, so that nearly all calls wait.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import drawing, report
from benchmarks.canned import canned_server
from benchmarks.harness import Figure, figure, in_turn
from benchmarks.memory_child import CLIENTS, POOLS, weighed

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = "What memory does a cancel take while it waits for its answer?"
OURS, BARE = "async_refunds", "bare"
KINDS = ("resident", "traced")


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: tuple[int, ...]


class Result(msgspec.Struct, frozen=True):
    """One client with one pool, weighed in one way."""

    pool: str
    kind: str
    client: str
    held: Figure
    """Bytes for each call in flight."""
    over_bare: Figure
    """Bytes more than `bare` has."""


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    calls: tuple[int, ...]
    results: list[Result]


def flags() -> Flags:
    """Read the command line."""
    parser = report.parser(QUESTION, rounds=3)
    parser.add_argument(
        "--calls",
        type=report.counts,
        default="500,2500",
        help="in flight, few and many; default: %(default)s",
    )
    asked = report.read(parser, Flags)
    few, *many = asked.calls
    if len(many) != 1 or not few < many[0]:
        parser.error("--calls takes two numbers, the smaller first")
    return asked


def _held(client: str, pool: str, calls: int, kind: str) -> int:
    # A server for each, so that no port is waited for that was used just before.
    with canned_server() as base_url:
        return weighed(client, pool, base_url, calls, kind)


def _turn(client: str, pool: str, kind: str, calls: tuple[int, ...]) -> float:
    """Return the bytes for each call in flight."""
    few, many = calls
    more = _held(client, pool, many, kind) - _held(client, pool, few, kind)
    return more / (many - few)


def measure(asked: Flags) -> list[Result]:
    """Return a result for each pool, way to weigh, and client."""
    found: list[Result] = []
    for pool in POOLS:
        for kind in KINDS:
            report.say(f"{pool}, {kind} ...")
            turns = in_turn(
                {
                    client: functools.partial(_turn, client, pool, kind, asked.calls)
                    for client in CLIENTS
                },
                asked.rounds,
                warm_up=False,
            )
            found += [
                Result(
                    pool=pool,
                    kind=kind,
                    client=client,
                    held=figure(held),
                    over_bare=figure(
                        mine - bare
                        for mine, bare in zip(held, turns[BARE], strict=True)
                    ),
                )
                for client, held in turns.items()
            ]
    return found


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of a table: medians, each with half its quartiles' distance."""
    return report.table(
        ["", "KiB a call", f"KiB over {BARE}"],
        [
            [
                f"{result.client}, {result.kind}",
                report.shown(result.held, 2, 2**-10),
                report.shown(result.over_bare, 2, 2**-10),
            ]
            for result in results
        ],
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a bar for each client's resident memory, a panel for each pool."""
    rows = [result for result in results if result.kind == "resident"]
    most = max(row.held.median for row in rows) / 2**10
    with drawing.sheet(path, QUESTION, size=(8, 3.8), panels=len(POOLS)) as sheet:
        for axes, pool in zip(sheet, POOLS, strict=True):
            own = [row for row in rows if row.pool == pool]
            drawing.bars(
                axes,
                [row.client for row in own],
                [row.held.median / 2**10 for row in own],
                [
                    f"{row.held.median / 2**10:.1f} KiB, "
                    f"{row.over_bare.median / 2**10:+.1f}"
                    for row in own
                ],
                spreads=[row.held.iqr / 2**11 for row in own],
            )
            axes.set_title(pool)
            # One scale for both, with room for the labels.
            axes.set_xlim(0, most * 1.25)
        sheet[-1].set_xlabel(f"KiB resident for each call in flight; + is over {BARE}")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    asked = flags()
    few, many = asked.calls
    if not asked.json:
        how = f"medians of {asked.rounds} rounds, ± IQR / 2; from {few} to {many} calls"
        print(report.heading(QUESTION, how), flush=True)
    results = measure(asked)
    if not asked.json:
        for pool in POOLS:
            lines = table([result for result in results if result.pool == pool])
            print("\n".join(("", pool, *lines)), flush=True)
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines={
            f"KiB over bare, {result.pool}, {result.kind}": result.over_bare.median
            / 2**10
            for result in results
            if result.client == OURS
        },
        calls=asked.calls,
        results=results,
    )
    report.finish(asked, whole, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
