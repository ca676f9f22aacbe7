"""Tables and lines of text that fit a terminal."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from async_refunds.protocol.redaction import escape_controls, mask_keys

from . import money

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_GAP = "  "
# Columns that a wrapped text needs beside the others; with less it gets lines of its
# own below them.
_NARROW = 30
_INDENT = "    "
# Left out where the terminal is too narrow for all; JSON and the journal have it.
_OPTIONAL = "idempotency_key"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose cells are aligned in columns, as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [_GAP.join(map(str.ljust, line, widths)).rstrip() for line in lines]


def counted(count: int, noun: str) -> str:
    """Return a number of things.

    >>> counted(1, "request"), counted(1200, "request")
    ('1 request', '1,200 requests')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Return the text without an API key, or anything that a terminal would obey."""
    if "k_" in text or "whsec_" in text:
        text = mask_keys(text)
    return escape_controls(text)


class Table:
    """Formats records as rows of a table on a terminal.

    Ids keep their length, since an id that is folded cannot be copied. The last column
    is text: it wraps at words.

    Args:
        columns: The keys of the records that are shown.
        width: Of the terminal, in characters.
    """

    def __init__(self, columns: Iterable[str], width: int) -> None:
        self._columns = list(columns)
        self._width = width
        self._widths: dict[str, int] = {}

    def lines(
        self, records: Sequence[Mapping[str, object]], *, head: bool
    ) -> list[str]:
        """Return the rows of some records, and the names of the columns above them."""
        rows = [[cell(record, name) for name in self._columns] for record in records]
        if head:
            rows.insert(0, [name.replace("_", " ") for name in self._columns])
        for row in rows:
            for name, text in zip(self._columns, row, strict=True):
                self._widths[name] = max(self._widths.get(name, 0), len(text))
        return [line for row in rows for line in self._row(row)]

    def _row(self, row: Sequence[str]) -> list[str]:
        *names, last = self._columns
        cells = dict(zip(self._columns, row, strict=True))
        needed = min(self._widths[last], _NARROW)
        if _OPTIONAL in names and self._left(names) < needed:
            names.remove(_OPTIONAL)
        start = _GAP.join(cells[name].ljust(self._widths[name]) for name in names)
        left, text = self._left(names), cells[last]
        if len(text) <= left or not text:
            return [f"{start}{_GAP}{text}".rstrip()]
        if left >= _NARROW:
            first, *more = _wrapped(text, left)
            indent = " " * (self._width - left)
            return [f"{start}{_GAP}{first}", *(f"{indent}{each}" for each in more)]
        below = _wrapped(text, max(self._width - len(_INDENT), _NARROW))
        return [start.rstrip(), *(f"{_INDENT}{each}" for each in below)]

    def _left(self, names: Sequence[str]) -> int:
        """Return the columns that are left for the last cell."""
        return self._width - sum(self._widths[name] + len(_GAP) for name in names)


def _wrapped(text: str, width: int) -> list[str]:
    """Return lines, none of which ends within a key or an id: those are copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def utc(seconds: float, form: str) -> str:
    """Return a Unix time by the form of ``strftime``; the number if no year has it.

    A server may send any number.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def cell(record: Mapping[str, object], column: str) -> str:
    """Return a value of a record as people write it."""
    value = record.get(column)
    if value is None:
        return ""
    if column == "created" and isinstance(value, int):
        return utc(value, "%Y-%m-%d %H:%MZ")
    if column == "amount" and isinstance(value, int):
        return money.in_major_units(value, str(record.get("currency")))
    text = printable(str(value))
    if column == "error":  # the row begins with the id
        return text.removeprefix(f"{record.get('refund_id')} ")
    return text
