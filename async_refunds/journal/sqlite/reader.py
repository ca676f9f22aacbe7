"""Read a journal while a run goes on, or after, and change nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.errors import JournalError
from async_refunds.results import CancelOutcome  # noqa: TC001 - a struct's field

from .file import connect, refuse, resolved
from .lock import is_held
from .schema import OUTCOME, check, explained, stored_run, tally

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator

    from .schema import Run, Tally

_PAGE = 1000  # records; a page is read in some milliseconds

# In the order of the record's fields.
_SELECT = f"""SELECT number, refund_id, stripe_account, {OUTCOME}, status,
    idempotency_key, attempts, request_id, error, seconds, settled
    FROM items WHERE number > ? ORDER BY number LIMIT ?"""  # noqa: S608 - ours


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a journal knows of one refund."""

    number: int
    """Its place in the input, from 1, its repetitions left out."""
    refund_id: str
    stripe_account: str | None
    outcome: CancelOutcome | None
    """``None`` if it was never asked; ``unknown`` also while it is under way."""
    status: str | None
    """The refund's, as last seen."""
    idempotency_key: str | None
    """The latest one, sent or about to be; ``None`` before the first."""
    attempts: int
    """Requests for it, over all processes, as far as their results are known."""
    request_id: str | None
    """Stripe's name for the last exchange that has one, ``req_...``."""
    error: str | None
    seconds: float | None
    """How long the last result took; ``None`` if there is none."""
    settled: bool
    """Whether a resumed run leaves it alone."""


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
        last = 0
        while True:
            with self._opened() as db:
                rows = db.execute(_SELECT, (last, _PAGE)).fetchall()
            for *known, settled in rows:
                fields: list[Any] = [*known, bool(settled)]
                yield Record(*fields)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        refuse(self._place, new=False)
        try:
            with closing(connect(self._place, "ro")) as db:
                yield db
        except sqlite3.Error as error:
            raise explained(self._place, error) from error
