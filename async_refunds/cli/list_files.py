"""Read the refunds of a file as spreadsheets, scripts and dashboards write it.

The format comes from the content, not from the name: JSON, or rows of cells with a
header, or rows without one. Whatever is not understood is refused: a refund or an
account that is dropped in silence would be worse than an error.
"""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from async_refunds.results import CancelRequest

from .json_lists import JSON_LINES, entries_of_json
from .list_rows import BadLine, UnreadableError, entries_of_rows
from .output import os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .refund_list import RefundList

__all__ = ["STDIN", "BadLine", "UnreadableError", "display_name", "read_list"]

STDIN = "-"

# Bytes that are enough to recognise a format.
_HEAD = 4096
# Characters of a line. An id has up to 255, and CSV has other columns; a page of
# Stripe's list has a hundred refunds on one line.
_LONGEST_LINE = 65_536
_LONGEST_JSON_LINE = 64_000_000

# How files begin that are no text, and what to do with them.
_SAVE_AS_CSV = "save its sheet as CSV"
_UNPACK = "unpack it"
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"\xd0\xcf\x11\xe0", f"is an Excel workbook (xls): {_SAVE_AS_CSV}"),
    (b"\x1f\x8b", f"is compressed (gzip): {_UNPACK}"),
    (b"BZh", f"is compressed (bzip2): {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"is compressed (xz): {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"is compressed (zstd): {_UNPACK}"),
    (b"7z\xbc\xaf", f"is an archive (7z): {_UNPACK}"),
    (b"%PDF-", "is a PDF: give the list as CSV or text"),
    (b"{\\rtf", "is a rich text document (rtf): save it as plain text"),
    (b"SQLite format 3", "is an SQLite database; `async-refunds resume` continues one"),
    (b"PAR1", "is a Parquet file: write it as CSV"),
)
_ZIPPED: tuple[tuple[bytes, str], ...] = (
    (b"opendocument.spreadsheet", f"is a spreadsheet (ods): {_SAVE_AS_CSV}"),
    (b"[Content_Types].xml", f"is an Excel workbook (xlsx): {_SAVE_AS_CSV}"),
    (b"xl/", f"is an Excel workbook (xlsx): {_SAVE_AS_CSV}"),
    (b"Index/", f"is a Numbers spreadsheet: {_SAVE_AS_CSV}"),
)
# A zip archive whose beginning does not tell has the name that its program gave it.
_SPREADSHEETS = {
    ".xlsx": "an Excel workbook (xlsx)",
    ".xlsm": "an Excel workbook (xlsm)",
    ".xlsb": "an Excel workbook (xlsb)",
    ".ods": "a spreadsheet (ods)",
    ".numbers": "a Numbers spreadsheet",
}
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_list(
    source: str, requests: RefundList, on_bad_line: Callable[[BadLine], object]
) -> int:
    """Add the refunds of a file.

    Args:
        source: A path, or ``-`` for stdin.
        requests: Where they are added.
        on_bad_line: Called for each line that is not a refund. The reason that it gets
            holds no API key and no e-mail address.

    Returns:
        The number of bad lines.

    Raises:
        UnreadableError: The file cannot be opened, is no list, or has an error that
            leaves the rest of it in doubt.
    """
    bad = 0
    try:
        with _opened(source) as file:
            for entry in _entries(source, file):
                if isinstance(entry, CancelRequest):
                    requests.add(entry)
                else:
                    bad += 1
                    on_bad_line(entry)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is damaged {error.encoding.upper()}") from error
    return bad


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


def _entries(source: str, file: BinaryIO) -> Iterator[CancelRequest | BadLine]:
    head = file.read(_HEAD)
    name = Path(source).suffix.lower()
    _refuse_what_is_no_text(head, name)
    encoding, errors = _encoding(head)
    text = io.TextIOWrapper(
        io.BufferedReader(_Joined(head, file)), encoding, errors, newline=None
    )
    beginning = head.decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    if beginning.startswith(("{", "[")) or name in JSON_LINES:
        lines = _lines(text, _LONGEST_JSON_LINE)
        return entries_of_json(lines, one_per_line=name in JSON_LINES)
    if beginning.startswith("<"):
        raise UnreadableError(
            "is HTML or XML: give the list as CSV or text (a file named .xls may be a "
            "web page; save its sheet as CSV)"
        )
    return entries_of_rows(_lines(text, _LONGEST_LINE))


def _refuse_what_is_no_text(head: bytes, name: str) -> None:
    if head.startswith(b"PK\x03\x04"):
        for part, reason in _ZIPPED:
            if part in head:
                raise UnreadableError(reason)
        if name in _SPREADSHEETS:
            raise UnreadableError(f"is {_SPREADSHEETS[name]}: {_SAVE_AS_CSV}")
        raise UnreadableError("is a zip archive: unpack it")
    for start, reason in _FORMATS:
        if head.startswith(start):
            raise UnreadableError(reason)


def _encoding(head: bytes) -> tuple[str, str]:
    """Return the encoding and what to do about errors."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, "strict"
    # UTF-16 without a mark: ids are ASCII, so every second byte is 0.
    if len(head) > 1 and 0 in head[:2]:
        return ("utf-16-be" if head[0] == 0 else "utf-16-le"), "strict"
    # Bytes that are not UTF-8 become surrogates, which no id contains: a column that is
    # not read may be in any encoding.
    return "utf-8-sig", "surrogateescape"


def _lines(text: io.TextIOWrapper, longest: int) -> Iterator[str]:
    """Yield the lines without the marks of joined files and of DOS.

    Raises:
        UnreadableError: A line that no list has.
    """
    number = 0
    while line := text.readline(longest + 1):
        number += 1
        if "\0" in line:
            raise UnreadableError(f"is not text: line {number} holds a NUL byte")
        if len(line) > longest:
            raise UnreadableError(
                f"is not a list of ids: line {number} has over {longest:,} characters"
            )
        # A byte order mark inside a file is the start of another that was appended;
        # 0x1A is how CP/M and DOS ended a text.
        yield line.replace("\ufeff", "").replace("\x1a", "")


class _Joined(io.RawIOBase):
    """The head of a file that was read already, and the rest of it."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # what BufferedReader passes
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)
