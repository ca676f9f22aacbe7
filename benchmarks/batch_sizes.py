"""What runs of different lengths take: the end of the part ``journal``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks import batch_child, drawing
from benchmarks.canned import canned_server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ACCOUNTS = 5000
"""Of the largest run: those of a large platform."""


class Size(msgspec.Struct, frozen=True):
    """A run of so many items, with a journal."""

    items: int
    cpu: float
    """Microseconds an item."""
    memory: float
    """The peak, in MB."""


def size(run: batch_child.Measured, items: int) -> Size:
    """Return what a run of so many items took."""
    return Size(items, run.cpu / items * 1e6, run.memory / 1e6)


def sizes(most: int, folder: Path) -> tuple[Size, Size]:
    """Return what a short run over one account takes, and the largest one."""
    found: list[Size] = []
    with canned_server() as base_url:
        for name, items, accounts in (
            ("few", min(1000, most), 1),
            ("most", most, ACCOUNTS),
        ):
            path = folder / f"size-{name}.sqlite3"
            run = batch_child.measured(base_url, path, items, accounts)
            found.append(size(run, items))
    few, many = found
    return few, many


def figures(few: Size, many: Size) -> dict[str, float]:
    """Return the figures of the part."""
    return {
        f"MB, {few.items} items": few.memory,
        f"MB, {many.items} items of {ACCOUNTS} accounts": many.memory,
        "MB between them": many.memory - few.memory,
        f"µs CPU an item, {many.items} items of {ACCOUNTS} accounts": many.cpu,
    }


def draw(found: Sequence[Size], axes: Any) -> None:  # noqa: ANN401 - see `drawing.bars`
    """Draw what an item costs in each run."""
    found = sorted(found, key=lambda each: each.items)
    names = [f"{each.items:,} items" for each in found]
    costs = [each.cpu for each in found]
    labels = [f"{each.cpu:.0f} µs, {each.memory:.0f} MB" for each in found]
    drawing.bars(axes, names, costs, labels, ours="")
    axes.set_xlabel("µs of CPU an item with a journal, and the peak of memory")
