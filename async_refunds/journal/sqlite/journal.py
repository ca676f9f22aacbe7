"""A journal in one SQLite file, written by one thread that commits for many."""

from __future__ import annotations

import secrets
import time
from asyncio import get_running_loop
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import msgspec

from async_refunds.errors import JournalError
from async_refunds.journal.base import BatchGuard, Claim, Tally
from async_refunds.protocol.redaction import scrub

from .file import opened
from .reader import all_records, read_page
from .schema import tally as counted

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from async_refunds.journal.base import Record, Run
    from async_refunds.results import CancelRequest, CancelResult

    from .writer import Writer

_LONGEST = 500  # characters of an error's text; Stripe's are a sentence or two

_ADD = "INSERT OR IGNORE INTO items (refund_id, stripe_account) VALUES (?, ?)"
# The index of open items has them by account and number. IS finds NULL too.
_NEXT = """SELECT number, refund_id, asked, idempotency_key, keyed_at FROM items
    WHERE stripe_account IS ? AND settled = 0 AND number > ? ORDER BY number LIMIT ?"""
_KEY = """UPDATE items SET idempotency_key = ?, keyed_at = ?, asked = 1
    WHERE number = ? AND settled = 0"""
_GIVE_BACK = "UPDATE items SET asked = 0 WHERE number = ? AND settled = 0"
_SETTLE = """UPDATE items SET outcome = ?, settled = ?, asked = ?, error = ?,
    seconds = ?, known_at = ?, attempts = attempts + ?, status = coalesce(?, status),
    request_id = coalesce(?, request_id),
    idempotency_key = coalesce(?, idempotency_key) WHERE number = ? AND settled = 0"""
_OWN = """SELECT EXISTS (SELECT 1 FROM items
    WHERE stripe_account IS NULL AND settled = 0)"""
# From account to account by the index, not over each of their items.
_ACCOUNTS = """WITH RECURSIVE names (name) AS (
    SELECT min(stripe_account) FROM items WHERE settled = 0
    UNION ALL
    SELECT (SELECT min(stripe_account) FROM items
            WHERE settled = 0 AND stripe_account > name)
        FROM names WHERE name IS NOT NULL)
    SELECT name FROM names WHERE name IS NOT NULL"""


class SqliteJournal(BatchGuard):
    """A `Journal` in one file, which one object at a time may write.

    What a method has returned from outlives a kill of the process and of the machine.
    One thread writes, and one commit serves all that waited for it. Close it with
    `close`, with `close_now`, or as a context manager, with ``async`` or without.

    Raises:
        JournalError: From any method, once the file could not be written, or after
            `close`. Nothing is written then any more.
    """

    def __init__(
        self,
        writer: Writer,
        run: Run,
        clock: Callable[[], float],
        new_key: Callable[[], str],
    ) -> None:
        """Use `open`."""
        super().__init__()
        self._writer, self._run = writer, run
        self._clock, self._new_key = clock, new_key
        self._given: dict[str | None, int] = {}  # the last number claimed, by account

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        run: Run | None = None,
        *,
        clock: Callable[[], float] = time.time,
        new_key: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> Self:
        """Open the journal of a run, or begin one in a file that is absent or empty.

        Blocks, as long as it takes to read the file through: a quarter of a second for
        a million items. What a killed process has left is mended.

        Args:
            path: One file per run; ``-wal``, ``-shm`` and ``-lock`` stand beside it
                until it is closed.
            run: What to begin, or to go on with: the base URL and the mode must be
                those of the file. Without it the file must hold a run.
            clock: Gives Unix seconds.
            new_key: Gives an idempotency key that nobody had before.

        Raises:
            JournalError: Another process uses it; another run, program or version; no
                run; or a file that cannot be read and written.
            TypeError: The run's options are nothing that JSON has.
        """
        writer, agreed = opened(path, run)
        return cls(writer, agreed, clock, new_key)

    @property
    def run(self) -> Run:
        """What the file says it is about."""
        return self._run

    def begin(self) -> None:
        """Begin a batch: every open item may be claimed, also one claimed before.

        Raises:
            JournalError: Another batch uses this object.
        """
        super().begin()
        self._given.clear()

    # ------------------------------------------------------------ without a loop

    def load(self, requests: Iterable[CancelRequest]) -> int:
        """Remember all of these items or, whatever happens, none.

        Blocks until they are kept; a million take some ten seconds, and the memory of
        a few.

        Returns:
            How many were not there before.

        Raises:
            TypeError: An id that is no ``str``.
            ValueError: An id that is no text.
            Exception: Whatever the iterable raises.
        """
        return self._writer.load(_ADD, map(_row, requests))

    def tally(self) -> Tally:
        """Count the items. Blocks, for about half a second with a million."""
        return self._writer.read(counted, Tally(0, Counter()))

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order, a page at a time.

        Blocks for each page, some milliseconds.
        """
        return all_records(self._page)

    def _page(self, after: int) -> list[Record]:
        none: list[Record] = []
        return self._writer.read(lambda db: read_page(db, after), none)

    def close_now(self) -> None:
        """Keep what is not yet kept, and let go; blocks until it is done."""
        thread = self._writer.end()
        if thread is not None:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_now()

    # ---------------------------------------------------------------- in a loop

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        """Remember these items; one that is there already is not there twice.

        Raises:
            TypeError: An id that is no ``str``; none of them is kept.
            ValueError: An id that is no text; the same.
        """
        rows = [_row(request) for request in requests]
        await self._writer.do(lambda db: db.executemany(_ADD, rows))

    async def claim(self, stripe_account: str | None, limit: int) -> list[Claim]:
        """Give out the next open items of an account, in input order.

        Each once in the life of this object. An item gets a fresh key if it never had
        one, or if what it had brought a definite no. Otherwise it is ``asked``, and
        its key and ``keyed_at`` are what they were.

        Raises:
            ValueError: A limit below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return await self._writer.do(
            lambda db: self._claimed(db, stripe_account, limit)
        )

    def _claimed(
        self, db: sqlite3.Connection, stripe_account: str | None, limit: int
    ) -> list[Claim]:
        last = self._given.get(stripe_account, 0)
        rows = db.execute(_NEXT, (stripe_account, last, limit)).fetchall()
        now = self._clock()
        claims: list[Claim] = []
        fresh: list[tuple[str, float, int]] = []
        for number, refund_id, asked, key, keyed_at in rows:
            if not asked:
                key, keyed_at = self._new_key(), now  # noqa: PLW2901 - as kept below
                fresh.append((key, keyed_at, number))
            claims.append(
                Claim(number, refund_id, stripe_account, key, keyed_at, bool(asked))
            )
        db.executemany(_KEY, fresh)
        if rows:
            self._given[stripe_account] = rows[-1][0]
        return claims

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a fresh key, which is kept.

        Raises:
            JournalError: It is settled. Nothing is written any more, as for any error.
        """
        return await self._writer.do(lambda db: self._rekeyed(db, claim))

    def _rekeyed(self, db: sqlite3.Connection, claim: Claim) -> Claim:
        key, now = self._new_key(), self._clock()
        if db.execute(_KEY, (key, now, claim.number)).rowcount != 1:
            raise JournalError(f"item {claim.number} is settled: it gets no other key")
        return msgspec.structs.replace(
            claim, idempotency_key=key, key_created_at=now, maybe_sent=False
        )

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Take back what was given out and never sent; the next claim keys it anew.

        What an earlier process may have sent stays as it is.
        """
        rows = [(claim.number,) for claim in claims if not claim.maybe_sent]
        await self._writer.do(lambda db: db.executemany(_GIVE_BACK, rows))

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep what became of items. One that is settled stays as it is."""
        now = self._clock()
        rows = [_settled(claim, result, now) for claim, result in known]
        await self._writer.do(lambda db: db.executemany(_SETTLE, rows))

    async def accounts(self) -> list[str | None]:
        """Return the accounts that have open items, ``None`` for the key's own."""
        return await self._writer.do(_accounts)

    async def close(self) -> None:
        """Keep what is not yet kept, and let go. May be called more than once."""
        done = get_running_loop().create_future()
        if self._writer.end(done) is not None:
            await done

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _row(request: CancelRequest) -> tuple[str, str | None]:
    """Return what is stored of a request.

    Raises:
        TypeError: An id that is no ``str``.
        ValueError: One with half a surrogate pair, which UTF-8 does not have.
    """
    refund_id, account = request.refund_id, request.stripe_account
    for name, value in (("refund_id", refund_id), ("stripe_account", account or "")):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
        if not value.isascii():
            value.encode()
    return refund_id, account


def _settled(claim: Claim, result: CancelResult, now: float) -> tuple[Any, ...]:
    refund, error, key = result.refund, result.error, result.idempotency_key
    # A definite no, so the next claim makes a fresh key: its answer may be saved under
    # this one. Yet if nothing was asked now, what an earlier process sent with it may
    # still have landed.
    refused = result.outcome == "failed" and not (key is None and claim.maybe_sent)
    return (
        result.outcome,
        result.settled,
        not refused,
        None if error is None else _told(error),
        result.seconds,
        now,
        len(result.attempts),
        None if refund is None else refund.status,
        result.request_id,
        key,
        claim.number,
    )


def _told(error: Exception) -> str:
    text = scrub(str(error))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return text.encode(errors="replace").decode()


def _accounts(db: sqlite3.Connection) -> list[str | None]:
    ((own,),) = db.execute(_OWN)
    named = [name for (name,) in db.execute(_ACCOUNTS)]
    return [None, *named] if own else named
