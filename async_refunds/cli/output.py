"""What goes to stdout, and where it goes when stdout is gone.

stdout is data: one JSON object a line, or a table when a person is looking. stderr is
for people. A result of a cancel is never lost with its stream: when stdout breaks, the
results go on to stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class OutputLostError(Exception):
    """Nobody reads stdout any more, or its disk is full.

    Args:
        reason: In words.
        unread: Whether the reader has left, as ``head`` does when it has enough.
    """

    def __init__(self, reason: str, *, unread: bool = False) -> None:
        super().__init__(f"stdout broke ({reason})")
        self.unread = unread


class Output:
    """Writes records as they come, or keeps them for a table.

    Args:
        as_json: One JSON object a line; without it the same where stdout is no
            terminal.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.people = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        """stderr."""
        self.lost = False
        """Whether stdout broke."""
        # None where the process was started with stdout closed.
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self.as_table = terminal and not as_json
        self._rows: list[Mapping[str, object]] = []

    def record(self, record: Mapping[str, object]) -> None:
        """Write a record, or keep it for the table.

        Raises:
            OutputLostError: stdout broke; this record was not written.
        """
        if self.as_table:
            self._rows.append(record)
        else:
            self._write(msgspec.json.encode(record) + b"\n")

    def keep(self, record: Mapping[str, object]) -> None:
        """Write a record that must not be lost: to stderr once stdout broke.

        Raises:
            OSError: stderr broke too.
        """
        if self.lost:
            self._rescue(record)
            return
        try:
            self.record(record)
        except OutputLostError as error:
            self.say(f"{error}: the results go on here")
            self._rescue(record)

    def table(self, columns: Iterable[str]) -> None:
        """Show the records that were kept, if a person is looking at stdout.

        A terminal that is gone leaves them on stderr, as JSON.
        """
        if not self._rows:
            return
        names = tuple(columns)
        lines = [
            tuple(name.replace("_", " ") for name in names),
            *(
                tuple(_cell(name, row.get(name)) for name in names)
                for row in self._rows
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        # As wide as it is: an id that is folded to fit cannot be copied.
        text = "".join(
            "  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines
        )
        try:
            self._write(text.encode(sys.stdout.encoding, "backslashreplace"))
        except OutputLostError as error:
            self.say(f"{error}: the results go on here")
            for row in self._rows:
                self._rescue(row)

    def say(self, text: str) -> None:
        """Write a line for people, to stderr."""
        self.people.print(_plain(text), markup=False)

    def _write(self, data: bytes) -> None:
        if sys.stdout is None:
            self.lost = True
            raise OutputLostError("it is closed")
        try:
            # In bytes, since JSON is UTF-8 whatever the locale says of text; past
            # Python's own buffer, where what failed would fail once more at exit; and
            # until all of it is gone, since a disk may have room for a part.
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]
        except OSError as error:
            self.lost = True
            raise OutputLostError(
                error.strerror or "", unread=error.errno == errno.EPIPE
            ) from None

    def _rescue(self, record: Mapping[str, object]) -> None:
        if sys.stderr is None:
            raise OSError(errno.EBADF, "stdout and stderr are closed")
        sys.stderr.write(msgspec.json.encode(record).decode() + "\n")
        sys.stderr.flush()


def _cell(column: str, value: object) -> str:
    if column == "created" and isinstance(value, int):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}Z"
    return "" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """Return the text with nothing in it that a terminal would obey."""
    return "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text
    )
