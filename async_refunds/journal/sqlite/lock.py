"""One process at a time: a lock that the system lets go of when its holder dies."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from async_refunds.errors import JournalError

from .schema import explained


class Lock:
    """The right to write a journal, for as long as this object holds it.

    An exclusive transaction, never ended, on an empty database beside the journal.
    Readers of the journal do not see it; SQLite does it on every system, with locks
    that end with their process; and it refuses a second holder in the same process,
    which locks of POSIX alone would not. On the journal's own file we may take none:
    a process that closes any descriptor of a file loses all of its locks there
    (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).

    Raises:
        JournalError: Somebody has it, or its file cannot be made.
    """

    def __init__(self, place: str) -> None:
        self._path = f"{place}-lock"
        while True:
            before = _identity(self._path)
            self._db = self._locked(place)
            # Its last holder may have removed the file after we opened it, and a third
            # process made another: what we hold is good if the name still leads to it.
            if before is not None and before == _identity(self._path):
                break
            self._db.close()
        if Path(self._path).stat().st_size:
            self._db.close()
            raise JournalError(
                f"{self._path!r} is in the way of the journal's lock, and not empty: "
                f"move it elsewhere"
            )
        self._identity = before

    def _locked(self, place: str) -> sqlite3.Connection:
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(
                self._path, timeout=0, isolation_level=None, check_same_thread=False
            )
            # Nothing is ever written, so there is nothing to roll back from a file.
            db.execute("PRAGMA journal_mode = MEMORY")
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if db is not None:
                db.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise JournalError(
                    f"the journal {place!r} is in use by another process (or another "
                    f"batch of this one): wait for its end, or stop it"
                ) from error
            raise explained(self._path, error) from error
        return db

    def release(self) -> None:
        """Let go, and leave no file behind. The second time does nothing."""
        # Removed while it is held, so that nobody can have it yet; and only if it is
        # ours: whoever removed that one may have let another process in.
        if self._identity == _identity(self._path):
            with suppress(OSError):  # Windows removes no open file: it stays, empty
                Path(self._path).unlink()
        self._db.close()


def is_held(place: str) -> bool:
    """Tell whether a process holds the lock of a journal; changes nothing."""
    if not Path(f"{place}-lock").exists():
        return False
    try:
        # Read only: it must not make the file that the holder is removing.
        name = f"{Path(f'{place}-lock').resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(name, timeout=0, uri=True)) as db:
            db.execute("SELECT count(*) FROM sqlite_schema")
    except sqlite3.Error as error:
        return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    return False


def _identity(path: str) -> tuple[int, int, int] | None:
    """Return what tells a file from another one that had or will have its name."""
    try:
        found = os.stat(path)  # noqa: PTH116 - the fields, at the cost of one call
    except OSError:
        return None
    # The time since an inode's number is soon given out again. Nobody writes it.
    return found.st_dev, found.st_ino, found.st_ctime_ns
