"""Read and check the refunds of a file before anything is sent.

A pipe can be read only once, and its last line may be wrong. So the refunds are kept in
a temporary file until all are checked. Memory does not grow with the list.
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import msgspec

from async_refunds.protocol import validation
from async_refunds.protocol.redaction import scrub
from async_refunds.results import CancelRequest

from .output import os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import TracebackType
    from typing import BinaryIO

STDIN = "-"

# Bytes of a line. An id has up to 255 characters, and CSV has other columns; a file
# without line ends is no list.
_LONGEST = 65_536
# Characters of a header that a message shows: one line.
_SHOWN = 80

_ID_COLUMNS = ("refund_id", "id")
_ACCOUNT_COLUMN = "stripe_account"
_DELIMITERS = ",;\t"  # spreadsheets in half of Europe write the second
_JSON_LINES = (".jsonl", ".ndjson")

# Bytes that are not UTF-8 become surrogates, which no id contains: a column that is not
# read may be in any encoding.
_UNDECODED = "surrogateescape"

_ADD = "INSERT OR IGNORE INTO refunds (refund_id, account) VALUES (?, ?)"

BadLine: TypeAlias = "tuple[int, str]"
"""The number of a line that is not a refund, and the reason."""


class UnreadableError(Exception):
    """Says why a list cannot be read at all."""


class RefundList:
    """The refunds to cancel, each once, in the order in which they were added.

    They are kept in a temporary file, which SQLite removes. Close the list.

    Args:
        account: The connected account of those that name none.
    """

    def __init__(self, account: str | None = None) -> None:
        self.count = 0
        self.duplicates = 0
        """How often a refund was added that is in the list already."""
        self._account = account
        # https://www.sqlite.org/inmemorydb.html#temp_db
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute(
            "CREATE TABLE refunds (number INTEGER PRIMARY KEY, refund_id, account, "
            "UNIQUE (refund_id, account))"
        )
        self._db.execute("BEGIN")

    def add(self, request: CancelRequest) -> None:
        """Add a refund, unless it is in the list.

        Raises:
            OSError: The disk is full.
        """
        account = request.stripe_account or self._account or ""
        try:
            added = self._db.execute(_ADD, (request.refund_id, account)).rowcount
        except sqlite3.Error as error:
            raise OSError(f"the temporary file: {error}") from error
        self.count += added
        self.duplicates += 1 - added

    def __iter__(self) -> Iterator[CancelRequest]:
        rows = self._db.execute(
            "SELECT refund_id, account FROM refunds ORDER BY number"
        )
        for refund_id, account in rows:
            yield CancelRequest(refund_id, account or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()


def read_list(
    source: str, requests: RefundList, on_bad_line: Callable[[BadLine], object]
) -> None:
    """Add the refunds of a file.

    Args:
        source: A path, or ``-`` for stdin.
        requests: Where they are added.
        on_bad_line: Called for each line that is not a refund. The reason that it gets
            holds no API key and no e-mail address.

    Raises:
        UnreadableError: The file cannot be opened, is no text, or has an error that
            leaves the rest of it in doubt.
    """
    try:
        with _opened(source) as file:
            for entry in _entries(source, _lines(file)):
                if isinstance(entry, CancelRequest):
                    requests.add(entry)
                else:
                    on_bad_line(entry)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {os_reason(error)}") from error


def display_name(source: str) -> str:
    """Return the name of a source for messages."""
    return "stdin" if source == STDIN else source


@contextmanager
def _opened(source: str) -> Generator[BinaryIO]:
    if source != STDIN:
        with Path(source).open("rb") as file:
            yield file
    elif sys.stdin is None:  # the process was started without it
        raise UnreadableError("is closed")
    else:
        yield sys.stdin.buffer


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines, each within bounds, the first without a byte order mark."""
    number = 0
    while line := file.readline(_LONGEST + 1):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UnreadableError("is UTF-16: save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise UnreadableError(f"is no text: line {number} holds a NUL byte")
        if len(line) > _LONGEST:
            raise UnreadableError(
                f"is no list of ids: line {number} is over {_LONGEST:,} bytes long"
            )
        yield line


def _entries(source: str, lines: Iterator[bytes]) -> Iterator[CancelRequest | BadLine]:
    """Yield the entries in the format of the name's ending, or of the first line."""
    ending = Path(source).suffix.lower()
    head: list[bytes] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    else:
        raise UnreadableError("is empty")
    first, rest = head[-1], lines
    lines = chain(head, rest)
    if ending in _JSON_LINES:
        return _from_json(lines)
    if ending == ".csv":
        return _from_csv(first, len(head), rest)
    if ending == ".txt":
        return _from_text(lines)
    if first.lstrip().startswith(b"{"):
        return _from_json(lines)
    if _columns(_decoded(first)) is not None:
        return _from_csv(first, len(head), rest)
    return _from_text(lines)


def _from_text(lines: Iterable[bytes]) -> Iterator[CancelRequest | BadLine]:
    for number, line in enumerate(lines, 1):
        text = _decoded(line).strip()
        if text and not text.startswith("#"):
            yield _checked(number, text, None)


class _Object(msgspec.Struct):
    """A line of JSON as `list --json` and `report --json` write it."""

    refund_id: str | None = None
    id: str | None = None
    stripe_account: str | None = None


def _from_json(lines: Iterable[bytes]) -> Iterator[CancelRequest | BadLine]:
    decoder = msgspec.json.Decoder(_Object)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield number, f"no JSON object of a refund: {scrub(str(error))}"
            continue
        refund_id = found.refund_id if found.refund_id is not None else found.id
        if refund_id is None:
            yield number, "has neither refund_id nor id"
        else:
            yield _checked(number, refund_id, found.stripe_account)


def _from_csv(
    first: bytes, before: int, lines: Iterable[bytes]
) -> Iterator[CancelRequest | BadLine]:
    head = _decoded(first)
    columns = _columns(head)
    if columns is None:
        raise UnreadableError(
            "has no column refund_id or id: its first line is "
            f"{scrub(ascii(head.strip()))[:_SHOWN]}"
        )
    delimiter, id_at, account_at = columns
    # Strict: otherwise an open quote would swallow the rest of the list.
    rows = csv.reader(map(_decoded, lines), delimiter=delimiter, strict=True)
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
            yield number, f"is no line of a CSV file ({error})"
            continue
        if row is None:
            return
        if any(map(str.strip, row)):
            fields = [*map(str.strip, row), *[""] * (max(id_at, account_at) + 1)]
            account = fields[account_at] if account_at >= 0 else None
            yield _checked(number, fields[id_at], account)


def _columns(head: str) -> tuple[str, int, int] | None:
    """Return the delimiter and where the id and the account (-1: nowhere) stand."""
    for delimiter in _DELIMITERS:
        try:
            row = next(csv.reader([head], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            continue
        names = [each.strip().lower() for each in row]
        for column in _ID_COLUMNS:
            if column in names:
                there = _ACCOUNT_COLUMN in names
                account_at = names.index(_ACCOUNT_COLUMN) if there else -1
                return delimiter, names.index(column), account_at
    return None


def _checked(
    number: int, refund_id: str, account: str | None
) -> CancelRequest | BadLine:
    try:
        return CancelRequest(
            validation.refund_id(refund_id),
            validation.account_id(account) if account else None,
        )
    except ValueError as error:
        return number, str(error)


def _decoded(line: bytes) -> str:
    return line.decode(errors=_UNDECODED)
