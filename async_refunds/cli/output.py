"""What goes to stdout, and where it goes when stdout is gone.

stdout is data: one JSON object a line, or a table when a person is looking. stderr is
for people. A result of a cancel is never lost with its stream: when stdout breaks, the
results go on to stderr. ``--output`` puts a file in the place of stdout.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence


class OutputLostError(Exception):
    """Nobody reads stdout any more, or its disk is full.

    Args:
        name: Of what broke.
        reason: In words.
        unread: Whether the reader has left, as ``head`` does when it has enough.
    """

    def __init__(self, name: str, reason: str, *, unread: bool = False) -> None:
        super().__init__(f"{name} broke ({reason})")
        self.unread = unread


class People(Console):
    """A console that leaves it to us what becomes of a run that nobody watches."""

    def on_broken_pipe(self) -> None:
        """Raise what was caught; the original ends the process, whatever it is at."""
        raise  # noqa: PLE0704 - rich calls this where it handles the error


class Output:
    """Writes records as they come, or keeps them for a table.

    Args:
        as_json: One JSON object a line; without it the same where stdout is no
            terminal.
        into: A file to write to instead, in JSON. What it holds stays, and what is
            written comes after it.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, *, as_json: bool, into: str | None = None) -> None:
        self.people = People(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        """stderr."""
        self.lost = False
        """Whether stdout, or the file in its place, broke."""
        # None where the process was started with stdout closed.
        self.to_terminal = (
            into is None and sys.stdout is not None and sys.stdout.isatty()
        )
        """Whether a person may see it."""
        self.as_table = self.to_terminal and not as_json
        self._file = None if into is None else _appended(into)
        self._name = into or "stdout"
        self._rows: list[Mapping[str, object]] = []

    def record(self, record: Mapping[str, object]) -> None:
        """Write a record, or keep it for the table.

        Raises:
            OutputLostError: stdout broke; this record was not written.
        """
        if self.as_table:
            self._rows.append(record)
        else:
            self.raw(msgspec.json.encode(record) + b"\n")

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

    def row(self, record: Mapping[str, object], columns: Iterable[str]) -> None:
        """Write a record as a line by itself, where a table of all would be too long.

        Raises:
            OSError: stdout broke, and stderr too.
        """
        cells = [_cell(name, record.get(name)) for name in columns]
        try:
            self.text(["  ".join(cells).rstrip()])
        except OutputLostError as error:
            self.as_table = False  # from now on as `keep` has it
            self.say(f"{error}: the results go on here")
            self._rescue(record)

    def table(self, columns: Iterable[str]) -> None:
        """Show the records that were kept, if a person is looking at stdout.

        A terminal that is gone leaves them on stderr, as JSON.
        """
        if not self._rows:
            return
        names = tuple(columns)
        head = [name.replace("_", " ") for name in names]
        rows = [[_cell(name, row.get(name)) for name in names] for row in self._rows]
        try:
            self.text(aligned([head, *rows]))
        except OutputLostError as error:
            self.say(f"{error}: the results go on here")
            for row in self._rows:
                self._rescue(row)

    def text(self, lines: Iterable[str]) -> None:
        """Write lines of text to a person at stdout.

        Raises:
            OutputLostError: stdout broke.
        """
        text = "".join(f"{line}\n" for line in lines)
        self.raw(text.encode(sys.stdout.encoding, "backslashreplace"))

    def say(self, text: str) -> None:
        """Write a line for people, to stderr, if anybody is there."""
        with self.for_people():
            self.people.print(plain(text), markup=False)

    @contextmanager
    def for_people(self) -> Generator[None]:
        """Write to stderr what ends no run if nobody is there."""
        try:
            yield
        except OSError:
            # Or Python tries once more at exit, and changes the exit code.
            sys.stderr = None

    def close(self) -> None:
        """Close the file, if there is one. stdout stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def raw(self, data: bytes) -> None:
        """Write data as it is.

        Raises:
            OutputLostError: stdout broke.
        """
        try:
            file = self._descriptor()
            # In bytes, since JSON is UTF-8 whatever the locale says of text; past
            # Python's own buffer, where what failed would fail once more at exit; and
            # until all of it is gone, since a disk may have room for a part.
            while data:
                data = data[os.write(file, data) :]
        except OSError as error:
            self.lost = True
            raise OutputLostError(
                self._name, error.strerror or "", unread=error.errno == errno.EPIPE
            ) from None

    def _descriptor(self) -> int:
        if self._file is not None:
            return self._file
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdout.fileno()

    def _rescue(self, record: Mapping[str, object]) -> None:
        if sys.stderr is None:
            raise OSError(errno.EBADF, "stdout and stderr are closed")
        sys.stderr.write(msgspec.json.encode(record).decode() + "\n")
        sys.stderr.flush()


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose cells stand below each other.

    As wide as they are: an id that is folded to fit cannot be copied.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def plain(text: str) -> str:
    """Return the text with nothing in it that a terminal would obey."""
    return "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text
    )


def _cell(column: str, value: object) -> str:
    if column == "created" and isinstance(value, int):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}Z"
    return "" if value is None else plain(str(value))


def _appended(path: str) -> int:
    """Open a file to write after what it holds, which may end in half a line."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        length = os.lseek(file, 0, os.SEEK_END)
        if length:
            os.lseek(file, length - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":  # as a kill leaves it
                os.write(file, b"\n")
    except OSError:
        os.close(file)
        raise
    return file
