"""What a batch has decided and learnt, and where it is kept."""

from .memory import WINDOW, MemoryJournal
from .reader import JournalReader, Record
from .schema import Run, Tally
from .sqlite import SqliteJournal
from .values import Claim, Journal

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
