"""What is in the file of a run, and what is said of a bad one."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.errors import JournalError
from async_refunds.journal.base import Run, Tally

if TYPE_CHECKING:
    from async_refunds.results import CancelOutcome

APPLICATION = 0x61724A31
"""Stands in the file's header, where ``file(1)`` and we tell it from any other
database: https://www.sqlite.org/pragma.html#pragma_application_id. Spells ``arJ1``."""
VERSION = 1
"""The form below. Another one is another number, and no file is read on a guess."""

# Two unique indexes, since NULLs are all different to SQLite
# (https://www.sqlite.org/lang_createindex.html#unique_indexes). The open items of an
# account stand together in the third, which gets smaller as the run goes on.
_TABLES = (
    """CREATE TABLE run (
        base_url TEXT NOT NULL,
        livemode INTEGER NOT NULL,
        options TEXT NOT NULL
    )""",
    """CREATE TABLE items (
        number INTEGER PRIMARY KEY,
        refund_id TEXT NOT NULL,
        stripe_account TEXT,
        settled INTEGER NOT NULL DEFAULT 0,
        asked INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        idempotency_key TEXT,
        keyed_at REAL,
        outcome TEXT,
        status TEXT,
        request_id TEXT,
        error TEXT,
        seconds REAL,
        known_at REAL
    )""",
    """CREATE UNIQUE INDEX own_items ON items (refund_id)
        WHERE stripe_account IS NULL""",
    """CREATE UNIQUE INDEX connected_items ON items (stripe_account, refund_id)
        WHERE stripe_account IS NOT NULL""",
    """CREATE INDEX open_items ON items (stripe_account, number)
        WHERE settled = 0""",
)

OUTCOME = """CASE WHEN outcome IS NULL AND asked THEN 'unknown' ELSE outcome END"""
"""What is known of an item. Without a result it was asked by a process that goes on, or
that was killed in the midst of it; either way it may have landed."""

# https://www.sqlite.org/rescode.html: what it means here, and what to do.
_DAMAGED = (
    "is damaged or cut short: put back a copy of it, or begin a run under another name"
)
_REASONS = {
    sqlite3.SQLITE_READONLY_ROLLBACK: "was cut off in the midst of a write: resume "
    "the run, which mends it",
    sqlite3.SQLITE_FULL: "does not fit on the disk any more: make room, then resume "
    "the run",
    sqlite3.SQLITE_NOTADB: "is no SQLite database, so it is no journal: give another "
    "path",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_BUSY: "is locked by another program, which reads or copies it: "
    "wait for its end, then try again",
    sqlite3.SQLITE_READONLY: "may not be written: see to the permissions of the file "
    "and of its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: see to the permissions of the file "
    "and of its folder",
    sqlite3.SQLITE_IOERR: "cannot be read or written: a limit on the size of files, "
    "a quota, or a failing disk",
}


def create(db: sqlite3.Connection, run: Run) -> None:
    """Make the tables and the run, within the transaction of their first items.

    Raises:
        sqlite3.Error: Of any kind; nothing is made then once it is rolled back.
    """
    for statement in (
        f"PRAGMA application_id = {APPLICATION}",
        f"PRAGMA user_version = {VERSION}",
        *_TABLES,
    ):
        db.execute(statement)
    options = msgspec.json.encode(run.options).decode()
    db.execute(
        "INSERT INTO run VALUES (?, ?, ?)", (run.base_url, run.livemode, options)
    )


def stored_run(db: sqlite3.Connection, place: str) -> Run | None:
    """Return what this file is about, ``None`` for one that has nothing yet.

    Raises:
        JournalError: Of another program or version.
        sqlite3.Error: It cannot be read.
    """
    ((application,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
    if application == version == tables == 0:
        return None
    if application != APPLICATION:
        raise JournalError(
            f"{place!r} is another program's database, not a journal: give another path"
        )
    if version != VERSION:
        raise JournalError(
            f"the journal {place!r} has version {version}, and this release reads "
            f"version {VERSION}: go on with the release that made it"
        )
    try:
        ((base_url, livemode, options),) = db.execute("SELECT * FROM run")
        return Run(
            msgspec.convert(base_url, str),
            bool(livemode),
            msgspec.json.decode(options, type=dict[str, Any]),
        )
    except (ValueError, TypeError) as error:  # not one row, or not as we wrote it
        raise JournalError(
            f"the journal {place!r} {_DAMAGED} (its run cannot be read: {error})"
        ) from error


def check(db: sqlite3.Connection, place: str) -> None:
    """Read the file through, a quarter of a second for a million items.

    One cut short would otherwise be found out when the missing page is wanted, which
    may be after a thousand refunds.

    Raises:
        JournalError: It is damaged.
        sqlite3.Error: The same, or it cannot be read.
    """
    # One finding is enough (https://www.sqlite.org/pragma.html#pragma_quick_check).
    ((found,),) = db.execute("PRAGMA quick_check(1)")
    if found != "ok":
        raise JournalError(f"the journal {place!r} {_DAMAGED} ({found})")


def tally(db: sqlite3.Connection) -> Tally:
    """Count the items.

    Raises:
        sqlite3.Error: They cannot be read.
    """
    left = 0
    outcomes: Counter[CancelOutcome | None] = Counter()
    rows = db.execute(
        f"SELECT {OUTCOME}, settled, count(*) FROM items GROUP BY 1, 2"  # noqa: S608 - ours
    )
    for outcome, settled, count in rows:
        outcomes[outcome] += count
        left += 0 if settled else count
    return Tally(open=left, outcomes=outcomes)


def explained(place: str, error: BaseException) -> JournalError:
    """Return what to raise for an error of SQLite: what is wrong, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0)  # Python's own checks have none
    if isinstance(error, PermissionError):
        code = sqlite3.SQLITE_CANTOPEN
    # The low byte is the kind, the rest its detail
    # (https://www.sqlite.org/rescode.html#primary_result_codes_versus_extended_result_codes).
    reason = _REASONS.get(code) or _REASONS.get(code & 0xFF) or "cannot be used"
    return JournalError(f"the journal {place!r} {reason} ({error})")
