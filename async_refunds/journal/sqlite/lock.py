"""One process at a time: locks that the system releases when their holder dies."""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
from contextlib import closing, suppress
from pathlib import Path

from async_refunds.errors import JournalError

from .errors import explained

if sys.platform == "linux":  # pragma: no branch - elsewhere it has no such lock
    import fcntl

_FAR = 1 << 62
"""An offset that no byte of the file has, and that SQLite does not lock
(https://www.sqlite.org/src/doc/trunk/src/os.h, PENDING_BYTE)."""


class Lock:
    """The right to write a journal, for as long as this object holds it.

    First by the name: an exclusive transaction, never ended, on an empty database
    beside the journal. Readers of the journal do not see it; SQLite does it on every
    system, with locks that end with their process; and it refuses a second holder in
    the same process, which locks of POSIX alone would not. Then, with `take_file`, by
    the file itself, which may have several names.

    Raises:
        JournalError: Another process holds it, or its file cannot be made.
    """

    def __init__(self, place: str) -> None:
        self._path = f"{place}-lock"
        self._file: int | None = None
        self._held: tuple[int, int] | None = None
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
                found = _identity(place)
                here = found is not None and found[:2] in _HELD
                raise _in_use(place, here=here) from error
            raise explained(self._path, error) from error
        return db

    def take_file(self, place: str) -> None:
        """Lock the file itself, whatever other names lead to it.

        Raises:
            JournalError: Another process holds it by another name, or it has one.
            OSError: It is gone.
        """
        found = os.stat(place)  # noqa: PTH116 - an identity, as elsewhere
        if found.st_nlink > 1:
            raise JournalError(
                f"the journal {place!r} has another name (a hard link), under which "
                f"another process could use it: remove one of the names, or make a copy"
            )
        # What follows sees a single file that is mounted at two places, where the locks
        # by name differ.
        if (found.st_dev, found.st_ino) in _HELD:
            raise _in_use(place, here=True)
        if sys.platform == "linux":  # pragma: no branch - as above
            self._lock_file(place, (found.st_dev, found.st_ino))

    def _lock_file(self, place: str, identity: tuple[int, int]) -> None:
        # A lock of the open file and not of the process: closing another descriptor of
        # the file does not end it (fcntl(2), "Open file description locks").
        try:
            self._file = os.open(place, os.O_RDWR)
        except PermissionError:
            return  # SQLite will not be able to write either, and says so
        self._held = identity
        _HELD.add(identity)
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _FAR, 1, 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError as error:
            raise _in_use(place, here=False) from error

    def release(self) -> None:
        """Let go, and leave no file behind. The second time does nothing.

        SQLite's connection to the journal has to be closed before: closing our own
        descriptor ends its locks
        (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
        """
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._held is not None:
            _HELD.discard(self._held)
            self._held = None
        # Removed while it is held, so that no other process can have it yet; and only
        # if it is ours: if ours was removed, another process may hold this one.
        if self._identity == _identity(self._path):
            with suppress(OSError):  # Windows removes no open file: it stays, empty
                Path(self._path).unlink()
        self._db.close()


_HELD: set[tuple[int, int]] = set()
"""The device and inode of each file that this process has locked. To try the lock would
open the file, and closing it would end the locks that SQLite has on it."""


def _in_use(place: str, *, here: bool) -> JournalError:
    if here:
        return JournalError(
            f"the journal {place!r} is in use by another batch of this process: wait "
            f"for its end. One that is left by `break` goes on until its generator is "
            f"closed: use `async with aclosing(cancel_many(...)) as results`"
        )
    return JournalError(
        f"the journal {place!r} is in use by another process (or another batch of this "
        f"one): wait for its end, or stop it"
    )


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
    # The time since an inode's number is soon given out again. It is never written.
    return found.st_dev, found.st_ino, found.st_ctime_ns
