"""Cancel many refunds: bounded workers over any input, and every id accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from async_refunds.client import RefundsClient
from async_refunds.errors import JournalError
from async_refunds.journal import (
    WINDOW,
    MemoryJournal,
    Run,
    open_journal,
    require_target,
)
from async_refunds.protocol import validation
from async_refunds.protocol.redaction import scrub

from . import source
from .rate_control import RateController
from .scheduler import Scheduler
from .worker import CancelWorker

if TYPE_CHECKING:
    from async_refunds.journal import Claim, Journal
    from async_refunds.results import CancelRequest, CancelResult

    from .account_queue import Item
    from .source import Requests

logger = logging.getLogger("async_refunds")

# Seconds. What is under way when nobody waits for it any more has so long to end.
# Stripe answers in one or two.
_GRACE = 10.0


class Progress(msgspec.Struct, frozen=True):
    """How far a batch has come."""

    outcomes: Counter[str]
    """How many refunds came to which outcome."""
    under_way: int
    waiting: int
    """How many, of those asked already, wait to be asked again."""
    requests: int
    """Sent in all, reads included."""
    retries: int
    """Of these, how many asked for the same once more."""
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
    """Cancel refunds by the thousand, and tell of each as it ends.

    At most ``concurrency`` are under way at a time, at a pace per account that finds
    Stripe's limit by itself. What happens to one refund is a result, never an
    exception; the input is read as it is needed, and memory does not grow with it.

    With a journal, a run survives being killed at any moment: the key of a refund is on
    disk before anything is sent for it, and the result before it is told. Begin with
    the same journal again (with the same input, with ``()``, or with more), and what is
    settled is skipped, and what was under way is asked again with the same key.
    Without one, a refund that is in the input twice is canceled once, and told twice
    only if they are far apart: then the later one is ``already_canceled``.

    To leave the loop early, close the generator (``contextlib.aclosing``): nothing more
    is begun, and what is under way has ten seconds to end. So it is when the task is
    cancelled. What nobody is told any more is in the journal, or in the log.

    Args:
        refunds: The client, which stays open.
        requests: Ids, or `CancelRequest`s; any iterable, also an asynchronous one.
        concurrency: The most refunds under way at once.
        rate: Requests a second for each account. Without it the pace starts at 20, and
            goes up until Stripe says that it is too much.
        journal: A path: an SQLite file, made if it is not there.
        patience: Seconds for which a refund is asked for again while Stripe cannot be
            reached, fails, or limits, counted from its first request.
        timeout: Seconds for each call, in place of the policy's deadline. It begins
            when the refund's turn has come.

    Raises:
        JournalError: The journal is of no use, or could not be written: nothing more
            was sent, and what was under way is asked again when the run goes on.
        TypeError, ValueError: An argument that cannot be right; nothing is sent.
        RuntimeError: The client is closed, or of another event loop.
        Exception: Whatever the input raised, after what it had given before.
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
    """One run of `cancel_many`, for who wants to watch it and to stop it.

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
        self._refunds = refunds
        self._requests = requests
        self._concurrency = validation.whole("concurrency", concurrency, least=1)
        self._rate = None if rate is None else validation.rate("rate", rate)
        self._patience = validation.seconds("patience", patience)
        self._timeout = (
            None if timeout is None else validation.seconds("timeout", timeout)
        )
        self._journal = journal
        self._outcomes: Counter[str] = Counter()
        self._turns: Scheduler | None = None
        self._begun = self._stopping = self._over = False
        self._error: Exception | None = None
        self._asking: set[asyncio.Task[None]] = set()
        # What is known and not yet recorded: a commit serves all that came meanwhile.
        self._known: list[tuple[Claim, CancelResult]] = []
        self._news = asyncio.Event()
        self._told: asyncio.Queue[CancelResult | None] = asyncio.Queue()
        # As many results as refunds under way may wait to be told. Room is waited for
        # before anything is asked: a result that is known never waits.
        self._untold = 0
        self._room = asyncio.Event()
        self._room.set()

    def stop(self) -> None:
        """Begin nothing more; the results of what is under way still come."""
        self._stopping = True
        self._room.set()  # for those who wait for it to find that it is over
        if self._turns is not None:
            self._turns.stop()

    def interrupt(self) -> None:
        """Begin nothing more, and wait for nothing: what is under way is unknown."""
        self.stop()
        for task in self._asking:
            task.cancel()

    def progress(self) -> Progress:
        """Return how far it has come."""
        lanes = [] if self._turns is None else list(self._turns.lanes.values())
        busy = [lane for lane in lanes if lane.under_way or not lane.empty]
        return Progress(
            outcomes=Counter(self._outcomes),
            under_way=0 if self._turns is None else self._turns.under_way,
            waiting=sum(len(lane.again) for lane in lanes),
            requests=sum(lane.requests for lane in lanes),
            retries=sum(lane.retries for lane in lanes),
            rate=sum(lane.pace.rate for lane in busy),
            in_trouble=any(lane.pace.in_trouble for lane in busy),
        )

    async def results(self) -> AsyncGenerator[CancelResult]:
        """Run, and tell of each refund as it ends, once. See `cancel_many`."""
        if self._begun:
            raise RuntimeError("a batch runs once: make another one")
        self._begun = True
        journal, opened = self._opened()
        journal.begin()
        try:
            async with aclosing(self._run(journal)) as results:
                async for result in results:
                    yield result
        finally:
            journal.end()
            if opened:
                await journal.close()

    def _opened(self) -> tuple[Journal, bool]:
        """Return the journal, and whether it is this batch's to close."""
        if self._journal is None:
            return MemoryJournal(window=max(WINDOW, 2 * self._concurrency)), True
        run = Run(base_url=self._refunds.base_url, livemode=self._refunds.livemode)
        if isinstance(self._journal, (str, os.PathLike)):
            return open_journal(self._journal, run), True
        require_target(self._journal.run, run)
        return self._journal, False

    async def _run(self, journal: Journal) -> AsyncGenerator[CancelResult]:
        clock = asyncio.get_running_loop().time
        turns = self._turns = Scheduler(
            journal,
            new_pace=lambda: RateController(rate=self._rate, now=clock()),
            clock=clock,
            workers=self._concurrency,
        )
        asking = CancelWorker(
            self._refunds,
            journal,
            turns,
            patience=self._patience,
            timeout=self._timeout,
        )
        turns.more(await journal.accounts())
        if self._stopping:
            turns.stop()
        loading = asyncio.create_task(self._load(journal, turns))
        workers = [
            asyncio.create_task(self._work(asking, turns))
            for _ in range(self._concurrency)
        ]
        recording = asyncio.create_task(self._record(journal, turns))
        ending = asyncio.create_task(self._end(loading, workers, recording, turns))
        try:
            while (result := await self._told.get()) is not None:
                self._count_untold(-1)
                yield result
        finally:
            await self._drain(ending, turns)
        if self._error is not None:
            raise self._error

    async def _work(self, asking: CancelWorker, turns: Scheduler) -> None:
        try:
            while True:
                await self._room.wait()
                if (item := await turns.next()) is None:
                    return
                try:
                    result = await self._asked(asking, item)
                except Exception:
                    if item.attempts or item.ambiguous:
                        self._know(item.claim, asking.last_known(item))
                    else:
                        item.lane.fresh.append(item.claim)  # to be given back
                    raise
                if result is None:
                    turns.ask_again(item)
                    continue
                turns.done(item)
                self._know(item.claim, result)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            # Of the journal, or a misuse of the client: no refund's own.
            self._end_all(error)

    async def _asked(self, asking: CancelWorker, item: Item) -> CancelResult | None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a worker is one
        self._asking.add(task)
        try:
            return await asking.ask(item)
        except asyncio.CancelledError:
            # By `interrupt`, or because the loop ends: either way, an outcome to tell.
            self.stop()
            task.uncancel()
            return asking.interrupted(item)
        finally:
            self._asking.discard(task)

    def _know(self, claim: Claim, result: CancelResult) -> None:
        self._known.append((claim, result))
        self._news.set()
        self._count_untold(1)

    async def _record(self, journal: Journal, turns: Scheduler) -> None:
        """Record what is known, then tell it, until no more can come."""
        try:
            while self._known or not self._over:
                if not self._known:
                    self._news.clear()
                    await self._news.wait()
                known, self._known = self._known, []
                await journal.settle(known)
                for _, result in known:
                    self._tell(result)
            if (unsent := turns.unsent()) and not isinstance(self._error, JournalError):
                await journal.give_back(unsent)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._end_all(error)

    def _tell(self, result: CancelResult) -> None:
        self._outcomes[result.outcome] += 1
        self._told.put_nowait(result)

    def _count_untold(self, more: int) -> None:
        self._untold += more
        if self._untold < self._concurrency or self._stopping:
            self._room.set()
        else:
            self._room.clear()

    def _end_all(self, error: Exception) -> None:
        self._fail(error, "the batch ends, and nothing more is sent")
        self.interrupt()

    def _fail(self, error: Exception, what: str) -> None:
        # Also in the log: who has left the loop is not raised at.
        with contextlib.suppress(Exception):  # of the caller's logging
            logger.error("%s: %s", what, scrub(str(error)))
        if self._error is None:
            self._error = error

    async def _load(self, journal: Journal, turns: Scheduler) -> None:
        """Read the input into the journal, which makes it wait for room."""
        try:
            async with aclosing(source.chunks(self._requests)) as chunks:
                async for chunk in chunks:
                    await self._add(chunk, journal, turns)
        except JournalError as error:
            self._end_all(error)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            # What was read before is done all the same.
            self._fail(error, "the input broke off; what was read of it goes on")
        finally:
            turns.complete()

    async def _add(
        self, chunk: list[str | CancelRequest], journal: Journal, turns: Scheduler
    ) -> None:
        good: list[CancelRequest] = []
        for request in chunk:
            try:
                good.append(source.checked(request, self._refunds.stripe_account))
            except (TypeError, ValueError) as error:
                await self._room.wait()
                self._count_untold(1)
                self._tell(source.refused(request, error))
        await journal.add(good)
        turns.more({request.stripe_account for request in good})

    async def _end(
        self,
        loading: asyncio.Task[None],
        workers: list[asyncio.Task[None]],
        recording: asyncio.Task[None],
        turns: Scheduler,
    ) -> None:
        try:
            await asyncio.wait(workers)
            loading.cancel()
            await asyncio.wait([loading], timeout=_GRACE)
            for known in turns.left_open():
                self._know(*known)
            self._over = True
            self._news.set()
            await asyncio.wait([recording])
        finally:  # also when the loop ends, and cancels everything in it
            self._told.put_nowait(None)

    async def _drain(self, ending: asyncio.Task[None], turns: Scheduler) -> None:
        """See to it that nothing is under way any more, and that all is told."""
        self.stop()
        loop = asyncio.get_running_loop()
        giving_up = loop.call_later(_GRACE, self.interrupt)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not ending.done() or not self._told.empty():
                try:
                    result = await self._told.get()
                except asyncio.CancelledError as error:
                    if cancelled is not None:
                        raise
                    cancelled = error
                    self.interrupt()
                else:
                    if result is not None:
                        self._log_untold(result)
        finally:
            giving_up.cancel()
            if not self._over:  # the loop itself ends, and our tasks before us
                for _, result in [*self._known, *turns.left_open()]:
                    self._log_untold(result)
        if cancelled is not None:
            raise cancelled

    def _log_untold(self, result: CancelResult) -> None:
        if self._journal is None:
            with contextlib.suppress(Exception):  # of the caller's logging
                logger.warning(
                    "%s: %s, which nobody waited for [key %s]",
                    result.refund_id,
                    result.outcome,
                    result.idempotency_key,
                )
