"""The flags that every benchmark has, and how it tells what it found.

A script makes a `parser`, adds flags of its own, and has them `read` into its own kind
of `Flags`. What it found is its own kind of `Report`. Unless ``--json`` is given it
prints a `heading` and each `table` as soon as there is one; at the end it has the
report told by `finish`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.harness import Figure

PACKAGES = (
    "async-refunds",
    "aiohttp",
    "msgspec",
    "stripe",
    "httpx",
    "pydantic",
    "uvloop",
)


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What every benchmark can be asked for; a script's own flags go beside."""

    rounds: int
    """How many are kept; a round to warm up is not counted."""
    json: bool
    """One object on stdout, and nothing else there."""
    plot: Path | None
    """Where to draw, ``.svg`` or ``.png``."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What every benchmark tells; a script's own findings go beside."""

    question: str
    versions: dict[str, str]
    rounds: int
    headlines: dict[str, float]
    """The answer in a few figures, by what each is: the summary of
    ``python -m benchmarks`` holds them against the targets by these names."""


Parts: TypeAlias = dict[str, dict[str, float]]
"""What each part of a benchmark found, by the name of the figure."""


class PartsReport(Report, frozen=True, kw_only=True):
    """What a benchmark of several parts tells."""

    parts: Parts


F = TypeVar("F", bound=Flags)


def parser(question: str, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the flags that all have in common.

    Args:
        question: What the benchmark answers, in a line.
        rounds: So many unless the command line says otherwise.
    """
    made = argparse.ArgumentParser(description=question)
    made.add_argument(
        "--rounds", type=count, default=rounds, help="kept ones; default: %(default)s"
    )
    made.add_argument("--json", action="store_true", help="one object on stdout")
    made.add_argument("--plot", type=Path, metavar="FILE", help=".svg or .png")
    return made


def add_parts(
    parser: argparse.ArgumentParser,
    names: Iterable[str],
    *,
    flag: str = "--parts",
    more: str = "",
) -> None:
    """Add a flag that asks for some parts of the benchmark; all, if it is not given.

    Args:
        parser: Of `parser`.
        names: Of the parts.
        flag: Its name.
        more: What else its help says.
    """
    names = tuple(names)
    by_commas = f"by commas; default: {','.join(names)}{more}"
    parser.add_argument(flag, type=some_of(names), default=names, help=by_commas)


def add_counts(parser: argparse.ArgumentParser, *counts: tuple[str, int, str]) -> None:
    """Add flags that are whole numbers from 1 up.

    Args:
        parser: Of `parser`.
        counts: Of each flag the name, the default, and what it counts.
    """
    for name, default, words in counts:
        parser.add_argument(name, type=count, default=default, help=words)


def read(parser: argparse.ArgumentParser, kind: type[F]) -> F:
    """Read the command line; a wrong one ends the program with a message.

    Args:
        parser: Of `parser`, with a flag for each further field of ``kind``.
        kind: What to return.
    """
    flags = kind(**vars(parser.parse_args()))
    if flags.plot is not None:
        # Said now, and not after minutes of measuring.
        if flags.plot.suffix not in (".svg", ".png"):
            parser.error("--plot takes a file that ends in .svg or .png")
        require(parser, "matplotlib", "--plot")
    return flags


def require(parser: argparse.ArgumentParser, package: str, flag: str) -> None:
    """End the program with a message if what a flag needs is not installed."""
    if importlib.util.find_spec(package) is None:
        parser.error(f"{flag} needs {package}: python -m pip install {package}")


def count(text: str) -> int:
    """Read a flag that is a whole number from 1 up."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Read a flag that is several such numbers, by commas."""
    return tuple(count(part) for part in text.split(","))


def some_of(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return what reads a flag that is some of these names, by commas."""

    def named(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := set(found) - set(names):
            raise argparse.ArgumentTypeError(
                f"no {min(unknown)!r}: there are {', '.join(names)}"
            )
        return found

    return named


def versions() -> dict[str, str]:
    """Return the versions of everything that bears on the figures."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def heading(question: str, how: str) -> str:
    """Return what is about to be measured, with what, and how."""
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join((question, named, how))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: names to the left, figures to the right."""
    cells = [head, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def shown(value: Figure, digits: int, scale: float = 1.0) -> str:
    """Return a median with half the distance of its quartiles."""
    return f"{value.median * scale:.{digits}f} ±{value.iqr * scale / 2:.{digits}f}"


def say(line: str) -> None:
    """Tell people how far it is: stdout is for the figures."""
    print(line, file=sys.stderr, flush=True)


def finish(flags: Flags, report: Report, draw: Callable[[Path], None]) -> None:
    """Print the report as JSON and draw it, each if asked for."""
    if flags.json:
        print(msgspec.json.encode(report).decode(), flush=True)
    if flags.plot is not None:
        draw(flags.plot)
        say(f"drawn: {flags.plot}")


def tell_parts(
    flags: Flags,
    question: str,
    how: str,
    measured: Iterable[tuple[str, dict[str, float]]],
    draw: Callable[[Parts, Path], None],
) -> None:
    """Print what each part found as soon as it has; at the end finish the report.

    Args:
        flags: What was asked for.
        question: What the benchmark answers, in a line.
        how: How it is measured, in a line.
        measured: Gives the name of each part and what it found. One that comes twice
            adds to what it found before.
        draw: Draws all of that.
    """
    if not flags.json:
        print(heading(question, how), flush=True)
    found: Parts = {}
    for part, figures in measured:
        found[part] = found.get(part, {}) | figures
        if not flags.json:
            lines = (f"{value:12.2f}  {what}" for what, value in figures.items())
            print("\n".join(("", part, *lines)), flush=True)
    headlines = {
        f"{part}: {what}": value
        for part, figures in found.items()
        for what, value in figures.items()
    }
    whole = PartsReport(
        question=question,
        versions=versions(),
        rounds=flags.rounds,
        headlines=headlines,
        parts=found,
    )
    finish(flags, whole, lambda path: draw(found, path))
