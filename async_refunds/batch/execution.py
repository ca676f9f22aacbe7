"""The tasks of one batch: they load, claim, cancel and record, and end together."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from async_refunds import telemetry
from async_refunds.errors import JournalError
from async_refunds.protocol.redaction import excerpt

from . import source
from .claiming import claim_ahead, give_back
from .loading import InputLoader
from .rate_control import RateController
from .recorder import ResultRecorder
from .scheduler import Figures, Scheduler
from .worker_pool import WorkerPool

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from async_refunds.client import RefundsClient
    from async_refunds.journal import Journal
    from async_refunds.protocol.classification import Classification
    from async_refunds.results import CancelResult

    from .source import Requests

Work: TypeAlias = "Callable[[], Coroutine[object, object, None]]"

# Seconds that calls under way have to end when the caller does not wait for results any
# more. Stripe answers in one or two.
_GRACE = 10.0

# Seconds that the journal then has to keep what is known. A commit takes milliseconds.
_JOURNAL_GRACE = 5.0

# Seconds for one that did not, to take back what was never sent.
_LAST_GRACE = 1.0

# How often an essential task that was cancelled from outside starts again. A loop that
# ends cancels all of its tasks once.
_RESTARTS = 3


class Execution:
    """One run of a batch. Make it inside the event loop.

    Every task is looked after: one that ends by an exception, or is cancelled from
    outside, ends the batch, and `results` raises what happened after all that is known.

    Args:
        refunds: The client.
        requests: The input.
        journal: Open, and closed by the caller.
        concurrency: How many items may be under way at once.
        rate: Requests a second for each account; ``None`` finds Stripe's limit.
        patience: Seconds for which a refund is tried again.
        timeout: Seconds for each call; ``None`` is the client's own.
        log_untaken: Whether results that the caller does not take are logged, because
            no journal of the caller's has them.
        on_idle: Makes the batch work on the accounts that `open_account` names, until
            it is stopped. Called with one of which the journal has nothing more, or of
            which nothing can be canceled for now (`closing_of` says why). All of it is
            recorded then, and it is forgotten.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        requests: Requests,
        journal: Journal,
        *,
        concurrency: int,
        rate: float | None,
        patience: float,
        timeout: float | None,
        log_untaken: bool,
        on_idle: Callable[[str | None], object] | None = None,
    ) -> None:
        self._journal = journal
        self._concurrency = concurrency
        self._log_untaken = log_untaken
        clock = asyncio.get_running_loop().time
        leases = journal.leases
        if leases is not None:
            leases.on_lost = self.drop_account
        self._scheduler = Scheduler(
            new_pace=lambda start: RateController(
                rate=rate, start=start, alone=leases is not None, now=clock()
            ),
            clock=clock,
            workers=concurrency,
            service=refunds.base_url,
            patience=patience,
            leases=leases,
            on_idle=on_idle,
        )
        self._input_ends = on_idle is None
        self._recorder = ResultRecorder(
            journal,
            concurrency,
            on_lost=self._scheduler.accounts.drop,
            on_kept=None if on_idle is None else self._scheduler.accounts.claims_kept,
        )
        self._loader = InputLoader(
            requests,
            journal,
            self._scheduler.accounts,
            self._recorder,
            stripe_account=refunds.stripe_account,
            on_broken=self._on_broken_input,
        )
        self._pool = WorkerPool(
            refunds,
            journal,
            self._scheduler,
            self._recorder,
            patience=patience,
            timeout=timeout,
            kept=not log_untaken,
        )
        self._error: BaseException | None = None
        self._stopped = False  # by the caller
        self._dismissed: set[asyncio.Task[None]] = set()  # cancelled by us
        self._restarts = _RESTARTS
        self._giving_back: asyncio.Task[None] | None = None

    @property
    def outcomes(self) -> Counter[str]:
        """How many refunds came to which outcome."""
        return self._recorder.outcomes

    def figures(self) -> Figures:
        """Return how far the requests have come."""
        return self._scheduler.figures()

    def open_account(self, account: str | None) -> None:
        """Work on an account whose lease is held; also when the journal has more of it.

        One that was dropped is opened again as soon as its last call has ended.
        """
        self._scheduler.accounts.open(account)

    def look_again(self) -> None:
        """Claim again of the accounts that had no more: others may have added some."""
        self._scheduler.accounts.look_again()

    def works_on(self, account: str | None) -> bool:
        """Tell whether an account is open: neither idle nor dropped since."""
        return self._scheduler.accounts.works_on(account)

    def drop_account(self, account: str | None) -> None:
        """Forget an account whose lease is lost.

        A call under way ends without another request; nothing is told of it.
        """
        self._scheduler.accounts.drop([account])

    def drain_account(self, account: str | None) -> None:
        """Begin nothing more of an account; ``on_idle`` tells when all is recorded."""
        self._scheduler.accounts.drain(account)

    def rate_of(self, account: str | None) -> float | None:
        """Return the cancels a second that the next holder of an account begins with.

        ``None`` if the account is forgotten, or too young to have found its rate.
        """
        return self._scheduler.accounts.found_rate(account)

    def closing_of(self, account: str | None) -> Classification[Any] | None:
        """Return the reply after which nothing of an account can be canceled for now.

        Such as a refusal of the key. ``None`` if there is none.
        """
        return self._scheduler.accounts.closing_of(account)

    def stop(self) -> None:
        """Begin nothing more; the results of what is under way still come."""
        self._stopped = True
        self._scheduler.stop()
        self._recorder.lift_limit()

    def interrupt(self) -> None:
        """Begin nothing more, and end the calls under way: their outcome is unknown.

        Those of accounts that are drained are left to the next holder.
        """
        self.stop()
        self._pool.interrupt()

    async def results(self) -> AsyncGenerator[CancelResult]:
        """Run, and yield the result of each refund once it is recorded.

        Raises:
            JournalError: Some items have no result, after all others: see
                `Journal.explain_missing`.
            Exception: What ended the batch, or broke off the input, after all results.
        """
        if self._input_ends:
            self._scheduler.accounts.extend(await self._journal.accounts())
        self._loading = self._start(self._load)
        self._claiming = self._start(
            partial(claim_ahead, self._journal, self._scheduler.accounts)
        )
        self._workers = [self._start(self._pool.work) for _ in range(self._concurrency)]
        self._recording = self._start(self._recorder.run, essential=True)
        self._finishing = self._start(self._finish, essential=True)
        try:
            while (result := await self._recorder.take()) is not None:
                yield result
            stopped = self._stopped
        finally:
            await self._drain()
        if self._error is not None:
            raise self._error
        if self._input_ends:
            missing = await self._journal.explain_missing(stopped=stopped)
            if missing is not None:
                raise JournalError(missing)

    # --------------------------------------------------------------------- tasks

    def _start(self, work: Work, *, essential: bool = False) -> asyncio.Task[None]:
        """Start a task; an essential one goes on also after it was cancelled."""
        task = asyncio.create_task(work())
        task.add_done_callback(partial(self._look_after, work if essential else None))
        return task

    def _look_after(self, essential: Work | None, task: asyncio.Task[None]) -> None:
        """End the batch if a task ends as none should."""
        if not task.cancelled():
            if (error := task.exception()) is not None:
                self._abort(error)
        elif task not in self._dismissed:
            self._abort_cancelled()
            if essential is not None and self._restarts:
                self._restarts -= 1
                again = self._start(essential, essential=True)
                if task is self._recording:
                    self._recording = again
                else:
                    self._finishing = again
                return
        if task is self._finishing:
            self._recorder.close()

    async def _finish(self) -> None:
        """See the workers to their end, then record and give back what they leave."""
        await asyncio.wait(self._workers)
        self._scheduler.stop()
        self._dismiss(self._loading)
        await asyncio.wait([self._loading], timeout=_GRACE)
        await asyncio.wait([self._claiming])
        for claim, known in self._scheduler.take_unfinished():
            self._recorder.record(claim, known)
        self._recorder.finish()
        while not self._recording.done():
            await asyncio.wait([self._recording])
        if not isinstance(self._error, JournalError):
            await self._give_back()

    async def _give_back(self) -> None:
        """Return to the journal the claims for which nothing was sent."""
        if unsent := self._scheduler.accounts.unsent():
            await give_back(self._journal, unsent)

    async def _load(self) -> None:
        await self._loader.run()
        if self._input_ends:
            self._scheduler.end_input()

    def _on_broken_input(self, error: BaseException) -> None:
        self._note(error, "the input broke off; what was read of it goes on")

    # -------------------------------------------------------------------- ending

    def _abort(self, error: BaseException) -> None:
        self._note(error, "the batch ends, and nothing more is sent")
        self.interrupt()

    def _abort_cancelled(self) -> None:
        if self._error is None:  # else it is known why: often all tasks are cancelled
            self._abort(RuntimeError("a task of the batch was cancelled from outside"))
        self.interrupt()

    def _dismiss(self, *tasks: asyncio.Task[None]) -> None:
        self._dismissed.update(tasks)
        for task in tasks:
            task.cancel()

    def abandon(self) -> None:
        """Wait no more for a journal that does not answer."""
        error = JournalError(
            f"the journal did not answer for {_JOURNAL_GRACE:.0f} s: begin again with "
            "it, and what it has not kept is asked again"
        )
        self._note(error, "the batch ends")
        self._dismiss(self._claiming, self._recording, self._finishing)
        self._giving_back = self._start(self._give_back)

    def _note(self, error: BaseException, what: str) -> None:
        # Also in the log: a caller that stopped iterating does not see the exception.
        telemetry.log(logging.ERROR, "%s: %s", what, excerpt(str(error)))
        if self._error is None:
            self._error = source.presentable(error)

    async def _drain(self) -> None:
        """Wait until nothing is under way, and log what the caller does not take."""
        self.stop()
        loop = asyncio.get_running_loop()
        giving_up = loop.call_later(_GRACE, self.interrupt)
        abandoning = loop.call_later(_GRACE + _JOURNAL_GRACE, self.abandon)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not self._finishing.done() or self._recorder.has_recorded:
                try:
                    result = await self._recorder.take()
                except asyncio.CancelledError as error:
                    if cancelled is not None:
                        raise
                    cancelled = error
                    self.interrupt()
                else:
                    if result is not None and self._log_untaken:
                        _log_result(result)
            if self._giving_back is not None:
                # A journal keeps what it was given in this order, however late.
                await asyncio.wait([self._giving_back], timeout=_LAST_GRACE)
        finally:
            giving_up.cancel()
            abandoning.cancel()
            self._dismiss(self._claiming, self._recording, self._finishing)
            if self._giving_back is not None:
                self._dismiss(self._giving_back)
            # What no journal has: it failed, or the loop ends, and our tasks first.
            unfinished = [known for _, known in self._scheduler.take_unfinished()]
            for result in [*self._recorder.unrecorded(), *unfinished]:
                _log_result(result)
        if cancelled is not None:
            raise cancelled


def _log_result(result: CancelResult) -> None:
    telemetry.log(
        logging.WARNING,
        "%s: %s, which nobody waited for [key %s]",
        result.refund_id,
        result.outcome,
        result.idempotency_key,
    )
