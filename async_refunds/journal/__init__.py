"""What a batch has decided and learned, and where that is kept."""

from .base import (
    Claim,
    Journal,
    LeaseLostError,
    Leases,
    Record,
    Run,
    RunClosedError,
    Tally,
    require_target,
)
from .factory import open_journal
from .memory import WINDOW, MemoryJournal
from .sqlite import JournalReader, SqliteJournal, journal_files

__all__ = [
    "Claim",
    "Journal",
    "JournalReader",
    "LeaseLostError",
    "Leases",
    "MemoryJournal",
    "Record",
    "Run",
    "RunClosedError",
    "SqliteJournal",
    "Tally",
    "WINDOW",
    "journal_files",
    "open_journal",
    "require_target",
]
