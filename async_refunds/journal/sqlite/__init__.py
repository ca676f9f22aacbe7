"""A journal in one SQLite file, for one process at a time."""

from .journal import SqliteJournal
from .reader import JournalReader, Record
from .schema import Run, Tally

__all__ = ["JournalReader", "Record", "Run", "SqliteJournal", "Tally"]
