"""Ask for one refund of a batch, and say what became of it, or that it is open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from async_refunds.client import RefundsClient, watched
from async_refunds.errors import (
    APIConnectionError,
    JournalError,
    OutcomeUnknownError,
    RateLimitError,
    RefundNotCancelableError,
    RefundsError,
)
from async_refunds.protocol import error_mapping
from async_refunds.protocol.redaction import without_email
from async_refunds.protocol.requests import Cause, TransportFailure, cancel_request
from async_refunds.results import CancelResult, is_unexplained
from async_refunds.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Journal
    from async_refunds.models import Attempt, Refund
    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import Reply, Request
    from async_refunds.results import CancelOutcome

    from .account_queue import Item
    from .scheduler import Scheduler

# Stripe forgets a key after 24 hours at the earliest
# (https://docs.stripe.com/api/idempotent_requests). The hour is for the call itself,
# and for clocks that differ.
_KEY_SECONDS = 23 * 3600.0

# No connection came about. (An attempt that an answer ended has no failure.)
_NOT_THERE = frozenset(
    {Cause.REFUSED.value, Cause.CONNECT_TIMEOUT.value, Cause.CERTIFICATE.value}
)

# Seconds. A restart of what stands before Stripe is over by then.
_SILENCE = 5.0

# Between two calls for the same refund, each of which had its own retries before.
_BETWEEN_CALLS = RetryPolicy(initial_delay=1.0, max_delay=15.0)


class CancelWorker:
    """Cancels the refunds of a batch, each as often as it takes within its patience.

    Args:
        refunds: The client.
        journal: Where new keys are kept.
        scheduler: Of this batch.
        clock: The event loop's time, in seconds.
        patience: Seconds for which an open outcome is asked for again.
        timeout: Seconds for each call; ``None`` is the client's own.
        random: Draws from [0, 1).
    """

    def __init__(
        self,
        refunds: RefundsClient,
        journal: Journal,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float],
        patience: float,
        timeout: float | None,
        random: Callable[[], float],
    ) -> None:
        self._refunds = refunds
        self._journal = journal
        self._scheduler = scheduler
        self._clock = clock
        self._patience = patience
        self._timeout = timeout
        self._random = random
        self._began_at = clock()

    async def process(self, item: Item) -> CancelResult | None:
        """Make one call for an item.

        Returns:
            What became of it, or ``None`` if the scheduler has it back, for another
            call.

        Raises:
            RuntimeError: The client is closed, or of another event loop.
            JournalError: A fresh key could not be kept.
        """
        reply = self._scheduler.closed_by(item)
        if reply is not None:
            return self._refused(item, reply)
        item.calls += 1
        hooks = _Hooks(self._scheduler, item)
        refunds = watched(self._refunds, hooks)
        try:
            if _is_stale(item):
                hooks.reading = True
                try:
                    found = await self._found(refunds, item)
                finally:
                    hooks.reading = False
                if found is not None:
                    return found
            refund = await refunds.cancel(
                item.claim.refund_id,
                idempotency_key=item.claim.idempotency_key,
                stripe_account=item.claim.stripe_account,
                timeout=self._timeout,
            )
        except JournalError:
            raise  # no refund's own: nothing more may be sent
        except RefundsError as error:
            return self._failed(item, error, fixed=hooks.fixed)
        return self._result(item, "canceled", refund=refund)

    def _refused(self, item: Item, reply: Reply) -> CancelResult:
        """Return the result of an item whose account another one's reply has closed."""
        request = cancel_request(
            item.claim.refund_id,
            idempotency_key=item.claim.idempotency_key,
            stripe_account=item.claim.stripe_account,
        )
        if item.maybe_sent:
            error = error_mapping.unsettled(
                request, reply, None, ambiguous=True, attempts=item.attempts
            )
            return self._result(item, "unknown", error=error)
        error = error_mapping.error_of(request, reply, item.attempts)
        result = self._result(item, "failed", error=error)
        error.idempotency_key = result.idempotency_key
        return result

    def last_known(self, item: Item, error: BaseException) -> CancelResult | None:
        """Return the result of an item whose call was broken off.

        Returns:
            ``None`` if certainly nothing was sent for it.
        """
        cancelled = isinstance(error, asyncio.CancelledError)
        if not item.attempts and not item.maybe_sent and not cancelled:
            return None
        if (
            not cancelled
            and item.known is not None
            and item.known.attempts is item.attempts
        ):
            return item.known  # nothing was sent since
        unknown = OutcomeUnknownError(
            f"{item.claim.refund_id} may or may not be canceled: interrupted while it "
            "was asked for",
            refund=None,
            idempotency_key=item.claim.idempotency_key,
            attempts=item.attempts,
        )
        return self._result(item, "unknown", error=unknown)

    async def _found(self, refunds: RefundsClient, item: Item) -> CancelResult | None:
        """Read what a key did that Stripe may have forgotten; ``None``: nothing.

        A day later, what was lost on the way will not land any more, so that the state
        is the whole truth, and a fresh key asks anew.
        """
        claim = item.claim
        try:
            refund = await refunds.retrieve(
                claim.refund_id,
                stripe_account=claim.stripe_account,
                timeout=self._timeout,
            )
        except RefundsError as error:
            raise OutcomeUnknownError(
                f"{claim.refund_id} may or may not be canceled: its key is over a day "
                f"old, and it could not be read ({error})",
                refund=None,
                idempotency_key=claim.idempotency_key,
                attempts=error.attempts,
            ) from error
        if refund.status == "requires_action":
            item.claim = await self._journal.rekey(claim)
            item.maybe_sent = False
            return None
        if refund.status == "canceled":
            return self._result(item, "canceled", refund=refund)
        if refund.status is None:
            raise OutcomeUnknownError(
                f"{claim.refund_id} may or may not be canceled: its key is over a day "
                "old, and it was read without a status",
                refund=without_email(refund),
                idempotency_key=claim.idempotency_key,
                attempts=refund.last_response.attempts,
            )
        raise RefundNotCancelableError(
            f"{claim.refund_id}: it is {refund.status}, and only a refund in "
            "requires_action can be canceled",
            refund=without_email(refund),
            idempotency_key=claim.idempotency_key,
            attempts=refund.last_response.attempts,
        )

    def _failed(
        self, item: Item, error: RefundsError, *, fixed: bool
    ) -> CancelResult | None:
        if isinstance(error, RefundNotCancelableError):
            if error.refund.status == "canceled":  # as was asked for
                return self._result(item, "already_canceled", refund=error.refund)
            return self._result(
                item, "not_cancelable", refund=error.refund, error=error
            )
        if isinstance(error, OutcomeUnknownError):
            item.maybe_sent = True
            self._notice_silence(item)
            # An answer that is saved and says nothing comes again for a day, and a read
            # that did not settle it has shown why.
            hopeless = fixed and error.refund is not None
            known = self._result(item, "unknown", refund=error.refund, error=error)
            return known if hopeless else self._again_or(item, known)
        self._notice_silence(item)
        known = self._result(item, "failed", error=error)
        passing = isinstance(error, (APIConnectionError, RateLimitError))
        unread = is_unexplained(error) and _failed_to_read(item)
        if (passing and not fixed) or unread:
            return self._again_or(item, known)
        return known

    def _notice_silence(self, item: Item) -> None:
        """Refuse the account if nobody was ever there to ask.

        That is no disturbance, but a wrong address or no network: to ask for all the
        others would take long, and say the same of each.
        """
        if (
            not self._scheduler.has_answered
            and self._clock() - self._began_at > _SILENCE
            and all(attempt.failure in _NOT_THERE for attempt in item.attempts)
        ):
            text = (
                f"{self._refunds.base_url} cannot be reached, and could not be in all "
                f"of this run ({item.attempts[-1].failure})"
            )
            self._scheduler.close_account(
                item, TransportFailure(Cause.REFUSED, text, sent=False)
            )

    def _again_or(self, item: Item, known: CancelResult) -> CancelResult | None:
        """Put an item back for another call, or return what is known if it is over."""
        now = self._clock()
        not_before = now + _BETWEEN_CALLS.backoff(item.calls, self._random())
        item.known = known
        if (
            self._scheduler.stopped
            or self._scheduler.closed_by(item) is not None
            or not_before >= item.began_at + self._patience
        ):
            return known
        self._scheduler.put_back(item, not_before)
        return None

    def _result(
        self,
        item: Item,
        outcome: CancelOutcome,
        *,
        refund: Refund | None = None,
        error: RefundsError | None = None,
    ) -> CancelResult:
        claim = item.claim
        return CancelResult(
            refund_id=claim.refund_id,
            stripe_account=claim.stripe_account,
            outcome=outcome,
            refund=refund,
            error=error,
            idempotency_key=(
                claim.idempotency_key if item.calls or item.maybe_sent else None
            ),
            attempts=item.attempts,
            seconds=self._clock() - item.began_at,
        )


class _Hooks:
    """What one call tells the scheduler, and how it waits."""

    def __init__(self, scheduler: Scheduler, item: Item) -> None:
        self._scheduler = scheduler
        self._item = item
        self.fixed = False
        self.reading = False

    @property
    def ambiguous(self) -> bool:
        return self._item.maybe_sent

    def ended(
        self, request: Request[Any], advice: Classification[Any], attempt: Attempt
    ) -> None:
        item = self._item
        item.attempts += (attempt,)
        cancel = request.method == "POST"
        if cancel:
            self.fixed = not advice.retry
        self._scheduler.record_reply(
            item,
            request,
            advice,
            paced=cancel or self.reading,
            retry=attempt.slept > 0,
        )

    async def pause(self, until: float, seconds: float) -> None:
        await self._scheduler.wait_to_retry(self._item, seconds, until)


def _is_stale(item: Item) -> bool:
    """Tell whether Stripe may have forgotten what came of an item's key.

    One that this process has sent is not: what it did is remembered from then on, and
    may yet land.
    """
    age = time.time() - item.claim.key_created_at
    sent = any(attempt.method == "POST" for attempt in item.attempts)
    return item.maybe_sent and not sent and age > _KEY_SECONDS


def _failed_to_read(item: Item) -> bool:
    """Tell whether a read was the last, and failed for a reason that passes.

    A key that may not read will not be able to in a minute either.
    """
    last = item.attempts[-1]
    return last.method == "GET" and (
        last.failure is not None
        or (last.status is not None and (last.status == 429 or last.status >= 500))  # noqa: PLR2004 - too many requests, server errors
    )
