"""Read a journal while a run goes on, or after, and change nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from async_refunds.errors import JournalError

from . import file
from .claim_pages import ClaimPages
from .errors import UNREADABLE, damaged, explained
from .lock import is_held
from .migration import migrate
from .rows import ITEM_COLUMNS, DamagedRowError, Item
from .schema import read_state

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator

    from async_refunds.journal.base import Record, Run, Tally

_PAGE = 1000  # records; a page is read in some milliseconds
_SELECT = f"SELECT {ITEM_COLUMNS} FROM items WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608 - our own names


def all_records(read: Callable[[int], list[Record]]) -> Iterator[Record]:
    """Yield the records of every page; ``read`` gets the number before the page."""
    last = 0
    while True:
        page = read(last)
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1].number


def read_page(db: sqlite3.Connection, place: str, after: int) -> list[Record]:
    """Return the records of the next items after a number, as many as a page holds.

    Raises:
        JournalError: They are damaged.
        sqlite3.Error: They cannot be read.
    """
    items: list[Item] = []
    for row in db.execute(_SELECT, (after, _PAGE)):
        try:
            items.append(Item.read(row))
        except DamagedRowError as error:
            raise damaged(place, str(error)) from error
    if not all(item.has_facts for item in items):
        _see_claims(db, place, items)
    return [item.record() for item in items]


def _see_claims(db: sqlite3.Connection, place: str, items: list[Item]) -> None:
    """Give the items that have no facts, and were given out, their keys."""
    pages, seed = ClaimPages.read(db, place), read_state(db, place).seed
    for item in items:
        if not item.has_facts:
            claimed_at = pages.claimed_at(item.stripe_account, item.number)
            if claimed_at is not None:
                item.new_key(seed, claimed_at)


def _copy(db: sqlite3.Connection, copy: sqlite3.Connection, target: str) -> None:
    try:
        db.backup(copy)
        # One file, like that of a run that has ended.
        copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise explained(target, error) from error


class JournalReader:
    """A journal for reading, also while another process writes it.

    The file is opened for each call, and for each page of `records`: a slow reader
    holds nothing up, and there is nothing to close. To make a reader reads the file
    through: half a second for a million items.

    Raises:
        JournalError: No journal, of another version, damaged, or not readable. From
            any method.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._place = file.resolved(path)
        self._migrated: sqlite3.Connection | None = None
        with self._opened() as db:
            version, state = file.examined(db, self._place, whole=False)
            if not version:
                raise JournalError(f"{self._place!r} holds no run")
            if state is None:
                self._migrated = self._copied(db)
                state = read_state(self._migrated, self._place)
        self._run = state.run
        self._commit = state.commit
        self._closed = state.closed

    def has_commit(self, commit: tuple[bytes, int]) -> bool:
        """Tell whether it has what `SqliteJournal.last_commit` is of, or more."""
        seed, commits = commit
        return self._commit[0] == seed and self._commit[1] >= commits

    def _copied(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Return a copy of a file of version 1, brought to this version."""
        # A file of SQLite's own that goes with the connection
        # (https://www.sqlite.org/inmemorydb.html#temp_db).
        copy = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        db.backup(copy)
        copy.execute("BEGIN")
        migrate(copy, self._place)
        copy.execute("COMMIT")
        return copy

    @property
    def run(self) -> Run:
        """What it is about."""
        return self._run

    @property
    def run_closed(self) -> bool:
        """Whether nothing more of it is sent, but what was perhaps sent."""
        return self._closed

    @property
    def in_use(self) -> bool:
        """Whether a process is working on the run now."""
        return is_held(self._place)

    def tally(self) -> Tally:
        """Return how far the run is."""
        with self._opened() as db:
            return read_state(db, self._place).tally

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order, a page at a time.

        Of a run that goes on, each page is as of when it was read.
        """
        return all_records(self._page)

    def _page(self, after: int) -> list[Record]:
        with self._opened() as db:
            return read_page(db, self._place, after)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the journal, as of one moment, to a file that is not there yet.

        Also while a run writes it. Blocks: a million items take about a second. A copy
        can be read, and a run can go on from it: its idempotency keys are the same.

        Raises:
            JournalError: There is a file already, or it cannot be written.
        """
        target = file.resolved(path)
        file.refuse(target, new=True)
        try:
            file.make(target, new=True)
        except OSError as error:
            raise explained(target, error) from error
        try:
            with self._opened() as db, closing(file.connect(target, "rw")) as copy:
                _copy(db, copy, target)
        except BaseException:
            for end in ("-journal", ""):  # half a copy is of no use
                Path(f"{target}{end}").unlink(missing_ok=True)
            raise

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        if self._migrated is not None:
            yield self._migrated
            return
        file.refuse(self._place, new=False)
        try:
            with closing(file.connect(self._place, "ro")) as db:
                yield db
        except UNREADABLE as error:
            raise explained(self._place, error) from error
