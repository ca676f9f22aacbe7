"""``report --html``: a run as one page, for a browser or a printer.

The page loads nothing, and nothing but its own script and styles can run in it. What
needs attention comes first. The table of all refunds is data in the page, which the
script shows a part at a time (`report_page.js`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import msgspec

from async_refunds.results import CANCELED

from .money import in_major_units
from .report_chart import over_time
from .report_data import Sums
from .tables import counted, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from async_refunds.journal import Record

    from .report_data import RunReport


ASSETS = "async_refunds.cli"
_IDS = ("Refund", "Account")
# Rows of each outcome that needs attention; the table has all of them.
_ATTENTION = 8


class Column(msgspec.Struct, frozen=True):
    """A column of the table of all refunds."""

    name: str
    title: str
    kind: str
    """The class of its cells: how the page aligns and shows them."""
    value: Callable[[Record], str | float | None]


def _amount(record: Record) -> str | None:
    if record.amount is None:
        return None
    return in_major_units(record.amount, record.currency or "")


def _currency(record: Record) -> str | None:
    return record.currency and printable(record.currency.upper())


def _payment(record: Record) -> str | None:
    ids = (record.payment_intent, record.charge)
    return " ".join(printable(each) for each in ids if each) or None


def _details(record: Record) -> str | None:
    """Return the error, and the status where the outcome leaves it open."""
    # The row begins with the id.
    error = (record.error or "").removeprefix(f"{record.refund_id} ")
    status = record.status or ""
    if record.outcome in CANCELED or status in error:
        return printable(error) or None
    return printable("; ".join(filter(None, [error, f"it is {status}"])))


def _printable(text: str | None) -> str | None:
    return text and printable(text)


COLUMNS: tuple[Column, ...] = (
    Column("refund", "Refund", "id", lambda each: each.refund_id),
    Column("account", "Account", "id", lambda each: each.stripe_account),
    Column("outcome", "Outcome", "word", lambda each: each.outcome or "open"),
    Column("amount", "Amount", "n", _amount),
    Column("currency", "Currency", "", _currency),
    Column("created", "Created (UTC)", "time", lambda each: each.created),
    Column("known_at", "Result (UTC)", "time", lambda each: each.known_at),
    Column(
        "transaction",
        "Balance transaction",
        "refs",
        lambda each: _printable(each.failure_balance_transaction),
    ),
    Column("payment", "Payment", "refs", _payment),
    Column("details", "Details", "text", _details),
)
"""A time is in Unix seconds: the browser writes it out for the rows that it shows."""


_COMMAND = re.compile("`(.*)`")


def html_page(report: RunReport, records: Iterable[Record]) -> Iterator[str]:
    """Yield the page, a part at a time.

    Args:
        report: What the run came to.
        records: Its refunds. They are read once and kept, a hundred thousand of them in
            some 100 MB.
    """
    known = list(records)
    accounts = any(each.stripe_account is not None for each in known)
    columns = [each for each in COLUMNS if accounts or each.name != "account"]
    style, script = _asset("report_page.css"), _asset("report_page.js")
    title = f"Refunds of {report.name}"
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # No network, and no other script, whatever a text of Stripe's may hold.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{_text(title)}</h1>{_facts(report)}{_verdict(report)}</header>"
    )
    yield "<main>"
    yield _attention(report, known)
    yield f"<h2>What came back</h2>{_money(report)}"
    yield f"<h2>Outcomes</h2>{_outcomes(report)}"
    yield f"<h2>Over time</h2>{over_time(known)}"
    yield _empty_table(report, columns)
    yield '</main><script id="data" type="application/json">'
    yield _data(columns, known)
    yield f"</script><script>{script}</script></body></html>\n"


def _facts(report: RunReport) -> str:
    mode = "live mode" if report.run.livemode else "test mode: no real money"
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return (
        f'<p><span class="mode">{mode}</span></p>'
        + "".join(f"<p>{_text(line)}</p>" for line in report.facts())
        + f'<p class="note">As of {now} UTC.</p>'
    )


def _verdict(report: RunReport) -> str:
    if not report.outcomes.total():
        return '<p class="verdict failed">There are no refunds.</p>'
    total, canceled = report.outcomes.total(), report.canceled
    earlier = report.outcomes["already_canceled"]
    before = f", {earlier:,} of them before this run asked" if earlier else ""
    if canceled == total:
        kind, text = "good", f"All {total:,} are canceled{before}."
    else:
        kind, text = "failed", f"{canceled:,} of {total:,} are canceled{before}."
    if unknown := report.outcomes["unknown"]:
        kind = "unknown"
        text += f" {unknown:,} may be canceled or not."
    sums = report.sums
    money = [
        f"{title}: {each.line()}."
        for title, each in (
            ("Came back", sums.came_back),
            ("Canceled before", sums.before),
        )
        if each.counts
    ]
    return f'<p class="verdict {kind}">{text} <span>{_text(" ".join(money))}</span></p>'


def _attention(report: RunReport, records: Iterable[Record]) -> str:
    """Return what needs attention, what may have gone wrong first, and the next step.

    While the run goes on, what it has not come to yet does not.
    """
    groups: dict[str | None, list[Record]] = {"unknown": [], "failed": []}
    groups["not_cancelable"] = []
    if not report.going_on:
        groups[None] = []
    for record in records:
        if record.outcome in groups and not report.is_in_flight(record):
            groups[record.outcome].append(record)
    steps = report.steps
    shown = "".join(
        _group(report, outcome or "open", group, steps[outcome])
        for outcome, group in groups.items()
        if group
    )
    return f"<h2>Needs attention</h2>{shown or '<p>Nothing does.</p>'}"


def _group(
    report: RunReport, outcome: str, records: Sequence[Record], step: str
) -> str:
    sums = Sums(records).line()
    at_stake = f'<p class="note">Sum: {_text(sums)}</p>' if sums else ""
    rows = [
        [
            each.refund_id,
            each.stripe_account or "",
            _amount(each) or "",
            _currency(each) or "",
            _details(each) or "",
        ]
        for each in records[:_ATTENTION]
    ]
    more = len(records) - len(rows)
    note = f'<span class="note">And {more:,} more.</span> ' if more else ""
    head = ("Refund", "Account", "Amount", "Currency", "Details")
    return (
        f'<section class="group {outcome}">'
        f'<h3 class="{outcome}">{len(records):,} {outcome}</h3>'
        f"<p>{_step(step[:1].upper() + step[1:])}</p>{at_stake}"
        + _table("lines", head, rows, numbers={2})
        + f'<p>{note}<button class="screen" data-outcome="{outcome}">'
        "Show in the table</button></p></section>"
    )


def _money(report: RunReport) -> str:
    """Return what came back, and below it what was canceled before."""
    outcomes, sums = report.outcomes, report.sums
    before = ""
    if earlier := outcomes["already_canceled"]:
        note = "Not by this run, which found them canceled; not in the sums above."
        boxes = _boxes(sums.before, earlier, note)
        before = f'<h3 class="before">Canceled before</h3>{boxes}'
    if not (outcomes["canceled"] or earlier):
        return "<p>No amount is known.</p>"
    note = "To the balance; the customers are not repaid by it."
    boxes = "<p>Nothing: this run canceled none.</p>"
    if outcomes["canceled"]:
        boxes = _boxes(sums.came_back, outcomes["canceled"], note)
    by_account = ""
    if len(report.sums_by_account) > 1:
        rows = [
            [account or "the key's own", currency, f"{count:,}", amount]
            for account, sums in report.sums_by_account.items()
            for currency, count, amount in sums.rows()
        ]
        head = ("Account", "Currency", "Refunds", "Sum")
        by_account = _table("short", head, rows, numbers={2, 3})
    return f"{boxes}{by_account}{before}"


def _boxes(sums: Sums, refunds: int, note: str) -> str:
    """Return the sum of each currency, for so many refunds."""
    if not sums.counts:
        return "<p>No amount is known.</p>"
    boxes = "".join(
        f"<div><dt>{_text(currency)}, {counted(count, 'refund')}</dt>"
        f"<dd>{amount}</dd></div>"
        for currency, count, amount in sums.rows()
    )
    unknown = refunds - sums.counts.total()
    more = f" The amounts of {unknown:,} more are not known." if unknown else ""
    return f'<dl class="sums">{boxes}</dl><p class="note">{note}{more}</p>'


def _outcomes(report: RunReport) -> str:
    steps = report.steps
    rows = [(name, count) for name in steps if (count := report.outcomes[name])]
    lines = "".join(
        f'<tr><td class="word {name or "open"}">{name or "open"}</td>'
        f'<td class="n">{count:,}</td><td>{_step(steps[name])}</td></tr>'
        for name, count in rows
    )
    return (
        '<table class="short"><thead><tr><th scope="col">Outcome</th>'
        '<th scope="col" class="n">Refunds</th><th scope="col">What to do</th></tr>'
        f"</thead><tbody>{lines}</tbody></table>"
    )


def _step(step: str) -> str:
    """Return what to do, with a command in it set as code."""
    return _COMMAND.sub(r"<code>\1</code>", _text(step))


def _empty_table(report: RunReport, columns: Iterable[Column]) -> str:
    """Return the table of all refunds, which the script fills."""
    counts = {name or "open": report.outcomes[name] for name in report.outcomes}
    options = "".join(
        f'<option value="{name}">{name} ({count:,})</option>'
        for name, count in sorted(counts.items())
    )
    heads = "".join(
        f'<th scope="col" class="{each.kind}" data-name="{each.title}" '
        'aria-sort="none">'
        f'<button type="button">{each.title}</button></th>'
        for each in columns
    )
    return (
        '<section class="all"><h2>All refunds</h2>'
        '<noscript><p class="note">This table needs JavaScript.</p></noscript>'
        '<div class="tools screen">'
        '<input id="search" type="search" aria-label="Search" '
        'placeholder="Search: id, account, amount, date, words of an error">'
        '<select id="outcome" aria-label="Outcome"><option value="">all outcomes'
        f'</option><option value="attention">needs attention</option>{options}</select>'
        '<button id="back" type="button">Back</button>'
        '<button id="next" type="button">Next</button></div>'
        '<p class="note"><span id="where" role="status"></span> '
        '<span id="paper"></span></p><p id="sums"></p>'
        f'<div class="wide"><table id="all"><thead><tr>{heads}</tr></thead>'
        "<tbody></tbody></table></div></section>"
    )


def _data(columns: Sequence[Column], records: Iterable[Record]) -> str:
    described = [
        {"name": each.name, "title": each.title, "kind": each.kind} for each in columns
    ]
    values = [each.value for each in columns]
    rows = [[value(record) for value in values] for record in records]
    data = msgspec.json.encode({"columns": described, "rows": rows}).decode()
    # No "</script>" can end it, and no "<!--" can change what ends it.
    return data.replace("<", "\\u003c")


def _table(
    kind: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: set[int]
) -> str:
    """Return a table without the columns that have nothing to say."""
    known = list(rows)
    used = [place for place in range(len(head)) if any(row[place] for row in known)]
    classes = [
        ' class="n"' if place in numbers else ' class="id"' if name in _IDS else ""
        for place, name in enumerate(head)
    ]
    heads = "".join(
        f'<th scope="col"{classes[place]}>{head[place]}</th>' for place in used
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td{classes[place]} data-name="{head[place]}">{_text(row[place])}</td>'
            for place in used
        )
        + "</tr>"
        for row in known
    )
    return (
        f'<table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


@cache
def _asset(name: str) -> str:
    return resources.files(ASSETS).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    """Return the hash by which a policy allows a script or a style of the page.

    https://www.w3.org/TR/CSP3/#match-element-to-source-list
    """
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _text(text: str) -> str:
    return html.escape(printable(text))
