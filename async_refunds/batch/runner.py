"""`cancel_many`, and `Batch` for a caller that watches it or stops it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from async_refunds.client import RefundsClient, digest_of, load_key
from async_refunds.journal import (
    WINDOW,
    MemoryJournal,
    Run,
    open_journal,
    require_target,
)
from async_refunds.protocol import validation

from .execution import Execution
from .scheduler import Figures

if TYPE_CHECKING:
    from async_refunds.journal import Journal
    from async_refunds.results import CancelResult

    from .source import Requests


class Progress(msgspec.Struct, frozen=True):
    """How far a batch has come."""

    outcomes: Counter[str]
    """How many refunds came to which outcome."""
    under_way: int
    waiting: int
    """How many refunds wait for another try."""
    requests: int
    """Sent in all, reads included."""
    retries: int
    """How many of these repeated a request."""
    rate: float
    """Requests a second that the pace allows now, over all accounts with items."""
    in_trouble: bool
    """Whether an account's pace is down because Stripe fails."""


async def cancel_many(
    refunds: RefundsClient,
    requests: Requests,
    *,
    concurrency: int = 50,
    rate: float | None = None,
    journal: str | os.PathLike[str] | Journal | None = None,
    patience: float = 120.0,
    timeout: float | None = None,  # noqa: ASYNC109 - of each call, as the client has it
) -> AsyncGenerator[CancelResult]:
    """Cancel refunds by the thousand, and yield the result of each as it ends.

    At most ``concurrency`` are under way at a time, at a pace per account that finds
    Stripe's limit by itself. What happens to one refund is a result, never an
    exception. The input is read as it is needed, and memory does not grow with it: up
    to 2,000 refunds ahead, or 100,000 into a journal.

    With a journal, a run survives a kill at any moment: the key of a refund is on disk
    before anything is sent for it, and its result before you get it. Begin with the
    same journal again (with the same input, with ``()``, or with more): the batch skips
    what is settled, and asks again with the same key for what was under way. Without a
    journal, a refund that is in the input twice is canceled once; it has two results
    only if its places are far apart, and the second is ``already_canceled``.

    To leave the loop early, close the generator (``contextlib.aclosing``): nothing more
    begins, and what is under way has ten seconds to end. The same happens when your
    task is cancelled. Results that you do not take are in the journal, or in the log.

    Args:
        refunds: The client, which stays open.
        requests: Ids, or `CancelRequest`s; any iterable, also an asynchronous one.
        concurrency: The most refunds under way at once.
        rate: Requests a second for each account. Without it the pace starts at 20, and
            rises until Stripe says that it is too much.
        journal: A path: an SQLite file, made if it is not there. Or a `Journal`.
        patience: Seconds for which a refund is tried again while Stripe cannot be
            reached, fails, or limits, counted from its first request. Once Stripe has
            only failed for so long, refunds that were not sent yet end as ``failed``
            without being tried; so they do after five seconds if it never answered.
        timeout: Seconds for each call, in place of the policy's deadline. It begins
            when the refund's turn has come.

    Yields:
        A `CancelResult` for each refund. Its ``outcome`` is ``canceled`` (by this
        batch), ``already_canceled`` (by somebody else), ``not_cancelable`` (see its
        ``refund``), ``failed`` (this batch canceled nothing: see its ``error``), or
        ``unknown``: the refund may be canceled, and a call with the result's
        ``idempotency_key`` finds out.

    Raises:
        JournalError: The journal cannot be used or written: nothing more was sent, and
            the next run with it asks again for what was under way. Or some refunds
            have no result, since a run in PostgreSQL is paused, or another process
            has taken an account over: raised after all results.
        AuthenticationError, APITimeoutError: There is a journal, and the client's
            callable gave no key; nothing was sent.
        TypeError, ValueError: A bad argument; nothing was sent.
        RuntimeError: The client or its session is closed, or of another event loop.
        Exception: What the input raised, after the results of all that it had given.
    """
    batch = Batch(
        refunds,
        requests,
        concurrency=concurrency,
        rate=rate,
        journal=journal,
        patience=patience,
        timeout=timeout,
    )
    async with aclosing(batch.results()) as results:
        async for result in results:
            yield result


class Batch:
    """One run of `cancel_many`, for a caller that watches it or stops it.

    Args and raises: as `cancel_many`, at once.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        requests: Requests,
        *,
        concurrency: int = 50,
        rate: float | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        patience: float = 120.0,
        timeout: float | None = None,
    ) -> None:
        if not isinstance(refunds, RefundsClient):
            raise TypeError("refunds must be a RefundsClient")
        if isinstance(requests, (str, bytes)) or not isinstance(
            requests, (Iterable, AsyncIterable)
        ):
            raise TypeError("requests must be an iterable of ids or CancelRequests")
        if not (
            journal is None
            or isinstance(journal, (str, os.PathLike))
            or (hasattr(journal, "claim") and not isinstance(journal, type))
        ):
            raise TypeError("journal must be the path of a file, or a Journal")
        self._refunds = refunds
        self._requests = requests
        self._concurrency = validation.whole("concurrency", concurrency, least=1)
        self._rate = None if rate is None else validation.rate("rate", rate)
        self._patience = validation.seconds("patience", patience)
        self._timeout = (
            None if timeout is None else validation.seconds("timeout", timeout)
        )
        self._journal = journal
        self._begun = self._stopping = False
        self._execution: Execution | None = None

    def stop(self) -> None:
        """Begin nothing more; the results of what is under way still come."""
        self._stopping = True
        if self._execution is not None:
            self._execution.stop()

    def interrupt(self) -> None:
        """Begin nothing more, and wait for nothing: what is under way is unknown."""
        self._stopping = True
        if self._execution is not None:
            self._execution.interrupt()

    def progress(self) -> Progress:
        """Return how far the batch has come."""
        execution = self._execution
        figures = Figures() if execution is None else execution.figures()
        return Progress(
            outcomes=Counter({} if execution is None else execution.outcomes),
            under_way=figures.under_way,
            waiting=figures.waiting,
            requests=figures.requests,
            retries=figures.retries,
            rate=figures.rate,
            in_trouble=figures.in_trouble,
        )

    async def results(self) -> AsyncGenerator[CancelResult]:
        """Run, and yield the result of each refund as it ends. See `cancel_many`."""
        if self._begun:
            raise RuntimeError("a batch runs once: make another one")
        self._begun = True
        if self._journal is not None:  # which keeps the mode
            await load_key(self._refunds, self._timeout)
        journal, opened = self._open()
        try:
            journal.begin(digest_of(self._refunds))
            try:
                async with aclosing(self._execute(journal).results()) as results:
                    async for result in results:
                        yield result
            finally:
                journal.end()
        finally:
            if opened:
                await journal.close()

    def _open(self) -> tuple[Journal, bool]:
        """Return the journal, and whether this batch is to close it."""
        if self._journal is None:
            return MemoryJournal(window=max(WINDOW, 2 * self._concurrency)), True
        run = Run(base_url=self._refunds.base_url, livemode=self._refunds.livemode)
        if isinstance(self._journal, (str, os.PathLike)):
            return open_journal(self._journal, run), True
        require_target(self._journal.run, run)
        return self._journal, False

    def _execute(self, journal: Journal) -> Execution:
        self._execution = Execution(
            self._refunds,
            self._requests,
            journal,
            concurrency=self._concurrency,
            rate=self._rate,
            patience=self._patience,
            timeout=self._timeout,
            log_untaken=self._journal is None,
        )
        if self._stopping:
            self._execution.stop()
        return self._execution
