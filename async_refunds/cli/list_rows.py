"""Read a list of refunds that has rows: CSV, a table of psql or mysql, an id per line.

The first line that is not empty, a comment or a ruler decides. If it names a column of
refund ids, it is a header, and each row below is read by its columns. Otherwise every
row is searched for ids of refunds and of accounts.
"""

from __future__ import annotations

import csv
import re
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from async_refunds.protocol import validation
from async_refunds.protocol.redaction import scrub
from async_refunds.results import CancelRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BadLine: TypeAlias = "tuple[int, str]"
"""The number of a line that is not a refund, and the reason."""

# Characters of a line that a message shows.
_SHOWN = 80

# Names of columns and of JSON keys, in lower case and without punctuation. If a file
# has several of them, the one that comes first in this list is read.
ID_NAMES = ("refundid", "striperefundid", "refund", "refundids", "refunds", "id", "ids")
ACCOUNT_NAMES = (
    *("stripeaccount", "stripeaccountid", "connectedaccount", "connectedaccountid"),
    *("account", "accountid", "acct", "acctid"),
)
_ACCOUNT_LIKE = ("account", "acct")

_DELIMITERS = ",;\t|"  # spreadsheets in half of Europe write the second
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # Excel's own
_RULE = re.compile(r"[-+=|:\s]+")  # of a console's table
_FOOTER = re.compile(r"\(\d+ rows?\)|\d+ rows? in set.*")  # psql's and MySQL's
_FORMULA = re.compile(r'="(.*)"')  # a spreadsheet then takes a cell for text
# What people put around an id.
_AROUND = "\u00a0\u200b\u200e\u200f\u2060 \t\r\n'\"`\u2018\u2019\u201c\u201d,;"


class UnreadableError(Exception):
    """Says why a list cannot be read at all."""


def entries_of_rows(lines: Iterable[str]) -> Iterator[CancelRequest | BadLine]:
    """Yield a `CancelRequest` for each refund, a `BadLine` for each line without one.

    Raises:
        UnreadableError: There is no column of refund ids, or there is a column that may
            name accounts and is not understood.
    """
    lines, delimiter = iter(lines), None
    for before, line in enumerate(lines, 1):
        if found := _SEPARATOR_LINE.fullmatch(line.strip()):
            delimiter = found[1]
        elif not _is_filler(line) or _is_header(line):
            columns = _columns(line, delimiter or _DELIMITERS)
            # The header is not read again; a first line without one is.
            if columns.head is not None:
                return _rows(columns, before, lines)
            return _rows(columns, before - 1, chain([line], lines))
    raise UnreadableError("is empty")


class _Columns(msgspec.Struct, frozen=True):
    """Which column of a row has what."""

    delimiter: str
    head: list[str] | None = None
    """The header; None: there is none, and each cell says what it is."""
    refund: int = -1
    account: int = -1
    """-1: nowhere."""


def _is_header(line: str) -> bool:
    """Tell whether a line names several columns, though it begins with a ``#``."""
    for delimiter in _DELIMITERS:
        names = [plain_name(each) for each in _split(line, delimiter)]
        if len(names) > 1 and _find(names, ID_NAMES) >= 0:
            return True
    return False


def _columns(line: str, delimiters: str) -> _Columns:
    """Tell a header from a first row."""
    for delimiter in delimiters:
        cells = _split(line, delimiter)
        names = [plain_name(each) for each in cells]
        place = _find(names, ID_NAMES)
        if place >= 0:
            return _Columns(delimiter, cells, place, _account_column(cells, names))
    candidates = [(each, _split(line, each)) for each in delimiters]
    delimiter, cells = max(candidates, key=lambda each: len(each[1]))
    if any(map(_is_refund_id, cells)):
        return _Columns(delimiter)
    if len(cells) > 1 or '"' in line:
        raise UnreadableError(
            "has no column refund_id or id: its first line is "
            f"{scrub(ascii(line.strip()))[:_SHOWN]}"
        )
    return _Columns(delimiter)


def _account_column(cells: list[str], names: list[str]) -> int:
    """Return the column of accounts.

    Raises:
        UnreadableError: A column that may name accounts, and is not understood.
    """
    place = _find(names, ACCOUNT_NAMES)
    for other, name in enumerate(names):
        if other != place and looks_like_account(name):
            raise UnreadableError(
                f"has a column {_shown(cells[other])} that may name accounts: name the "
                "column of connected accounts stripe_account, and remove others"
            )
    return place


def _rows(
    columns: _Columns, before: int, lines: Iterator[str]
) -> Iterator[CancelRequest | BadLine]:
    # Strict: otherwise an open quote would swallow the rest of the list.
    rows = csv.reader(
        lines, delimiter=columns.delimiter, strict=True, skipinitialspace=True
    )
    while True:
        number = before + rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            last = before + rows.line_num
            if last != number:
                raise UnreadableError(
                    f"has a quote in line {number} that is not closed as it should be "
                    f"until line {last} ({error})"
                ) from error
            yield number, f"is not a line of a CSV file ({error})"
            continue
        if row is None:
            return
        cells = [clean(each) for each in row]
        filler = not any(cells) or _is_filler(columns.delimiter.join(row))
        if filler and not any(map(_is_refund_id, cells)):
            continue
        if columns.head is None:
            yield from _row_without_head(number, cells)
        elif row != columns.head and cells != [clean(each) for each in columns.head]:
            yield _row(number, cells, columns)


def _row(number: int, cells: list[str], columns: _Columns) -> CancelRequest | BadLine:
    cells += [""] * (max(columns.refund, columns.account) + 1 - len(cells))
    for place, text in enumerate(cells):
        if place != columns.account and text.startswith("acct_"):
            assert columns.head is not None  # noqa: S101 - the caller has seen it
            name = columns.head[place] if place < len(columns.head) else f"{place + 1}"
            return number, (
                f"column {_shown(name)} holds an account: name it stripe_account"
            )
    account = cells[columns.account] if columns.account >= 0 else ""
    return checked(number, cells[columns.refund], account)


def _row_without_head(
    number: int, cells: list[str]
) -> Iterator[CancelRequest | BadLine]:
    """Yield each id of a row, for the account that stands in it."""
    refunds = [each for each in cells if _is_refund_id(each)]
    accounts = [each for each in cells if each.startswith("acct_")]
    if len(accounts) > 1:
        yield number, "names more than one account"
    elif refunds:
        for refund_id in refunds:
            yield checked(number, refund_id, "".join(accounts))
    else:
        yield checked(number, next(filter(None, cells)), "")


def checked(number: int, refund_id: str, account: str) -> CancelRequest | BadLine:
    """Return a refund, or what is wrong with it."""
    try:
        return CancelRequest(
            validation.refund_id(refund_id),
            validation.account_id(account) if account else None,
        )
    except ValueError as error:
        return number, str(error)


def plain_name(name: str) -> str:
    """Return the name of a column or key without case, spaces and punctuation."""
    return "".join(filter(str.isalnum, name)).lower()


def looks_like_account(name: str) -> bool:
    """Tell whether a plain name may be that of accounts."""
    return any(each in name for each in _ACCOUNT_LIKE)


def clean(text: str) -> str:
    """Return a cell without what spreadsheets and people put around an id."""
    text = text.strip(_AROUND).removeprefix("- ")
    if found := _FORMULA.fullmatch(f'{text}"' if text.startswith('="') else text):
        text = found[1]
    return text.strip(_AROUND)


def _is_filler(line: str) -> bool:
    text = line.strip()
    return (
        not text
        or text.startswith("#")
        or _RULE.fullmatch(text) is not None
        or _FOOTER.fullmatch(text) is not None
    )


def _is_refund_id(text: str) -> bool:
    try:
        validation.refund_id(clean(text))
    except ValueError:
        return False
    return True


def _find(names: Sequence[str], wanted: Sequence[str]) -> int:
    for each in wanted:
        if each in names:
            return names.index(each)
    return -1


def _split(line: str, delimiter: str) -> list[str]:
    try:
        reader = csv.reader(
            [line], delimiter=delimiter, strict=True, skipinitialspace=True
        )
        return next(iter(reader))
    except (csv.Error, StopIteration):
        return []


def _shown(name: str) -> str:
    return scrub(ascii(name.strip()))[:_SHOWN]
