"""What the plots of the benchmarks have in common.

matplotlib is imported by name and late: its objects on the heap would make each garbage
collection longer, so a script draws when everything is measured.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

OURS, OTHER, BAD, LINE = "#1f77b4", "#b0b0b0", "#ff7f0e", "black"
"""Of what is this project's, of all others, of what was refused, and of a limit."""


@contextlib.contextmanager
def sheet(
    path: Path, title: str, *, size: tuple[float, float], panels: int = 1
) -> Generator[list[Any], None, None]:
    """Give the axes of so many panels, one above the other, and write them at the end.

    Args:
        path: ``.svg`` or ``.png``.
        title: Above all panels.
        size: Width and height in inches.
        panels: How many.
    """
    matplotlib = importlib.import_module("matplotlib")
    figures = importlib.import_module("matplotlib.figure")
    # Text stays text, so the file is small and can be searched; the same figures make
    # the same file.
    settings = {"svg.fonttype": "none", "svg.hashsalt": title}
    with matplotlib.rc_context(settings):
        drawn = figures.Figure(figsize=size, layout="constrained")
        drawn.suptitle(title)
        yield list(drawn.subplots(panels, squeeze=False)[:, 0])
        drawn.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def bars(
    axes: Any,  # noqa: ANN401 - matplotlib's types are only half known
    names: Sequence[str],
    lengths: Sequence[float],
    labels: Sequence[str],
    *,
    spreads: Sequence[float] | None = None,
    log: bool = False,
    ours: str = "async_refunds",
) -> None:
    """Draw a bar for each name, the first on top, with a label at its end.

    Args:
        axes: The panel.
        names: One for each bar.
        lengths: In the unit of the axis.
        labels: What is written at the end of each bar.
        spreads: Half the distance of the quartiles of each.
        log: For lengths of several orders of magnitude.
        ours: The names that begin so are drawn in the colour of this project.
    """
    drawn = axes.barh(
        names,
        lengths,
        xerr=spreads,
        log=log,
        color=[OURS if name.startswith(ours) else OTHER for name in names],
    )
    axes.invert_yaxis()
    axes.bar_label(drawn, [f" {label}" for label in labels])
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)
