"""What is told of the clients under faults: tables, and stacked bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks import drawing, report
from benchmarks.faults_clients import Told
from benchmarks.faults_judge import Result  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OURS = "async_refunds"


class Weather(msgspec.Struct, frozen=True):
    """What all clients told under one storm."""

    rate: int
    """Percent of the requests that meet a fault."""
    faults: tuple[str, ...]
    baseline: str
    """Whose CPU is 1."""
    results: list[Result]


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    storms: list[Weather]
    alone: list[Weather]
    """Each fault by itself, if asked for."""


_HEAD = (
    "client",
    "canceled, is",
    "error, is not",
    "unknown (is)",
    "WRONG: open, is",
    "no, is",
    "canceled, is not",
    "wrong",
    "untold",
    "raw",
    "lost",
    "2nd key",
    "met",
    "requests",
    "CPU",
)


def named(faults: Sequence[str]) -> str:
    """Return a short name for what a storm is made of."""
    return faults[0] if len(faults) == 1 else f"{len(faults)} faults"


def headlines(storms: Sequence[Weather]) -> dict[str, float]:
    """Return the answer: what this project gets wrong at each rate, and its cost."""
    found: dict[str, float] = {}
    for storm in storms:
        for result in storm.results:
            if result.client != OURS:
                continue
            name = f"of {OURS} at {storm.rate} %"
            found[f"wrong reports per 10,000 {name}"] = result.wrong_per_10000
            found[f"raw exceptions {name}"] = result.raw
            found[f"lost ids {name}"] = result.lost
            if storm.baseline != OURS:
                found[f"CPU x {storm.baseline} {name}"] = result.cpu_ratio.median
    return found


def lines(storm: Weather) -> list[str]:
    """Return a table of all clients, and the errors that each gave."""
    title = (
        f"{storm.rate} % of requests meet one of {named(storm.faults)}; wrong, untold: "
        f"per 10,000 calls; requests: per call; CPU: per call, x {storm.baseline}"
    )
    rows = [_row(found) for found in storm.results]
    errors = [_errors(found) for found in storm.results]
    return ["", title, *report.table(_HEAD, rows), *filter(None, errors)]


def _row(found: Result) -> list[str]:
    told = {each: found.told[each.value] for each in Told}
    unknown = told[Told.UNKNOWN]
    return [
        found.client,
        str(told[Told.CANCELED].canceled),
        str(told[Told.NO].not_canceled + told[Told.OPEN].not_canceled),
        f"{unknown.canceled + unknown.not_canceled} ({unknown.canceled})",
        str(told[Told.OPEN].canceled),
        str(told[Told.NO].canceled),
        str(told[Told.CANCELED].not_canceled),
        f"{found.wrong_per_10000:.4g}",
        f"{found.untold_per_10000:.4g}",
        str(found.raw),
        str(found.lost),
        str(found.second_keys),
        f"{found.faults_per_request:.1%}",
        f"{found.requests_per_call:.2f}",
        report.shown(found.cpu_ratio, 2),
    ]


def _errors(found: Result) -> str:
    if not found.errors:
        return ""
    told = ", ".join(
        f"{name} {split.canceled} / {split.not_canceled}"
        for name, split in found.errors.items()
    )
    return f"  {found.client}, canceled / not: {told}"


def matrix(alone: Sequence[Weather]) -> list[str]:
    """Return a table of wrong reports per 10,000, by fault and client."""
    clients = [found.client for found in alone[0].results]
    rows = [
        [
            named(each.faults),
            *(f"{found.wrong_per_10000:.4g}" for found in each.results),
        ]
        for each in alone
    ]
    title = f"wrong reports per 10,000, {alone[0].rate} % of requests meet this fault"
    return ["", title, *report.table(["fault", *clients], rows)]


# Red for what is wrong, blue for what is owned to be unknown, grey for a plain error.
_STACK = (
    ("error, and is not canceled", "#d9d9d9", ((Told.NO, False), (Told.OPEN, False))),
    ("unknown, is not canceled", "#9ecae1", ((Told.UNKNOWN, False),)),
    ("unknown, and is canceled", "#3182bd", ((Told.UNKNOWN, True),)),
    ("wrong: error that leaves it open, is canceled", "#fcae91", ((Told.OPEN, True),)),
    ("wrong: told no, is canceled", "#de2d26", ((Told.NO, True),)),
    ("wrong: told canceled, is not", "#67000d", ((Told.CANCELED, False),)),
    ("no report", "#000000", ((Told.NOTHING, True), (Told.NOTHING, False))),
)


def draw(told: Report, path: Path) -> None:
    """Draw, for each client, what is not simply canceled and told so."""
    storms = told.storms
    height = 1.2 + sum(0.7 + 0.3 * len(storm.results) for storm in storms)
    with drawing.sheet(
        path, told.question, size=(10, height), panels=len(storms)
    ) as panels:
        for axes, storm in zip(panels, storms, strict=True):
            _stack(axes, storm)
        panels[-1].set_xlabel(
            "of 10,000 cancels; what is missing is canceled, and was told so"
        )
        panels[-1].figure.legend(
            *panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2
        )


def _stack(axes: Any, storm: Weather) -> None:  # noqa: ANN401 - matplotlib's
    names = [found.client for found in storm.results]
    ends = [0.0] * len(names)
    for label, colour, parts in _STACK:
        widths = [_share(found, parts) for found in storm.results]
        axes.barh(names, widths, left=ends, color=colour, label=label)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, (found, end) in enumerate(zip(storm.results, ends, strict=True)):
        axes.text(end, place, f" {found.wrong_per_10000:.4g} wrong", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(f"{storm.rate} % of requests meet a fault", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _share(found: Result, parts: Sequence[tuple[Told, bool]]) -> float:
    count = 0
    for told, canceled in parts:
        split = found.told[told.value]
        count += split.canceled if canceled else split.not_canceled
    return count * 10_000 / found.calls
