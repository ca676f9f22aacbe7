"""Cancel one refund of a batch: its calls, and when it is worth another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.client import RefundsClient, begin_call
from async_refunds.errors import APITimeoutError, RefundsError
from async_refunds.journal import RunClosedError
from async_refunds.protocol.classification import Proof
from async_refunds.protocol.outcome import (
    Conclusion,
    SentBefore,
    conclude,
    conclude_expired_key,
    conclude_given_up,
    conclude_interrupted,
)
from async_refunds.protocol.requests import (
    Cause,
    Request,
    cancel_request,
    settling_read,
)
from async_refunds.results import CancelRequest, CancelResult
from async_refunds.retry import RetryPolicy

from .call_pacing import CallPacing
from .source import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.call import Call
    from async_refunds.journal import Journal
    from async_refunds.models import Refund
    from async_refunds.protocol.classification import Classification

    from .item import Item
    from .scheduler import Scheduler

# Stripe forgets a key after 24 hours at the earliest
# (https://docs.stripe.com/api/idempotent_requests). The hour is for the call itself,
# and for clocks that differ.
_KEY_SECONDS = 23 * 3600.0

# Between two calls for the same refund, each of which had its own retries before.
_BETWEEN_CALLS = RetryPolicy(initial_delay=1.0, max_delay=15.0)


class CancelWorker:
    """Cancels the refunds of a batch, each with as many calls as its patience allows.

    Args:
        refunds: The client.
        journal: Where new keys are kept.
        scheduler: Of this batch.
        clock: The event loop's time, in seconds.
        hand_over: Leaves an item, and what is known of it, to the next holder of its
            account.
        patience: Seconds for which a refund is tried again.
        timeout: Seconds for each call; ``None`` is the client's own.
        kept: Whether the journal outlasts the batch, so that what goes on with it asks
            again for what is unknown.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        journal: Journal,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float],
        hand_over: Callable[[Item, CancelResult], object],
        patience: float,
        timeout: float | None,
        kept: bool,
    ) -> None:
        self._refunds = refunds
        self._journal = journal
        goes_on = "the next run" if journal.leases is None else "a worker"
        self._asked_again_by = goes_on if kept else None
        self._scheduler = scheduler
        self._clock = clock
        self._hand_over = hand_over
        self._patience = patience
        self._timeout = timeout

    async def process(self, item: Item) -> CancelResult | None:
        """Make one call for an item.

        Returns:
            What became of it, or ``None`` if the scheduler has it back, for another
            call or another holder of its account.

        Raises:
            RuntimeError: The client or its session is closed, or of another event loop.
            JournalError: A new key could not be kept.
        """
        try:
            request = self._cancel_of(item)
        except ValueError as error:
            # Other programs write to a journal in a database. What cannot be sent is
            # this item's result, and ends no other one.
            claim = item.claim
            return refused(CancelRequest(claim.refund_id, claim.stripe_account), error)
        closing = self._scheduler.closed_by(item)
        if closing is not None:
            return self._result(item, self._conclude_closed(item, closing))
        if item.known is not None and not self._scheduler.may_begin(item):
            return self._end(item, item.known)
        if _is_stale(item, self._journal.now()):
            conclusion = await self._settle_expired_key(item, request)
            if conclusion is not None:
                return self._end_call(item, conclusion, passing=conclusion.passing)
            request = self._cancel_of(item)  # perhaps with a new key
        pacing, call = self._begin_call(item)
        conclusion = await call.cancel(request)
        item.call = None
        item.maybe_sent = conclusion.outcome == "unknown"
        # A settling read that the pace held back may be made by a later call.
        passing = conclusion.passing or pacing.read_refused
        return self._end_call(item, conclusion, passing=passing)

    def end_interrupted(self, item: Item, known: CancelResult) -> CancelResult | None:
        """Return what is known of an item whose call was broken off.

        Returns:
            ``None`` if it is left to the next holder of its account.
        """
        item.maybe_sent = item.may_have_canceled
        return self._end(item, known)

    def last_known(self, item: Item) -> CancelResult | None:
        """Return the result of an item whose call was broken off.

        Returns:
            ``None`` if certainly nothing was sent for it.
        """
        if item.known is not None and item.call is None:
            return item.known  # nothing was sent since
        if not (item.attempts or item.may_have_canceled):
            return None
        conclusion = conclude_interrupted(
            self._cancel_of(item),
            item.attempts,
            "the call was interrupted",
            maybe_sent=item.may_have_canceled,
        )
        return self._result(item, conclusion)

    def _cancel_of(self, item: Item) -> Request[Refund]:
        claim = item.claim
        return cancel_request(
            claim.refund_id,
            idempotency_key=claim.idempotency_key,
            stripe_account=claim.stripe_account,
            asked_again_by=self._asked_again_by,
        )

    def _begin_call(self, item: Item) -> tuple[CallPacing, Call]:
        give_up_at = item.began_at + self._patience
        permit = self._scheduler.permit_of(item)
        pacing = CallPacing(self._refunds, self._scheduler, item, give_up_at, permit)
        call = begin_call(
            self._refunds,
            self._timeout,
            sent_before=self._sent_before(item) if item.maybe_sent else None,
            observer=pacing,
            retry_gate=pacing,
            permit=permit,
        )
        item.calls += 1
        item.call = call
        return pacing, call

    def _sent_before(self, item: Item) -> SentBefore:
        claim = item.claim
        age = self._journal.now() - claim.key_unused_until
        return SentBefore(age < _KEY_SECONDS, claim.same_credentials)

    async def _settle_expired_key(
        self, item: Item, request: Request[Refund]
    ) -> Conclusion | None:
        """Read what became of a key that Stripe may have forgotten.

        Args:
            item: The item.
            request: The cancel with that key.

        Returns:
            ``None`` if it is to be asked for: with a new key, which the item then has,
            if the refund still waits; with the old one if there is no such refund.
        """
        reading = settling_read(request)
        pacing, call = self._begin_call(item)
        conclusion: Conclusion | None
        try:
            if not await pacing.wait(reading, 0.0, call.deadline):
                raise APITimeoutError("no time left for the read")
            read = await call.read(reading)
        except RefundsError as error:
            why = f"its key is over a day old, and it could not be read ({error})"
            conclusion = conclude_interrupted(request, item.attempts, why)
        else:
            if read.is_missing and item.claim.same_credentials:
                # Nothing can be canceled that is not there. But one answer to a read is
                # no proof: the cancel's own, with the key, and another read will be.
                item.call = None
                return None
            if read.value is not None:
                key = item.claim.idempotency_key
                call.attach_last_response(read.value, read.reply, key)
            conclusion = conclude_expired_key(request, read, item.attempts)
            if conclusion is None:
                conclusion = await self._take_new_key(item, request, read)
        item.call = None
        return conclusion

    async def _take_new_key(
        self, item: Item, request: Request[Refund], read: Classification[Refund]
    ) -> Conclusion | None:
        """Give an item a new key; return what became of it if there is none."""
        try:
            item.claim = await self._journal.rekey(item.claim)
        except RunClosedError:
            return conclude_given_up(request, read, item.attempts)
        item.maybe_sent = False
        return None

    def _conclude_closed(self, item: Item, closing: Classification[Any]) -> Conclusion:
        """Conclude an item whose account was closed before it had an answer.

        What closed the account answered other refunds. How well that is proven says
        nothing of this one: only its own requests can have left a doubt.
        """
        conclusion = conclude(
            self._cancel_of(item),
            msgspec.structs.replace(closing, proof=Proof.KEY),
            None,
            maybe_sent=item.maybe_sent,
            attempts=item.attempts,
        )
        if conclusion.error is not None and not (item.calls or item.maybe_sent):
            conclusion.error.idempotency_key = None  # it was never sent
        return conclusion

    def _end_call(
        self, item: Item, conclusion: Conclusion, *, passing: bool
    ) -> CancelResult | None:
        """Put an item back for another call if that is worth it, or return its result.

        Args:
            item: The item.
            conclusion: Of its last call.
            passing: Whether another call may well end differently.
        """
        item.known = self._result(item, conclusion)
        if _lacks_permit(item):
            return self._end_without_permit(item)
        not_before = self._clock() + _BETWEEN_CALLS.backoff(item.calls)
        if not passing or not_before >= item.began_at + self._patience:
            return item.known
        if not self._scheduler.may_begin(item):
            return self._end(item, item.known)
        self._scheduler.put_back(item, not_before)
        return None

    def _end_without_permit(self, item: Item) -> CancelResult | None:
        """Put back an item whose next request was not permitted.

        However long that lasts: its patience is with Stripe, which was not asked.
        """
        if all(attempt.failure == Cause.NOT_PERMITTED for attempt in item.attempts):
            self._scheduler.return_claim(item)
            return None
        assert item.known is not None  # noqa: S101 - its call has ended
        if not self._scheduler.may_begin(item):
            return self._end(item, item.known)
        self._scheduler.put_back(item, self._clock())
        return None

    def _end(self, item: Item, known: CancelResult) -> CancelResult | None:
        """Return what is known of an item that is worth another call and gets none.

        Returns:
            ``None`` if the next holder of its account makes that call, at once and with
            the same key. A result would make it wait, as one of which patience is over.
        """
        if not self._scheduler.hands_over(item):
            return known
        if item.maybe_sent:
            self._hand_over(item, known)
        else:
            self._scheduler.return_claim(item)
        return None

    def _result(self, item: Item, conclusion: Conclusion) -> CancelResult:
        claim, canceled = item.claim, conclusion.outcome == "already_canceled"
        was_sent = item.calls > 0 or item.maybe_sent
        return CancelResult(
            refund_id=claim.refund_id,
            stripe_account=claim.stripe_account,
            outcome=conclusion.outcome,
            refund=conclusion.refund,
            error=None if canceled else conclusion.error,
            idempotency_key=claim.idempotency_key if was_sent else None,
            attempts=item.attempts,
            seconds=self._clock() - item.began_at,
            settled=conclusion.settled,
        )


def _lacks_permit(item: Item) -> bool:
    """Tell whether the last call ended because it was not permitted to send."""
    return bool(item.attempts) and item.attempts[-1].failure == Cause.NOT_PERMITTED


def _is_stale(item: Item, now: float) -> bool:
    """Tell whether Stripe may have forgotten what a key that was sent has done.

    Stripe remembers a key that this process has sent, and the request may still be
    executed.
    """
    age = now - item.claim.key_created_at
    sent = any(attempt.method == "POST" for attempt in item.attempts)
    return item.maybe_sent and not sent and age > _KEY_SECONDS
