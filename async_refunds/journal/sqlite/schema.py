"""The tables of a journal, and whether a file has them as they were made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from async_refunds.errors import JournalError

from .claim_pages import ClaimPages
from .errors import damaged
from .rows import ITEM_COLUMNS, DamagedRowError, Item, RunState

if TYPE_CHECKING:
    import sqlite3

APPLICATION = 0x61724A31
"""Stands in the file's header, where ``file(1)`` and we tell it from any other
database: https://www.sqlite.org/pragma.html#pragma_application_id. Spells ``arJ1``."""
VERSION = 2
"""Of the tables below. Other tables have another number; no file is read on a guess."""

# Two unique indexes, since NULLs are all different to SQLite
# (https://www.sqlite.org/lang_createindex.html#unique_indexes). The open items of an
# account stand together in the third, which gets smaller as the run goes on.
TABLES = {
    "run": """CREATE TABLE run (
        base_url TEXT NOT NULL,
        livemode INTEGER NOT NULL,
        options TEXT NOT NULL,
        seed BLOB NOT NULL,
        created_at REAL NOT NULL,
        derivation INTEGER NOT NULL,
        commits INTEGER NOT NULL,
        items INTEGER NOT NULL,
        open INTEGER NOT NULL,
        outcomes TEXT NOT NULL,
        crc_sum INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        rate_limited INTEGER NOT NULL,
        seconds REAL NOT NULL,
        crc INTEGER NOT NULL
    )""",
    "items": """CREATE TABLE items (
        number INTEGER PRIMARY KEY,
        refund_id TEXT NOT NULL,
        stripe_account TEXT,
        settled INTEGER NOT NULL DEFAULT 0,
        failed_at REAL NOT NULL DEFAULT 0,
        facts BLOB,
        crc INTEGER NOT NULL
    )""",
    "claims": """CREATE TABLE claims (
        id INTEGER PRIMARY KEY,
        stripe_account TEXT,
        pages BLOB NOT NULL,
        crc INTEGER NOT NULL
    )""",
    "own_items": """CREATE UNIQUE INDEX own_items ON items (refund_id)
        WHERE stripe_account IS NULL""",
    "connected_items": """CREATE UNIQUE INDEX connected_items
        ON items (stripe_account, refund_id) WHERE stripe_account IS NOT NULL""",
    "open_items": """CREATE INDEX open_items ON items (stripe_account, number)
        WHERE settled = 0""",
}


_STATE_COLUMNS = ", ".join(RunState.__struct_fields__)
_STATE_PLACES = ", ".join("?" * len(RunState.__struct_fields__))
_ITEMS = f"SELECT {ITEM_COLUMNS} FROM items ORDER BY number"  # noqa: S608 - our own names
_SUMS = """SELECT count(*), coalesce(max(number), 0), coalesce(sum(crc), 0)
    + (SELECT coalesce(sum(crc), 0) FROM claims) FROM items"""
_READ_STATE = f"SELECT {_STATE_COLUMNS} FROM run"  # noqa: S608 - our own names
_INSERT_STATE = f"INSERT INTO run VALUES ({_STATE_PLACES})"  # noqa: S608 - a number of placeholders
_WRITE_STATE = f"UPDATE run SET ({_STATE_COLUMNS}) = ({_STATE_PLACES})"  # noqa: S608 - our own names


def version_of(db: sqlite3.Connection, place: str) -> int:
    """Return the version of a file, 0 for one that has nothing yet.

    Raises:
        JournalError: It is another program's.
        sqlite3.Error: It cannot be read.
    """
    ((application,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
    if application == version == tables == 0:
        return 0
    if application != APPLICATION:
        raise JournalError(
            f"{place!r} is another program's database, not a journal: give another path"
        )
    if not 1 <= version <= VERSION:
        raise JournalError(
            f"the journal {place!r} has version {version}, and this release reads "
            f"versions up to {VERSION}: go on with the release that made it"
        )
    found: int = version
    return found


def create(db: sqlite3.Connection, state: RunState) -> None:
    """Make the tables and the run, within a transaction.

    Raises:
        sqlite3.Error: They cannot be made.
    """
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {VERSION}")
    for statement in TABLES.values():
        db.execute(statement)
    db.execute(_INSERT_STATE, state.row())


def write_state(db: sqlite3.Connection, state: RunState) -> None:
    """Write the run's row.

    Raises:
        sqlite3.Error: It cannot be written.
    """
    db.execute(_WRITE_STATE, state.row())


def read_state(db: sqlite3.Connection, place: str) -> RunState:
    """Return the run's row of a file of this version.

    Raises:
        JournalError: It is damaged.
        sqlite3.Error: The same, or it cannot be read.
    """
    rows = db.execute(_READ_STATE).fetchall()
    if len(rows) != 1:
        raise damaged(place, f"{len(rows)} runs in place of one")
    try:
        return RunState.read(rows[0])
    except DamagedRowError as error:
        raise damaged(place, str(error)) from error


def check(
    db: sqlite3.Connection, place: str, beside: sqlite3.Connection | None = None
) -> RunState:
    """Read a file of this version through, and return its run.

    The pages, the tables, and the sum of all checksums have to be as they were
    written. So a file that was cut short, or whose parts are of different moments, is
    found out at the start and not after a thousand refunds.

    Args:
        db: The file.
        place: Its name.
        beside: Another connection to it. Then also each item is checked, and that it
            is in its indexes: by these a writer finds what is open and what is there
            already. It takes seconds for a million items in place of a half of one.

    Raises:
        JournalError: It is damaged.
        sqlite3.Error: The same, or it cannot be read.
    """
    if beside is None:
        check_pages(db, place, indexes=False)
        return _check_tables(db, place, whole=False)
    # Each takes as long as the other, and SQLite lets other threads run meanwhile.
    with ThreadPoolExecutor(1, "async_refunds check") as other:
        try:
            pages = other.submit(check_pages, beside, place, indexes=True)
        except RuntimeError:  # no thread is to be had
            check_pages(beside, place, indexes=True)
            return _check_tables(db, place, whole=True)
        try:
            return _check_tables(db, place, whole=True)
        finally:
            pages.result()  # an error of the pages says more than what comes of it


def _check_tables(db: sqlite3.Connection, place: str, *, whole: bool) -> RunState:
    made = dict(db.execute("SELECT name, sql FROM sqlite_master").fetchall())
    for name, statement in TABLES.items():
        if made.get(name) != statement:
            raise damaged(place, f"{name} is not as it was made")
    db.execute("BEGIN")  # both from one moment, while another process writes
    try:
        state = read_state(db, place)
        ((count, last, total),) = [_summed(db, place)] if whole else db.execute(_SUMS)
    finally:
        db.execute("ROLLBACK")
    if not state.items == count == last or total != state.crc_sum:
        raise damaged(place, "its items are not those of the last commit")
    return state


def _summed(db: sqlite3.Connection, place: str) -> tuple[int, int, int]:
    """Return what `_SUMS` does, each item held against its checksum."""
    count = last = 0
    total = ClaimPages.read(db, place).crc_sum
    for row in db.execute(_ITEMS):
        try:
            item = Item.read(row)
        except DamagedRowError as error:
            raise damaged(place, str(error)) from error
        count, last, total = count + 1, item.number, total + item.crc
    return count, last, total


def check_pages(db: sqlite3.Connection, place: str, *, indexes: bool) -> None:
    """Read the structure of a file through, of any version.

    Raises:
        JournalError: It is damaged.
        sqlite3.Error: The same, or it cannot be read.
    """
    # One finding is enough (https://www.sqlite.org/pragma.html#pragma_integrity_check).
    how = "integrity_check" if indexes else "quick_check"
    ((found,),) = db.execute(f"PRAGMA {how}(1)")
    if found != "ok":
        raise damaged(place, found)
