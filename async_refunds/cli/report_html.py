"""``report --html``: a run as one page, for a browser or a printer.

The page loads nothing. Its data is JSON inside of it, and its script shows a part of it
at a time: a hundred thousand rows as elements would take a browser minutes.
"""

from __future__ import annotations

import html
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.results import CANCELED

from .money import in_major_units
from .summary import next_steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from async_refunds.journal import Record

    from .report_data import RunReport

COLUMNS = (
    *("refund", "account", "outcome", "status", "amount", "currency"),
    *("created", "known at", "error"),
)

_ATTENTION = 200
_BARS = 60
_WIDTH, _HEIGHT = 720, 120

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7dbd; --bad: #c0504d; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.id { font-family: ui-monospace, monospace; }
#all th { cursor: pointer; }
input { font: inherit; padding: .3rem; width: 22rem; max-width: 100%; }
svg { width: 100%; height: auto; } svg .good { fill: var(--bar); }
svg .bad { fill: var(--bad); }
svg text { fill: CanvasText; font-size: 11px; }
.note { opacity: .75; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; }
  .screen { display: none; } tr { break-inside: avoid; } }
"""

_SCRIPT = """
"use strict";
const rows = JSON.parse(document.getElementById("data").textContent);
const body = document.querySelector("#all tbody");
const PAGE = 100;
const texts = [];
let order = rows.map((_, place) => place), found = order, page = 0, by = -1, up = true;
const text = (place) => texts[place] ??= rows[place].join(" ").toLowerCase();
function show() {
  const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  page = Math.min(page, last);
  body.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((place) => {
    const line = document.createElement("tr");
    rows[place].forEach((value, column) => {
      const cell = line.insertCell();
      cell.textContent = value ?? "";
      cell.className = column === 0 ? "id" : column === 4 ? "n" : "";
    });
    return line;
  }));
  document.getElementById("where").textContent = found.length
    ? `${page * PAGE + 1} to ${Math.min((page + 1) * PAGE, found.length)} of ` +
      `${found.length}` : "none";
}
function search() {
  const words = document.getElementById("search").value.toLowerCase().split(/\\s+/);
  found = order.filter((place) => words.every((word) => text(place).includes(word)));
  page = 0;
  show();
}
function sort(column) {
  up = by === column ? !up : true;
  by = column;
  const key = (place) => {
    const value = rows[place][column] ?? "";
    return column === 4 ? Number(String(value).replaceAll(",", "")) : value;
  };
  const keys = rows.map((_, place) => key(place));
  order = order.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0));
  if (!up) order.reverse();
  search();
}
document.getElementById("search").addEventListener("input", search);
document.getElementById("back").addEventListener("click", () => {
  page = Math.max(0, page - 1); show();
});
document.getElementById("next").addEventListener("click", () => { page += 1; show(); });
document.querySelectorAll("#all th").forEach((cell, column) =>
  cell.addEventListener("click", () => sort(column)));
show();
"""


def html_page(report: RunReport, records: Iterable[Record]) -> Iterator[str]:
    """Yield the page, a part at a time.

    Args:
        report: What the run came to.
        records: Its refunds. They are read once and kept, a hundred thousand of them in
            some 100 MB.
    """
    known = list(records)
    title = f"Refunds of {report.name}"
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # No network, whatever a text of Stripe's may hold.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1>"
    )
    yield "".join(f"<p>{_text(line)}</p>" for line in report.facts())
    yield "<h2>What came back</h2>"
    yield _money(report)
    yield "<h2>Outcomes</h2>"
    yield _outcomes(report)
    yield "<h2>Pace</h2>"
    yield _pace(known)
    yield "<h2>Needs attention</h2>"
    yield _attention(report, known)
    yield (
        '<section class="screen"><h2>All refunds</h2>'
        '<p><input id="search" type="search" placeholder="Search" '
        'aria-label="Search"> <button id="back">Back</button> '
        '<button id="next">Next</button> <span id="where"></span></p>'
        '<table id="all"><thead><tr>'
    )
    yield "".join(f"<th>{name}</th>" for name in COLUMNS)
    yield "</tr></thead><tbody></tbody></table></section>"
    yield '<script id="data" type="application/json">'
    # No "</script>" can end it, and no "<!--" can change what ends it.
    yield msgspec.json.encode(list(map(_row, known))).decode().replace("<", "\\u003c")
    yield f"</script><script>{_SCRIPT}</script></body></html>\n"


def _row(record: Record) -> list[str | None]:
    return [
        record.refund_id,
        record.stripe_account,
        record.outcome,
        record.status,
        None
        if record.amount is None
        else in_major_units(record.amount, record.currency or ""),
        record.currency,
        None if record.created is None else _when(record.created),
        None if record.known_at is None else _when(record.known_at),
        record.error,
    ]


def _money(report: RunReport) -> str:
    if not report.sums:
        return "<p>No amount is known.</p>"
    rows = [
        [currency, f"{report.counts[currency]:,}", in_major_units(amount, currency)]
        for currency, amount in sorted(report.sums.items())
    ]
    unknown = report.canceled - report.counts.total()
    note = (
        f'<p class="note">The amounts of {unknown:,} more are not known.</p>'
        if unknown
        else ""
    )
    return (
        _table(("currency", "refunds", "sum"), rows, numbers=(1, 2))
        + '<p class="note">To the balance; the customers are not repaid by it.</p>'
        + note
    )


def _outcomes(report: RunReport) -> str:
    steps = next_steps(report.outcomes, report.resume)
    rows = [
        [name or "open", f"{report.outcomes[name]:,}", steps[name]]
        for name in steps
        if report.outcomes[name]
    ]
    return _table(("outcome", "refunds", "what to do"), rows, numbers=(1,))


def _attention(report: RunReport, records: Iterable[Record]) -> str:
    """Return the refunds that need attention, what may have gone wrong first."""
    steps = next_steps(report.outcomes, report.resume)
    order = ["unknown", "failed", "not_cancelable"]
    wanted = sorted(
        (
            record
            for record in records
            if record.outcome in order and not report.is_in_flight(record)
        ),
        key=lambda record: order.index(record.outcome or ""),
    )
    if not wanted:
        return "<p>Nothing does.</p>"
    rows = [
        [
            record.refund_id,
            record.stripe_account or "",
            record.outcome or "",
            record.error or "",
            steps[record.outcome],
        ]
        for record in wanted[:_ATTENTION]
    ]
    more = len(wanted) - len(rows)
    note = f'<p class="note">And {more:,} more.</p>' if more else ""
    head = ("refund", "account", "outcome", "error", "what to do")
    return _table(head, rows, numbers=()) + note


def _pace(records: Iterable[Record]) -> str:
    """Return a picture of the results over time: canceled below, the others above."""
    times = [
        (each.known_at, each.outcome in CANCELED)
        for each in records
        if each.known_at is not None
    ]
    if not times:
        return "<p>There is no result yet.</p>"
    first = min(known_at for known_at, _ in times)
    last = max(known_at for known_at, _ in times)
    step = max((last - first) / _BARS, 1.0)
    bars: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for known_at, good in times:
        bars[good][min(int((known_at - first) / step), _BARS - 1)] += 1
    most = max(bars[True][place] + bars[False][place] for place in range(_BARS))
    shapes = "".join(_bar(place, bars, most) for place in range(_BARS))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" role="img" '
        f'aria-label="Results over time">{shapes}'
        f'<text x="0" y="{_HEIGHT + 15}">{_when(first)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 15}" text-anchor="end">{_when(last)}</text>'
        f'</svg><p class="note">At most {most / step:,.1f} results per second; '
        f"each bar is {timedelta(seconds=round(step))}.</p>"
    )


def _bar(place: int, bars: Mapping[bool, Mapping[int, int]], most: int) -> str:
    width = _WIDTH / _BARS
    shapes, top = "", float(_HEIGHT)
    for good, name in ((True, "good"), (False, "bad")):
        height = _HEIGHT * bars[good][place] / most
        top -= height
        if height:
            shapes += (
                f'<rect class="{name}" x="{place * width:.1f}" y="{top:.1f}" '
                f'width="{width - 1:.1f}" height="{height:.1f}"/>'
            )
    return shapes


def _table(head: Iterable[str], rows: Iterable[list[str]], *, numbers: Any) -> str:  # noqa: ANN401 - places of columns
    def cells(tag: str, row: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in numbers else ''}>{_text(each)}</{tag}>"
            for place, each in enumerate(row)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead>{lines}</table>"


def _text(text: str) -> str:
    return html.escape("".join(each for each in text if each.isprintable()))


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
