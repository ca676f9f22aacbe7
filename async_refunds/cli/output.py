"""What goes to stdout and stderr, and what happens when one of them breaks.

stdout is data: one JSON object a line, or a table on a terminal. ``--output`` puts a
file in its place. stderr is for people.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import msgspec
import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

USAGE_ERROR = 2
"""Exit code of a command that cannot be right; nothing was sent."""


class OutputLostError(Exception):
    """stdout, or the file in its place, can no longer be written.

    Args:
        name: Of what broke.
        reason: In words.
        reader_left: Whether the reader closed the pipe, as ``head`` does when it has
            enough.
    """

    def __init__(self, name: str, reason: str, *, reader_left: bool) -> None:
        super().__init__(f"{name} broke ({reason})")
        self.reader_left = reader_left


def os_reason(error: OSError) -> str:
    """Return why a system call failed, in words.

    Not ``os.strerror(error.errno)``: a resolver numbers its errors in its own way.
    """
    return error.strerror or str(error) or type(error).__name__


def to_stderr(text: str) -> None:
    """Write a line to stderr, before there is an `Output`."""
    typer.echo(printable(text), err=True)


def print_error(text: str) -> None:
    """Write an error to stderr."""
    to_stderr(f"async-refunds: {text}")


def refuse(text: str) -> NoReturn:
    """End the command with an error and the exit code of wrong usage."""
    print_error(text)
    raise typer.Exit(USAGE_ERROR)


class StderrConsole(Console):
    """A console that raises when stderr breaks; rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Raise the error that rich is handling when it calls this."""
        raise  # noqa: PLE0704 - rich calls this inside its own except block


class Output:
    """Writes records at once as JSON, or collects them for a table.

    Args:
        as_json: Write JSON also where stdout is a terminal.
        path: A file to append JSON to, in place of stdout.
        rescue: When the output breaks, write the records to stderr. The results of a
            cancel must not be lost. Without it, `OutputLostError` is raised.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self, *, as_json: bool, path: str | None = None, rescue: bool = False
    ) -> None:
        self.stderr = StderrConsole(
            stderr=True, soft_wrap=True, highlight=False, emoji=False
        )
        self.lost = False
        """Whether stdout, or the file in its place, broke."""
        # sys.stdout is None where the process was started with stdout closed.
        self.on_terminal = (
            path is None and sys.stdout is not None and sys.stdout.isatty()
        )
        self.as_table = self.on_terminal and not as_json
        self._rescue = rescue
        self._file = None if path is None else _open_for_append(path)
        self._name = path or "stdout"
        self._rows: list[Mapping[str, object]] = []

    def record(self, record: Mapping[str, object]) -> None:
        """Write a record, or collect it for the table.

        Raises:
            OutputLostError: See the class; this record was not written.
        """
        if self.as_table:
            self._rows.append(record)
        else:
            self._write(msgspec.json.encode(record) + b"\n", [record])

    def row(self, record: Mapping[str, object], columns: Iterable[str]) -> None:
        """Write a record as a line of text at once, where a table would be too long.

        Raises:
            OutputLostError: See the class; this record was not written.
        """
        cells = [_cell(name, record.get(name)) for name in columns]
        self._write(_encoded(["  ".join(cells).rstrip()]), [record])

    def table(self, columns: Iterable[str]) -> None:
        """Write the collected records as a table.

        Raises:
            OutputLostError: See the class.
        """
        if not self._rows:
            return
        names = tuple(columns)
        head = [name.replace("_", " ") for name in names]
        rows = [[_cell(name, row.get(name)) for name in names] for row in self._rows]
        self._write(_encoded(aligned([head, *rows])), self._rows)

    def text(self, lines: Iterable[str]) -> None:
        """Write lines of text.

        Raises:
            OutputLostError: See the class.
        """
        self.raw(_encoded(lines))

    def raw(self, data: bytes) -> None:
        """Write bytes.

        Raises:
            OutputLostError: See the class.
        """
        self._write(data, [])

    def say(self, text: str) -> None:
        """Write a line to stderr, if anyone can read it."""
        with self.stderr_may_break():
            self.stderr.print(printable(text), markup=False)

    @contextmanager
    def stderr_may_break(self) -> Generator[None]:
        """Ignore errors of stderr: a run does not end because no one watches it."""
        try:
            yield
        except OSError:
            # Otherwise Python flushes it again at exit, and changes the exit code.
            sys.stderr = None

    def close(self) -> None:
        """Close the file, if there is one. stdout stays open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, data: bytes, records: Sequence[Mapping[str, object]]) -> None:
        """Write the data; where that fails, rescue the records that it shows."""
        if not self.lost:
            try:
                self._write_bytes(data)
            except OSError as error:
                self._lose(error)
            else:
                return
        for record in records:
            if sys.stderr is None:
                raise OSError(errno.EBADF, "stdout and stderr are closed")
            sys.stderr.write(msgspec.json.encode(record).decode() + "\n")
            sys.stderr.flush()

    def _lose(self, error: OSError) -> None:
        self.lost = True
        self.as_table = False
        lost = OutputLostError(
            self._name,
            os_reason(error),
            reader_left=error.errno == errno.EPIPE,
        )
        if not self._rescue:
            raise lost from None
        self.say(f"{lost}: the results go on here")

    def _write_bytes(self, data: bytes) -> None:
        file = self._file
        if file is None:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            file = sys.stdout.fileno()
        # Past Python's own buffer, which would fail again at exit, and until all is
        # written: a disk may have room for a part.
        while data:
            data = data[os.write(file, data) :]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose cells are aligned in columns.

    As wide as they need to be: an id that is folded cannot be copied.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def printable(text: str) -> str:
    """Return the text without anything that a terminal would obey."""
    return "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text
    )


def _encoded(lines: Iterable[str]) -> bytes:
    """Return text in the encoding of the terminal. JSON is always UTF-8."""
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    return "".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace")


def _cell(column: str, value: object) -> str:
    if column == "created" and isinstance(value, int):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}Z"
    return "" if value is None else printable(str(value))


def _open_for_append(path: str) -> int:
    """Open a file for appending; a last line without an end gets one."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        length = os.lseek(file, 0, os.SEEK_END)
        if length:
            os.lseek(file, length - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":  # a killed process leaves half a line
                os.write(file, b"\n")
    except OSError:
        os.close(file)
        raise
    return file
