"""What a batch has decided and learnt, and where it is kept."""

from .base import Claim, Journal
from .memory import WINDOW, MemoryJournal
from .sqlite import JournalReader, Record, Run, SqliteJournal, Tally

__all__ = [
    "Claim",
    "Journal",
    "JournalReader",
    "MemoryJournal",
    "Record",
    "Run",
    "SqliteJournal",
    "Tally",
    "WINDOW",
]
