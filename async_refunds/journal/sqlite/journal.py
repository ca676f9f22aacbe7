"""A journal in one SQLite file, written by one thread that commits for many callers."""

from __future__ import annotations

import os
import time
from asyncio import get_running_loop
from typing import TYPE_CHECKING, Any, Self

from async_refunds.journal.base import (
    BatchGuard,
    Claim,
    Run,
    RunClosedError,
    Tally,
    check_limits,
)

from .file import opened
from .reader import all_records, read_page
from .rows import new_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from async_refunds.journal.base import Record
    from async_refunds.results import CancelRequest, CancelResult

    from .items import Items
    from .writer import Writer


class SqliteJournal(BatchGuard):
    """A `Journal` in one file, which one object at a time may write.

    When a method has returned, what it did survives a kill of the process and of the
    machine, and is in the file itself, not only in the ``-wal`` beside it. One thread
    writes, and one commit serves all callers that wait for it. Close it with `close`,
    with `close_now`, or as a context manager, with ``async`` or without.

    Raises:
        JournalError: From any method, once the file could not be written, or after
            `close`. Nothing is written then any more.
    """

    def __init__(self, place: str, writer: Writer, items: Items, run: Run) -> None:
        """Use `open`."""
        super().__init__()
        self._place, self._writer, self._items, self._run = place, writer, items, run

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        run: Run | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the journal of a run, or begin one in a file that is absent or empty.

        Blocks, as long as it takes to read the file through: three seconds or so for a
        million items. What a killed process has left is repaired. A file of version 1
        is brought to this version: ten seconds for a million items.

        Args:
            path: One file per run; ``-wal``, ``-shm`` and ``-lock`` stand beside it
                until it is closed.
            run: What to begin, or to go on with: the base URL and the mode must be
                those of the file. Without it the file must hold a run.
            clock: Gives Unix seconds.

        Raises:
            JournalError: Another process uses it; another run, program or version; no
                run; or a file that cannot be read and written.
            TypeError: The run's options are not what JSON has.
        """
        return cls(os.fspath(path), *opened(path, run, clock))

    leases = None  # nobody shares it

    @property
    def run(self) -> Run:
        """What the file says it is about."""
        return self._run

    @property
    def run_closed(self) -> bool:
        """Whether `close_run` closed it."""
        return self._items.closed

    @property
    def last_commit(self) -> tuple[bytes, int]:
        """Which run it is, and how many commits changed it; see `JournalReader`."""
        return self._items.last_commit

    def now(self) -> float:
        """See `Journal.now`."""
        return self._items.now()

    def begin(self, credentials: str = "") -> None:
        """Begin a batch; see `Journal.begin`.

        Raises:
            JournalError: Another batch uses this object.
        """
        super().begin(credentials)
        self._items.start(credentials)

    # ------------------------------------------------------------ without a loop

    def load(self, requests: Iterable[CancelRequest]) -> int:
        """Add all of these items or, if anything fails, none.

        Blocks until they are kept; a million take some ten seconds, and the memory of
        a few.

        Returns:
            How many were not there before.

        Raises:
            TypeError: An id that is no ``str``.
            ValueError: An id that is no text.
            Exception: Any that the iterable raises.
        """
        return self._writer.load(map(_row, requests))

    def tally(self) -> Tally:
        """Return how far the run is, as of the last commit."""
        return self._writer.tally()

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, in input order, a page at a time.

        Blocks for each page, some milliseconds.
        """
        return all_records(self._page)

    def _page(self, after: int) -> list[Record]:
        return self._writer.read(lambda db: read_page(db, self._place, after))

    def close_run(self) -> int:
        """Have nothing more of the run sent, for good, but what was perhaps sent.

        Any other open item is settled as ``failed``. What was perhaps sent stays open,
        and a batch still asks for it; a definite no to it is its end. The run takes no
        more items. Blocks until all of it is kept, some fifteen seconds for a million
        items; a kill before that changes nothing.

        Returns:
            How many items it settled; none the second time.

        Raises:
            JournalError: A batch uses this object.
        """
        super().begin()
        try:
            return self._writer.write(self._items.close)
        finally:
            self.end()

    def close_now(self) -> None:
        """Keep what is not kept yet, and release the file; blocks until it is done."""
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
        """Add these items. An item that is there already is not added again.

        Raises:
            TypeError: An id that is no ``str``; none of them is kept.
            ValueError: An id that is no text; the same.
        """
        rows = [_row(request) for request in requests]
        await self._writer.do(lambda db: self._items.add(db, rows), urgent=False)

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        """Give out the next open items of some accounts; see `Journal.claim`.

        Raises:
            ValueError: A limit below 1.
        """
        check_limits(limits)
        # A batch claims ahead of need.
        return await self._writer.do(
            lambda db: self._items.claim(db, limits), urgent=False
        )

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a new key, which is kept.

        Raises:
            JournalError: It is settled. Nothing is written any more, as for any error.
            RunClosedError: The run is closed.
        """
        if self.run_closed:
            raise RunClosedError
        return await self._writer.do(lambda db: self._items.rekey(db, claim))

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Take back items that were never sent; the next batch gets them.

        What an earlier batch may have sent stays ``maybe_sent``.
        """
        await self._writer.do(lambda db: self._items.give_back(db, claims))

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep what became of items. An item that is settled stays as it is."""
        await self._writer.do(lambda db: self._items.settle(db, known))

    async def hand_over(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep the results: nobody shares it."""
        await self.settle(known)

    async def accounts(self) -> list[str | None]:
        """Return the accounts that have open items, ``None`` for the key's own."""
        return await self._writer.do(self._items.accounts)

    async def close(self) -> None:
        """Keep what is not kept yet, and release the file. May be called twice.

        Raises:
            JournalError: A write does not end.
        """
        done = get_running_loop().create_future()
        if self._writer.end(done) is not None:
            await self._writer.unless_stalled(done)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _row(request: CancelRequest) -> tuple[Any, ...]:
    """Return what is inserted of a request.

    Raises:
        TypeError: An id that is no ``str``.
        ValueError: One with half a surrogate pair, which UTF-8 does not have.
    """
    refund_id, account = request.refund_id, request.stripe_account
    _require_text("refund_id", refund_id)
    if account is not None:
        _require_text("stripe_account", account)
    return new_row(refund_id, account)


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not value.isascii():
        value.encode()
