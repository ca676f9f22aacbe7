"""A journal in one SQLite file, for one process at a time."""

from .file import journal_files
from .journal import SqliteJournal
from .reader import JournalReader

__all__ = ["JournalReader", "SqliteJournal", "journal_files"]
