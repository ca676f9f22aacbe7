"""Make the journal for the place that a user named: today always a SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sqlite import SqliteJournal

if TYPE_CHECKING:
    import os

    from .base import Journal, Run


def open_journal(path: str | os.PathLike[str], run: Run) -> Journal:
    """Open the journal of a run, or begin one. See `SqliteJournal.open`.

    Raises:
        JournalError: It is in use, of another run, or cannot be read and written.
    """
    return SqliteJournal.open(path, run)
