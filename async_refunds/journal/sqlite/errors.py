"""What is said of a file that cannot be used, and what the user can do."""

from __future__ import annotations

import sqlite3

from async_refunds.errors import JournalError

# https://www.sqlite.org/rescode.html
_DAMAGED = "is damaged or cut short: put back a copy of it, or begin another run"
_NO_ROOM = "does not fit on the disk: make room, then resume the run"
_REASONS = {
    sqlite3.SQLITE_FULL: _NO_ROOM,
    sqlite3.SQLITE_IOERR_SHMSIZE: _NO_ROOM,  # or a limit on the size of files
    sqlite3.SQLITE_NOTADB: "is not a journal (no SQLite database): give another path",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_BUSY: "is locked by another program, which reads or copies it: "
    "wait for its end, then try again",
    sqlite3.SQLITE_READONLY_ROLLBACK: "was cut off in the middle of a write: resume "
    "the run, which repairs it",
    sqlite3.SQLITE_READONLY: "may not be written: check the permissions of the file "
    "and of its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check the permissions of the file "
    "and of its folder, and how many files a process may open",
    sqlite3.SQLITE_IOERR: "cannot be read or written: a limit on the size of files, "
    "a quota, or a failing disk",
}


SAYS_NOTHING = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}
)
"""Codes of errors that say nothing of what a file holds."""

UNREADABLE = (sqlite3.Error, ValueError, TypeError)
"""What `sqlite3` raises for a file: besides its own errors those for a text that is no
UTF-8, also in the message of an error, and for a row of another shape."""


def damaged(place: str, detail: str) -> JournalError:
    """Return what to raise for a file that is not as it was written."""
    return JournalError(f"the journal {place!r} {_DAMAGED} ({detail})")


def closed(place: str, left: int) -> JournalError:
    """Return what to raise for a run that takes no more items.

    Args:
        place: The name of the file.
        left: How many items were perhaps sent, and have no end.
    """
    rest = f"; resume it for {left:,} that were perhaps sent" if left else ""
    return JournalError(
        f"the run of the journal {place!r} is closed, and takes no more refunds: give "
        f"another path{rest}"
    )


def explained(place: str, error: BaseException) -> JournalError:
    """Return what to raise for any error: what is wrong, and what to do."""
    if isinstance(error, JournalError):
        return error
    code = getattr(error, "sqlite_errorcode", 0)  # Python's own checks have none
    if isinstance(error, PermissionError):
        code = sqlite3.SQLITE_CANTOPEN
    if isinstance(error, UnicodeDecodeError):
        code = sqlite3.SQLITE_CORRUPT
    # The low byte is the kind, the rest its detail
    # (https://www.sqlite.org/rescode.html#primary_result_codes_versus_extended_result_codes).
    reason = _REASONS.get(code) or _REASONS.get(code & 0xFF) or "cannot be used"
    return JournalError(f"the journal {place!r} {reason} ({error})")
