"""Read a journal while a run goes on, or after, and change nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from async_refunds.errors import JournalError
from async_refunds.journal.base import Record

from .file import connect, refuse, resolved
from .lock import is_held
from .schema import OUTCOME, check, explained, stored_run, tally

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator

    from async_refunds.journal.base import Run, Tally

_PAGE = 1000  # records; a page is read in some milliseconds

# In the order of the record's fields.
_SELECT = f"""SELECT number, refund_id, stripe_account, {OUTCOME}, status,
    idempotency_key, attempts, request_id, error, seconds, settled
    FROM items WHERE number > ? ORDER BY number LIMIT ?"""  # noqa: S608 - ours


def all_records(read: Callable[[int], list[Record]]) -> Iterator[Record]:
    """Yield the records of every page; ``read`` gets the number before the page."""
    last = 0
    while True:
        page = read(last)
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1].number


def read_page(db: sqlite3.Connection, after: int) -> list[Record]:
    """Return the records of the next items after a number, as many as a page holds.

    Raises:
        sqlite3.Error: They cannot be read.
    """
    rows = db.execute(_SELECT, (after, _PAGE)).fetchall()
    fields: list[list[Any]] = [[*known, bool(settled)] for *known, settled in rows]
    return [Record(*each) for each in fields]


class JournalReader:
    """A journal for reading, also while another process writes it.

    The file is opened for each call, and for each page of `records`: nobody has to
    wait for a slow reader, and there is nothing to close. To make one reads the file
    through: a quarter of a second for a million items.

    Raises:
        JournalError: No journal, of another version, damaged, or not readable. From
            any method.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._place = resolved(path)
        with self._opened() as db:
            run = stored_run(db, self._place)
            check(db, self._place)
        if run is None:
            raise JournalError(f"{self._place!r} holds no run")
        self._run = run

    @property
    def run(self) -> Run:
        """What it is about."""
        return self._run

    @property
    def in_use(self) -> bool:
        """Whether a process is working on the run now."""
        return is_held(self._place)

    def tally(self) -> Tally:
        """Count the items. A million take about half a second."""
        with self._opened() as db:
            return tally(db)

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order, a page at a time.

        Of a run that goes on, each page is as of when it was read.
        """
        return all_records(self._page)

    def _page(self, after: int) -> list[Record]:
        with self._opened() as db:
            return read_page(db, after)

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        refuse(self._place, new=False)
        try:
            with closing(connect(self._place, "ro")) as db:
                yield db
        except sqlite3.Error as error:
            raise explained(self._place, error) from error
