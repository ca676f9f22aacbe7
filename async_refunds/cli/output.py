"""What goes to stdout, and where it goes when stdout is gone.

stdout is data: one JSON object a line, or a table when a person is looking. stderr is
for people. A result of a cancel is never lost with its stream: when stdout breaks, the
results go on to stderr.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class OutputLostError(Exception):
    """Nobody reads stdout any more, or its disk is full."""


class Output:
    """Writes records as they come, or keeps them for a table.

    Args:
        as_json: One JSON object a line; without it the same where stdout is no
            terminal.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.people = Console(stderr=True, soft_wrap=True, highlight=False)
        """stderr."""
        self.lost = False
        """Whether stdout broke."""
        self.as_table = sys.stdout.isatty() and not as_json
        self._rows: list[Mapping[str, object]] = []

    def record(self, record: Mapping[str, object]) -> None:
        """Write a record, or keep it for the table.

        Raises:
            OutputLostError: stdout broke; this record was not written.
        """
        if self.as_table:
            self._rows.append(record)
        else:
            self.data(msgspec.json.encode(record).decode())

    def keep(self, record: Mapping[str, object]) -> None:
        """Write a record that must not be lost: to stderr once stdout broke."""
        try:
            self.record(record)
        except OutputLostError as error:
            self.say(f"{error}: the results go on here")
            self.keep(record)

    def data(self, line: str) -> None:
        """Write a line of data at once.

        Raises:
            OutputLostError: stdout broke, just now.
        """
        if self.lost:
            sys.stderr.write(f"{line}\n")
            return
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError as error:
            self.lost = True
            # What is left in the buffer must not fail once more at exit
            # (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise OutputLostError(f"stdout broke ({error.strerror})") from None

    def table(self, columns: Iterable[str]) -> None:
        """Show the records that were kept, if a person is looking at stdout."""
        if not self._rows:
            return
        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in self._rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        Console(highlight=False).print(table)

    def say(self, text: str) -> None:
        """Write a line for people, to stderr."""
        self.people.print(text, markup=False)


def _cell(value: object) -> str:
    return "" if value is None else str(value)
