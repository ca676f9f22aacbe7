"""From a path to a file that this process alone may write, or a sentence why not."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from async_refunds.errors import JournalError
from async_refunds.journal.base import require_target

from .lock import Lock
from .schema import check, create, explained, stored_run
from .writer import Writer

if TYPE_CHECKING:
    from async_refunds.journal.base import Run

PATIENCE = 5.0
"""Seconds to wait for a lock that somebody holds: a reader's or a backup's is short."""
_CACHE = 8_000  # KiB; ids come in no order, so the index's pages are wanted again

_HEADER = 100
"""Bytes at the start of any database (https://www.sqlite.org/fileformat.html). SQLite
takes a file of one byte for an empty one, and would write over it."""


def opened(path: str | os.PathLike[str], run: Run | None) -> tuple[Writer, Run]:
    """Return the right to write a file, and what it is about.

    Raises:
        JournalError: Another process uses it; another run, program or version; no
            run; or a file that cannot be read and written.
        TypeError: The run's options are nothing that JSON has.
    """
    if run is not None:
        msgspec.json.encode(run.options)
    place = resolved(path)
    refuse(place, new=run is not None)
    lock = Lock(place)
    db: sqlite3.Connection | None = None
    try:
        if run is not None:
            _make(place)
        db = connect(place, "rw")
        stored = stored_run(db, place)
        agreed = _agreed(place, stored, run)
        check(db, place)
        _prepare(db)
        first = None if stored else partial(create, run=agreed)
        writer = Writer(place, lock, db, first)
    except BaseException as error:
        if db is not None:
            db.close()
        lock.release()
        if isinstance(error, (sqlite3.Error, OSError)):
            raise explained(place, error) from error
        raise
    return writer, agreed


def resolved(path: str | os.PathLike[str]) -> str:
    """Return the one name of a file, so that its lock has one name too."""
    # SQLite follows a symbolic link to name the -wal, and so must we.
    return os.path.realpath(os.fspath(path))


def refuse(place: str, *, new: bool) -> None:
    """Refuse, before anything is made, a place that can hold no journal.

    Raises:
        JournalError: A missing file (unless ``new``) or folder, or no plain file.
    """
    try:
        _look(Path(place), new=new)
    except OSError as error:
        raise explained(place, error) from error


def _look(path: Path, *, new: bool) -> None:
    place = str(path)
    if not path.parent.is_dir():
        raise JournalError(
            f"the journal {place!r} has no folder to be in: make {str(path.parent)!r}"
        )
    size = 0
    if path.exists():
        if not path.is_file():
            raise JournalError(
                f"the journal {place!r} is no file, but a folder or a device: give the "
                f"path of a file"
            )
        size = path.stat().st_size
    elif not new:
        raise JournalError(f"there is no journal {place!r}: see to the path")
    if 0 < size < _HEADER:
        raise JournalError(f"{place!r} is too short for a journal: give another path")
    wal = Path(f"{place}-wal")
    # SQLite would throw away what the -wal still has. No kill leaves it like this: the
    # file has its first page before there is a -wal.
    if not size and wal.exists() and wal.stat().st_size:
        raise JournalError(
            f"the journal {place!r} was emptied or removed, and what {str(wal)!r} has "
            f"does not stand alone: put back a copy, or give another path"
        )


def connect(place: str, mode: str) -> sqlite3.Connection:
    """Open a file that is there (``rw``, ``ro``), in no transaction.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    # As a URI, since only that keeps SQLite from making a file
    # (https://www.sqlite.org/uri.html#urimode).
    return sqlite3.connect(
        f"{Path(place).as_uri()}?mode={mode}",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,  # one thread at a time has it: whoever holds the lock
    )


def _make(place: str) -> None:
    # It holds ids and keys, which are nobody else's business; the -wal gets the mode
    # of the file. Nobody but us is here: we have the lock.
    with suppress(FileExistsError):
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _agreed(place: str, stored: Run | None, run: Run | None) -> Run:
    if stored is None:
        if run is None:
            raise JournalError(
                f"the journal {place!r} holds no run: it was not begun, or its items "
                f"were not all there when it was killed; begin it again"
            )
        return run
    if run is not None:
        require_target(stored, run, f"the journal {place!r}")
    return stored


def _prepare(db: sqlite3.Connection) -> None:
    # With a -wal, readers and the writer are in nobody's way; a commit is on the disk
    # before it returns only if synchronous is FULL, and on macOS with fullfsync
    # (https://www.sqlite.org/pragma.html#pragma_synchronous).
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA cache_size = -{_CACHE}")
    # Finds out now whether it may be written, and makes the -wal.
    db.execute("BEGIN IMMEDIATE")
    db.execute("ROLLBACK")
