"""What goes to stdout and stderr, and what happens when one of them breaks.

stdout is data: one JSON object a line, or a table on a terminal. ``--output`` puts a
file in its place. stderr is for people.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NoReturn, Protocol

import msgspec
import typer

from async_refunds.protocol.redaction import escape_controls, is_shown, mask_keys

from .exit_codes import INTERRUPTED, USAGE_ERROR
from .tables import Table, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

# Back to the start of the line, and erase it (ECMA-48, EL).
_ERASE_LINE = "\r\x1b[K"
_DEFAULT_WIDTH = 80


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
    _write_to_stderr(f"{printable(text)}\n")


def print_error(text: str) -> None:
    """Write an error to stderr."""
    to_stderr(f"async-refunds: {text}")


def refuse(text: str) -> NoReturn:
    """End the command with an error and the exit code of wrong usage."""
    print_error(text)
    raise typer.Exit(USAGE_ERROR)


@contextmanager
def interruptible(
    said: Callable[[], str], code: Callable[[], int] = lambda: INTERRUPTED
) -> Generator[None]:
    """End the command with one line and its exit code when Ctrl-C ends the block.

    Args:
        said: Returns what was done until then, and what was not.
        code: Returns the exit code.
    """
    try:
        yield
    except KeyboardInterrupt:
        print_error(f"interrupted: {said()}")
        raise typer.Exit(code()) from None


class Form(Protocol):
    """How output is written, as the options say."""

    @property
    def as_json(self) -> bool:
        """One object a line, also on a terminal."""
        ...

    @property
    def quiet(self) -> bool:
        """Only results and errors."""
        ...

    @property
    def verbose(self) -> bool:
        """More than usual."""
        ...


class Output:
    """Writes records at once as JSON, or collects them for a table.

    Args:
        form: How it is written.
        path: A file to append JSON to, in place of stdout.
        rescue: When the output breaks, write the records to stderr. The results of a
            cancel must not be lost. Without it, `OutputLostError` is raised.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        form: Form | None = None,
        *,
        path: str | None = None,
        rescue: bool = False,
    ) -> None:
        self.lost = False
        """Whether stdout, or the file in its place, broke."""
        self.kept_by: str | None = None
        """A command that shows the results, which then need no rescue."""
        self.on_terminal = path is None and _is_terminal(sys.stdout)
        as_json = form is not None and form.as_json
        self._quiet = form is not None and form.quiet
        self._verbose = form is not None and form.verbose
        self.as_table = self.on_terminal and not as_json
        self.shows_status = (
            _is_terminal(sys.stderr)
            and os.environ.get("TERM") != "dumb"
            # JSON on the same terminal would mix with it.
            and (self.as_table or not self.on_terminal)
            and not (self._quiet or self._verbose)
        )
        """Whether a status line can be drawn, and drawn over."""
        self._status_drawn = False
        self._rescue = rescue
        self._file = None if path is None else _open_for_append(path)
        self._name = path or "stdout"
        self._records: list[Mapping[str, object]] = []
        self._rows: Table | None = None

    def record(self, record: Mapping[str, object]) -> None:
        """Write a record, or collect it for the table.

        Raises:
            OutputLostError: See the class; this record was not written.
        """
        if self.as_table:
            self._records.append(record)
        else:
            self._write(_json(record), [record])

    def row(self, record: Mapping[str, object], columns: Iterable[str]) -> None:
        """Write a record as a row at once, where a table would be too long.

        Raises:
            OutputLostError: See the class; this record was not written.
        """
        if self._rows is None:
            self._rows = Table(columns, width(sys.stdout))
        self._write(_encoded(self._rows.lines([record], head=False)), [record])

    def table(self, columns: Iterable[str]) -> None:
        """Write the collected records as a table.

        Raises:
            OutputLostError: See the class.
        """
        if self._records:
            table = Table(columns, width(sys.stdout))
            self._write(_encoded(table.lines(self._records, head=True)), self._records)

    def text(self, lines: Iterable[str]) -> None:
        """Write lines of text.

        Raises:
            OutputLostError: See the class.
        """
        self.raw(_encoded(map(printable, lines)))

    def help(self, text: str) -> None:
        """Write lines of our own, in which a key is an example.

        Raises:
            OutputLostError: See the class.
        """
        self.raw(_encoded(text.splitlines()))

    def report(self, lines: Iterable[str], record: Mapping[str, object]) -> None:
        """Write lines of text, or a record, with the lines on stderr.

        Raises:
            OutputLostError: See the class.
        """
        if self.as_table:
            self.text(lines)
            return
        for line in lines:
            self.say(line)
        self.record(record)

    def raw(self, data: bytes) -> None:
        """Write bytes.

        Raises:
            OutputLostError: See the class.
        """
        self._write(data, [])

    def say(self, text: str) -> None:
        """Write a line to stderr, if anyone can read it; --quiet leaves it out."""
        if not self._quiet:
            self.warn(text)

    def explain(self, text: str) -> None:
        """Write a line to stderr for --verbose."""
        if self._verbose:
            self.warn(text)

    def error(self, text: str) -> None:
        """Write an error to stderr."""
        self.warn(f"async-refunds: {text}")

    def warn(self, text: str) -> None:
        """Write a line to stderr, if anyone can read it, also with --quiet."""
        self.erase_status()
        _write_to_stderr(f"{printable(text)}\n")

    def offer(self, text: str) -> None:
        """Write a line to copy to stderr, as `warn` does, and show a key in it.

        For the emulator's, which open nothing else.
        """
        self.erase_status()
        _write_to_stderr(f"{escape_controls(text)}\n")

    def draw_status(self, text: str) -> None:
        """Draw the status line, where there is one, over the last one."""
        _write_to_stderr(f"{_ERASE_LINE}{printable(text)}")
        self._status_drawn = True

    def erase_status(self) -> None:
        """Take the status line off the screen."""
        if self._status_drawn:
            self._status_drawn = False
            _write_to_stderr(_ERASE_LINE)

    def close(self) -> None:
        """Close the file, if there is one. stdout stays open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, data: bytes, records: Sequence[Mapping[str, object]]) -> None:
        """Write the data; where that fails, rescue the records that it shows."""
        if self.on_terminal:
            self.erase_status()
        if not self.lost:
            try:
                self._write_bytes(data)
            except OSError as error:
                self._lose(error)
            else:
                return
        if self.kept_by is not None:
            return
        for record in records:
            if sys.stderr is None:
                raise OSError(errno.EBADF, "stdout and stderr are closed")
            sys.stderr.write(_json(record).decode())
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
        if self.kept_by is None:
            self.warn(f"{lost}: the results go on here")
        else:
            self.warn(f"{lost}: `{self.kept_by}` shows the results")

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


def width(stream: IO[str] | None) -> int:
    """Return the width of a terminal; ``COLUMNS`` goes first, as for most programs."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    if stream is None:  # the terminal is gone, and stderr with it
        return _DEFAULT_WIDTH
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_WIDTH
    except (OSError, ValueError):
        return _DEFAULT_WIDTH


def _is_terminal(stream: IO[str] | None) -> bool:
    # None where the process was started with the stream closed.
    return stream is not None and stream.isatty()


def _write_to_stderr(text: str) -> None:
    """Write to stderr; a run does not end because no one watches it."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Otherwise Python flushes it again at exit, and changes the exit code.
        sys.stderr = None


def _json(record: Mapping[str, object]) -> bytes:
    """Return a record as a line, without the API key that a server may echo in it.

    JSON allows some of what a terminal obeys, and of what some take for ends of lines.
    """
    text = msgspec.json.encode(record).decode()
    if "k_" in text or "whsec_" in text:
        text = mask_keys(text)
    if not text.isprintable():
        text = "".join(each if is_shown(each) else _in_json(each) for each in text)
    return text.encode() + b"\n"


def _in_json(letter: str) -> str:
    """Return the escape of a character, of two parts if it is beyond U+FFFF."""
    units = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _encoded(lines: Iterable[str]) -> bytes:
    """Return printable lines in the encoding of the terminal. JSON is always UTF-8."""
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    text = "".join(f"{escape_controls(line)}\n" for line in lines)
    return text.encode(encoding, "backslashreplace")


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
