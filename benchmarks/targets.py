"""What the project promises of its cost, held against what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks import report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Target(msgspec.Struct, frozen=True):
    """A promise about one or several figures of a run, all of which have to keep it."""

    what: str
    run: str
    """The name of the run."""
    figures: tuple[str, ...]
    """As the headlines of its report have them."""
    bound: float
    unit: str = "x"
    at_least: bool = False
    """The bound is the least, and else the most."""

    def promised(self) -> str:
        """Return the bound in words."""
        side = "least" if self.at_least else "most"
        return f"at {side} {self.bound:g} {self.unit}".rstrip()

    def kept(self, values: Sequence[float]) -> bool:
        """Tell whether these figures keep the promise."""
        if self.at_least:
            return min(values) >= self.bound
        return max(values) <= self.bound


def _of_cancel(run: str, loop: str) -> tuple[Target, ...]:
    every, many = (1, 50, 500), (50, 500)

    def figures(what: str, at: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"{what}, {number} in flight" for number in at)

    return (
        Target(
            f"CPU of a cancel to bare aiohttp's, {loop}, 1 / 50 / 500 in flight",
            run,
            figures("CPU x bare", every),
            0.92,
        ),
        Target(
            f"the same to aiohttp's tuned by hand, {loop}",
            run,
            figures("CPU x tuned", every),
            1.08,
        ),
        Target(
            f"cancels a second to the official client's, {loop}, 50 / 500 in flight",
            run,
            figures("req/s x official_aiohttp", many),
            3.0,
            at_least=True,
        ),
        Target(
            f"p99 of a cancel to the official client's, {loop}, 500 in flight",
            run,
            figures("p99 x official_aiohttp", many[-1:]),
            0.5,
        ),
    )


TARGETS = (
    *_of_cancel("cancel", "asyncio"),
    *_of_cancel("cancel_uvloop", "uvloop"),
    Target(
        "speed of decoding to the official object's, two bodies",
        "decode",
        (
            "times as fast as official, Stripe's own example",
            "times as fast as official, a bank transfer, canceled",
        ),
        40.0,
        at_least=True,
    ),
    Target(
        "CPU of the import to aiohttp's", "import", ("CPU x aiohttp, imported",), 1.15
    ),
    Target(
        "wrong reports in 10,000 cancels, 20 % faults",
        "faults",
        ("wrong reports per 10,000 of async_refunds at 20 %",),
        0.0,
        unit="",
    ),
    Target(
        "CPU of a cancel with OpenTelemetry to one with as much written by hand",
        "service",
        ("OpenTelemetry x by hand",),
        1.1,
    ),
    Target(
        "CPU of a cancel with OpenTelemetry without its SDK to one without either",
        "service",
        ("tracing off x cancel",),
        1.1,
    ),
    Target(
        "calls of a web service under a storm that are answered 200",
        "storm",
        ("% answered 200, available",),
        98.0,
        unit="%",
        at_least=True,
    ),
    Target(
        "untrue words in a storm with hang-ups, three services",
        "storm",
        ("untrue, available", "untrue, worn", "untrue, cancelled"),
        0.0,
        unit="",
    ),
    Target(
        "what that storm leaves in the process or makes it say, three services",
        "storm",
        ("left or said, available", "left or said, worn", "left or said, cancelled"),
        0.0,
        unit="",
    ),
    Target(
        "a batch over 100 accounts with a journal, of the limit",
        "batch",
        ("accounts: % of the limit, 100 accounts, with one",),
        95.0,
        unit="%",
        at_least=True,
    ),
    Target(
        "items a second with a journal to those without, 1 account",
        "batch",
        ("accounts: with / without, 1 account",),
        0.7,
        at_least=True,
    ),
    Target(
        "the same, 1,000 accounts",
        "batch",
        ("accounts: with / without, 1000 accounts",),
        0.6,
        at_least=True,
    ),
    Target(
        "CPU that a journal adds to an item, 1 / 100 / 1,000 accounts",
        "batch",
        (
            "accounts: µs CPU that a journal adds, 1 account",
            "accounts: µs CPU that a journal adds, 100 accounts",
            "accounts: µs CPU that a journal adds, 1000 accounts",
        ),
        30.0,
        unit="µs",
    ),
    Target(
        "memory of the largest batch, over 5,000 accounts, over that of 1,000 refunds",
        "batch",
        ("journal: MB between them",),
        30.0,
        unit="MB",
    ),
    Target(
        "CPU of an item of a fleet's worker to that with SQLite, saturated",
        "fleet",
        ("saturated: CPU of the worker, x SQLite",),
        1.1,
    ),
    Target(
        "the same, paced at 400 a second",
        "fleet",
        ("paced: CPU of the worker, x SQLite",),
        1.35,
    ),
    Target(
        "CPU of PostgreSQL for an item, saturated",
        "fleet",
        ("saturated: µs CPU of PostgreSQL an item",),
        120.0,
        unit="µs",
    ),
    Target(
        "the same, paced at 400 a second",
        "fleet",
        ("paced: µs CPU of PostgreSQL an item",),
        250.0,
        unit="µs",
    ),
    Target(
        "1,000,000 refunds enqueued",
        "fleet",
        ("enqueue: s to enqueue 1000000 ids",),
        15.0,
        unit="s",
    ),
    Target(
        "memory of the client that enqueues them",
        "fleet",
        ("enqueue: MB of the client",),
        300.0,
        unit="MB",
    ),
    Target(
        "a claim beside 1,000,000 settled items, to one beside none",
        "fleet",
        ("claims: x beside 1000000 settled items",),
        1.25,
    ),
    Target(
        "memory of a call in flight over bare aiohttp's, its connection / waiting",
        "memory",
        (
            "KiB over bare, a connection each, resident",
            "KiB over bare, the default pool, resident",
        ),
        4.0,
        unit="KiB",
    ),
    Target(
        "the report of 100,000 refunds as a page: written",
        "report",
        ("seconds to write the page of 100,000",),
        10.0,
        unit="s",
    ),
    Target(
        "the same, complete in a browser",
        "report",
        ("seconds until the page of 100,000 is complete",),
        2.0,
        unit="s",
    ),
)


def summary(headlines: Mapping[str, Mapping[str, float]], *, judge: bool) -> list[str]:
    """Return the lines of a table: what was seen beside what is promised.

    Args:
        headlines: Of each run, by its name; of one that failed there are none.
        judge: Say of each whether it is met.
    """
    rows: list[tuple[str, ...]] = []
    for target in TARGETS:
        found = headlines.get(target.run, {})
        values = [found[name] for name in target.figures if name in found]
        if len(values) < len(target.figures):
            verdict = "not measured"
        elif not judge:
            verdict = "not judged"
        else:
            verdict = "met" if target.kept(values) else "missed"
        seen = " / ".join(f"{value:.3f}" for value in values)
        rows.append((target.what, seen, target.promised(), verdict))
    return report.table(["", "seen", "target", "verdict"], rows)
