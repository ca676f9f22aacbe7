"""A journal in one SQLite file, for one process at a time."""

from .journal import SqliteJournal
from .reader import JournalReader

__all__ = ["JournalReader", "SqliteJournal"]
