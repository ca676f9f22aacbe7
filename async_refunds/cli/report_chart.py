"""A picture of a run over time, as SVG in a page."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

from async_refunds.results import CANCELED

from .tables import utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from async_refunds.journal import Record

_BARS = 60
_WIDTH, _HEIGHT = 720, 110
_LEFT = 44  # for the figure at the top of the axis
_WIDE = (_WIDTH - _LEFT) / _BARS


def over_time(records: Iterable[Record]) -> str:
    """Return the results over time, and below them the requests beyond the first.

    A journal has the time of the last result of each refund, and how many requests it
    took: every retry, after a 429 or another failure, and every settling read.
    """
    known = [
        (each.known_at, each.outcome in CANCELED, max(each.attempts - 1, 0))
        for each in records
        if each.known_at is not None
    ]
    if not known:
        return "<p>There is no result yet.</p>"
    first = min(known_at for known_at, _, _ in known)
    last = max(known_at for known_at, _, _ in known)
    # No shorter than a second: a rate over less says little.
    step = max((last - first) / _BARS, 1.0)
    good, bad, more = Counter[int](), Counter[int](), Counter[int]()
    for known_at, canceled, requests in known:
        place = min(int((known_at - first) / step), _BARS - 1)
        (good if canceled else bad)[place] += 1
        more[place] += requests
    busiest = max((good + bad).values()) / step
    span = _seconds(step)
    results = _chart(first, last, step, ("good", good), ("bad", bad))
    text = (
        f'<figure><figcaption class="note">Results in each {span}: '
        '<span class="key">canceled</span><span class="key bad">not canceled, or '
        f"not known</span>. At most {busiest:,.1f} a second.</figcaption>{results}"
    )
    if not more.total():
        return f"{text}</figure>"
    return (
        f'{text}</figure><figure><figcaption class="note">Requests beyond the first '
        f"in each {span} (after a 429 or another failure, or to read the refund): "
        f"{more.total():,} in all.</figcaption>"
        f"{_chart(first, last, step, ('bad', more))}</figure>"
    )


def _chart(
    first: float, last: float, step: float, *series: tuple[str, Mapping[int, int]]
) -> str:
    """Return bars over time, those of one series upon those of the one before."""
    heights = [sum(counts[place] for _, counts in series) for place in range(_BARS)]
    most = max(heights)
    # A run of a moment is one bar at the left, and has no time at the right.
    end = "" if last - first < step else _clock(last)
    shapes: list[str] = []
    for place in range(_BARS):
        top = float(_HEIGHT)
        for name, counts in series:
            height = _HEIGHT * counts[place] / most
            top -= height
            if height:
                shapes.append(
                    f'<rect class="{name}" x="{_LEFT + place * _WIDE:.1f}" '
                    f'y="{top + 6:.1f}" width="{_WIDE - 1:.1f}" height="{height:.1f}"/>'
                )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT + 24}" role="img" '
        f'aria-label="At most {most:,}"><path class="axis" d="M{_LEFT} '
        f'{_HEIGHT + 6.5}H{_WIDTH}M{_LEFT} 6.5h-4"/><text x="{_LEFT - 7}" y="11" '
        f'text-anchor="end">{most:,}</text>{"".join(shapes)}'
        f'<text x="{_LEFT}" y="{_HEIGHT + 20}">{_clock(first)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 20}" text-anchor="end">{end}</text></svg>'
    )


def _seconds(step: float) -> str:
    if step < 60:  # noqa: PLR2004 - a minute
        return f"{step:.1f} s".replace(".0 s", " s")
    return str(timedelta(seconds=round(step)))


def _clock(seconds: float) -> str:
    return utc(seconds, "%Y-%m-%d %H:%M:%S UTC")
