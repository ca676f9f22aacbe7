"""The thread that owns a journal's connection, and commits once for all who wait."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from async_refunds.errors import JournalError

from .errors import UNREADABLE, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from async_refunds.journal.base import Tally

    from .items import Items
    from .lock import Lock

T = TypeVar("T")

Operation: TypeAlias = "Callable[[sqlite3.Connection], Any]"
# With whether somebody waits for it.
Waiter: TypeAlias = "tuple[Operation, asyncio.Future[Any], bool]"

_LINGER = 1.0
"""Seconds after which a thread without work ends, so that a journal that is never
closed keeps no process alive. The next call starts another for some microseconds."""
_BUSY, _GATHER = 0.1, 0.05
"""Seconds. Where the last commit of something urgent is no longer ago than the first,
another one is about to come: what is not urgent waits so much longer, and goes with it.
It is PostgreSQL's commit_delay
(https://www.postgresql.org/docs/current/wal-configuration.html)."""
_STALLED = 60.0
"""Seconds after which a write counts as one that will not end: a disk that hangs.
SQLite waits for locks for at most ten, and a load of a million items takes as long."""
_CHUNK = 1000  # rows bound at once while loading: enough to forget the call's own cost


class Writer:
    """A connection in use by one thread at a time, and the thread for a loop's work.

    Raises:
        JournalError: From any method, once something could not be written, or after
            `end`. Nothing is written then any more.
    """

    def __init__(
        self, place: str, lock: Lock, db: sqlite3.Connection, items: Items
    ) -> None:
        """Take over an open connection, its tables, and the lock."""
        self._place, self._lock, self._db, self._items = place, lock, db, items
        # Held by the thread that uses the connection. An RLock: what a load reads may
        # come from the records.
        self._using = threading.RLock()
        self._reason: str | None = None  # why nothing is written any more
        # Guards what follows, and is notified of each change. Never held while waiting
        # for the other lock.
        self._changed = threading.Condition()
        self._waiting: list[Waiter] = []
        self._closers: list[asyncio.Future[None]] = []
        self._thread: threading.Thread | None = None
        self._urgent_at = -math.inf
        self._closing = self._closed = False
        # Whether a reader keeps the file behind the -wal.
        self._behind = False
        self._unchanged = 0
        self._files = {
            name: _identity(name) for name in (place, f"{place}-wal", f"{place}-lock")
        }

    # ------------------------------------------------------- from any thread

    def tally(self) -> Tally:
        """Return how far the run is, as of the last commit."""
        self._refuse()
        return self._items.kept

    def read(self, operation: Callable[[sqlite3.Connection], list[T]]) -> list[T]:
        """Return what it finds, nothing if there are no tables yet."""
        with self._using:
            self._refuse()
            if not self._items.made:
                return []
            with self._guarded():
                return operation(self._db)

    def load(self, rows: Iterable[tuple[Any, ...]]) -> int:
        """Add items in one transaction, and return how many were not there.

        Raises:
            Exception: Any that the iterable raises; nothing is added then.
        """
        rows = iter(rows)
        with self._using:
            self._refuse()
            try:
                with self._guarded():
                    self._begin()
                # Outside of the guard: an error of the iterable is not one of ours.
                while chunk := list(islice(rows, _CHUNK)):
                    with self._guarded():
                        self._items.insert(self._db, chunk)
                with self._guarded():
                    added = self._items.count_new(self._db)
                    self._commit()
            except BaseException:
                self._roll_back()
                raise
            self._shorten_wal()
            return added

    def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Return what an operation returned, once what it did is kept. Blocks."""
        with self._using:
            self._refuse()
            try:
                with self._guarded():
                    self._begin()
                    answer = operation(self._db)
                    self._commit()
            except BaseException as error:
                self._roll_back()
                self._fail(error)  # the sums are those of what was rolled back
                raise
            self._shorten_wal()
            return answer

    def _shorten_wal(self) -> None:
        """Empty the -wal, which is as large as all that a transaction has written.

        If a reader is in the way it stays so for a while.
        """
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def end(self, done: asyncio.Future[Any] | None = None) -> threading.Thread | None:
        """Have all that waits kept, then the file closed and the lock let go.

        Returns:
            The thread that does it and resolves ``done``; ``None`` if it is done.
        """
        with self._changed:
            if self._closed:
                return None
            self._closing = True
            if done is not None:
                self._closers.append(done)
            with suppress(RuntimeError):
                self._wake()
                return self._thread
        # No thread is to be had. Then none waits either.
        self._finish()
        return None

    # ------------------------------------------------------------ from a loop

    async def do(
        self, operation: Callable[[sqlite3.Connection], T], *, urgent: bool = True
    ) -> T:
        """Return what an operation returned, once what it did is kept.

        Args:
            operation: What to do with the connection, in a transaction.
            urgent: Whether somebody waits for it. What nobody waits for is kept with
                the next of those, if one is about to come.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._refuse()
            try:
                self._wake()
            except RuntimeError as error:  # no thread is to be had
                raise self._fail(error) from error
            self._waiting.append((operation, future, urgent))
        return await self.unless_stalled(future)

    async def unless_stalled(self, future: asyncio.Future[T]) -> T:
        """Wait for the thread.

        Raises:
            JournalError: It takes too long. Nothing more is written then.
        """
        try:
            async with asyncio.timeout(_STALLED):
                return await future
        except TimeoutError:
            stalled = JournalError(
                f"a write to the journal {self._place!r} has not ended in "
                f"{_STALLED:.0f} seconds: check the disk, then resume the run"
            )
            raise self._fail(stalled) from None

    # -------------------------------------------------------------- the thread

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="async_refunds journal")
            thread.start()
            self._thread = thread
        else:
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._next():
            self._perform(batch)

    def _next(self) -> list[Waiter]:
        """Wait for work, and return all of it; none if the thread is to end."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._waiting or self._closing, _LINGER
            ):
                self._thread = None
                return []
            if time.monotonic() - self._urgent_at < _BUSY:
                self._changed.wait_for(
                    lambda: self._closing or _is_urgent(self._waiting), _GATHER
                )
            batch, self._waiting = self._waiting, []
        if not batch:
            self._finish()
        return batch

    def _perform(self, batch: list[Waiter]) -> None:
        answers: list[Any]
        with self._using:
            try:
                self._begin()
                answers = [operation(self._db) for operation, _, _ in batch]
                self._commit()
            except BaseException as error:  # noqa: BLE001 - each caller gets it
                self._roll_back()
                failure = self._fail(error)
                answers = [JournalError(failure.message) for _ in batch]
        if _is_urgent(batch):
            self._urgent_at = time.monotonic()
        _deliver([future for _, future, _ in batch], answers)

    def _finish(self) -> None:
        with self._using:
            if self._reason is None:
                # Back to one file that can be read where nothing can be written: one
                # in WAL mode needs the files beside it
                # (https://www.sqlite.org/wal.html#read_only_databases). If a reader is
                # in the way they stay until the next time.
                with suppress(sqlite3.Error):
                    self._db.execute("PRAGMA journal_mode = DELETE")
            with suppress(sqlite3.Error):
                self._db.close()
            self._lock.release()
        with self._changed:
            self._closed, self._thread = True, None
            closers, self._closers = self._closers, []
        _deliver(closers, [None] * len(closers))

    # ------------------------------------------------ by the thread that holds _using

    def _begin(self) -> None:
        if self._reason is not None:
            raise JournalError(self._reason)
        for name, identity in self._files.items():
            # SQLite would go on writing into a file that no name leads to any more
            # (https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file_while_in_use).
            if identity != _identity(name):
                raise JournalError(
                    f"{name!r} was removed or replaced while the journal "
                    f"{self._place!r} was in use: put back what was there, or begin a "
                    f"run under another name"
                )
        self._unchanged = self._db.total_changes
        self._db.execute("BEGIN IMMEDIATE")
        self._items.begin(self._db)

    def _commit(self) -> None:
        if self._db.total_changes == self._unchanged:  # and no disk to wait for
            self._db.execute("COMMIT")
            if self._behind:
                self._copy_from_wal()
            return
        self._items.finish(self._db)
        self._db.execute("COMMIT")
        self._items.committed()
        self._copy_from_wal()

    def _copy_from_wal(self) -> None:
        """Bring what is committed into the file itself, so that the file is enough."""
        ((_, written, copied),) = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if copied < written and not self._behind:
            # A reader is in the way; ours take milliseconds. Another program's may take
            # hours: after one wait the run goes on, and the file gets it later.
            ((_, written, copied),) = self._db.execute("PRAGMA wal_checkpoint(FULL)")
        self._behind = copied < written

    def _roll_back(self) -> None:
        # After some errors SQLite has done it already
        # (https://www.sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction).
        with suppress(sqlite3.Error):
            self._db.rollback()

    def _refuse(self) -> None:
        if self._reason is not None:
            raise JournalError(self._reason)
        if self._closing:
            raise JournalError(f"the journal {self._place!r} is closed")

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except (*UNREADABLE, JournalError) as error:
            raise self._fail(error) from error

    def _fail(self, error: BaseException) -> JournalError:
        if self._reason is None:
            self._reason = explained(self._place, error).message
        return JournalError(self._reason)


def _is_urgent(waiting: list[Waiter]) -> bool:
    return any(urgent for _, _, urgent in waiting)


def _deliver(futures: list[asyncio.Future[Any]], answers: list[Any]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, answer in zip(futures, answers, strict=True):
        by_loop.setdefault(future.get_loop(), []).append((future, answer))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed, with its tasks
            loop.call_soon_threadsafe(_resolve, pairs)


def _resolve(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in pairs:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(answer, JournalError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - once a commit, so without a Path
    except OSError:
        return None
    return found.st_dev, found.st_ino
