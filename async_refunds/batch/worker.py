"""Ask for one refund of a batch, and say what became of it, or that it is open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from async_refunds.client import RefundsClient, begin_call
from async_refunds.protocol.classification import Classification, Outcome
from async_refunds.protocol.outcome import (
    Conclusion,
    conclude,
    conclude_expired_key,
    conclude_interrupted,
)
from async_refunds.protocol.requests import (
    Cause,
    Request,
    TransportFailure,
    cancel_request,
    settling_read,
)
from async_refunds.results import CancelResult
from async_refunds.retry import RetryPolicy

if TYPE_CHECKING:
    from async_refunds.call import Call
    from async_refunds.journal import Journal
    from async_refunds.models import Refund

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
    """How a batch asks for a refund: as often as it takes, within its patience.

    Args:
        refunds: The client.
        journal: Where fresh keys are kept.
        turns: Of this batch; its clock counts.
        patience: Seconds for which an open outcome is asked for again.
        timeout: Seconds for each call; ``None`` is the client's own.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        journal: Journal,
        turns: Scheduler,
        *,
        patience: float,
        timeout: float | None,
    ) -> None:
        self._refunds = refunds
        self._journal = journal
        self._turns = turns
        self._patience = patience
        self._timeout = timeout
        self._began = asyncio.get_running_loop().time()

    async def ask(self, item: Item) -> CancelResult | None:
        """Make one call for an item.

        Returns:
            What became of it, or ``None`` if it is to be processed again, at the time
            that the item then has.

        Raises:
            RuntimeError: The client is closed, or of another event loop.
            JournalError: A fresh key could not be kept.
        """
        if item.lane.refused is not None:
            return self._result(item, self._refused(item, item.lane.refused))
        item.calls += 1
        if _is_stale(item):
            conclusion = await self._settle_expired_key(item)
            if conclusion is not None:
                return self._concluded(item, conclusion)
        call = self._begin(item)
        return self._concluded(item, await call.cancel(_request(item)))

    def _begin(self, item: Item) -> Call:
        return begin_call(
            self._refunds,
            self._timeout,
            maybe_sent=item.ambiguous,
            observer=item,
            retry_gate=item,
        )

    def _refused(self, item: Item, refusal: Classification[Any]) -> Conclusion:
        """Return the conclusion of an item whose account a reply has closed."""
        conclusion = conclude(
            _request(item),
            refusal,
            None,
            maybe_sent=item.ambiguous,
            attempts=item.attempts,
        )
        if conclusion.error is not None and not (item.calls or item.ambiguous):
            conclusion.error.idempotency_key = None
        return conclusion

    def interrupted(self, item: Item) -> CancelResult:
        """Return the result of an item whose call was not waited for."""
        why = "it was interrupted"
        return self._result(
            item, conclude_interrupted(_request(item), item.attempts, why)
        )

    def last_known(self, item: Item) -> CancelResult:
        """Return the result of an item whose call broke off by a misuse or a fault."""
        if item.open is None or item.open.attempts is not item.attempts:
            return self.interrupted(item)
        return item.open  # nothing was sent since

    async def _settle_expired_key(self, item: Item) -> Conclusion | None:
        """Read what a key did that Stripe may have forgotten; ``None``: nothing."""
        request = _request(item)
        item.reading = True
        try:
            call = self._begin(item)
            read = await call.read(settling_read(request))
        finally:
            item.reading = False
        if read.value is not None:
            call.attach_last_response(
                read.value, read.reply, item.claim.idempotency_key
            )
        conclusion = conclude_expired_key(request, read, item.attempts)
        if conclusion is None:
            item.claim = await self._journal.rekey(item.claim)
            item.ambiguous = False
        return conclusion

    def _concluded(self, item: Item, conclusion: Conclusion) -> CancelResult | None:
        if conclusion.outcome == "unknown":
            item.ambiguous = True
        if conclusion.outcome in ("unknown", "failed"):
            self._notice_silence(item)
        known = self._result(item, conclusion)
        return self._again_or(item, known) if conclusion.passing else known

    def _notice_silence(self, item: Item) -> None:
        """Refuse the account if nobody was ever there to ask.

        That is no disturbance, but a wrong address or no network: to ask for all the
        others would take long, and say the same of each.
        """
        if (
            not self._turns.heard_from
            and item.lane.clock() - self._began > _SILENCE
            and all(attempt.failure in _NOT_THERE for attempt in item.attempts)
        ):
            text = (
                f"{self._refunds.base_url} cannot be reached, and could not be in all "
                f"of this run ({item.attempts[-1].failure})"
            )
            item.lane.refused = Classification(
                TransportFailure(Cause.REFUSED, text, sent=False),
                Outcome.NOT_SENT,
                retry=False,
            )

    def _again_or(self, item: Item, known: CancelResult) -> CancelResult | None:
        """Set when to ask again, unless its time is over and this is what is known."""
        now = item.lane.clock()
        pause = _BETWEEN_CALLS.backoff(item.calls)
        item.open, item.not_before = known, now + pause
        if (
            self._turns.stopped
            or item.lane.refused is not None
            or item.not_before >= item.began + self._patience
        ):
            return known
        return None

    def _result(self, item: Item, conclusion: Conclusion) -> CancelResult:
        claim = item.claim
        return CancelResult(
            refund_id=claim.refund_id,
            stripe_account=claim.stripe_account,
            outcome=conclusion.outcome,
            refund=conclusion.refund,
            error=(
                None if conclusion.outcome == "already_canceled" else conclusion.error
            ),
            idempotency_key=(
                claim.idempotency_key if item.calls or item.ambiguous else None
            ),
            attempts=item.attempts,
            seconds=item.lane.clock() - item.began,
            settled=conclusion.settled,
        )


def _request(item: Item) -> Request[Refund]:
    claim = item.claim
    return cancel_request(
        claim.refund_id,
        idempotency_key=claim.idempotency_key,
        stripe_account=claim.stripe_account,
    )


def _is_stale(item: Item) -> bool:
    """Tell whether Stripe may have forgotten what came of an item's key.

    One that this process has sent is not: what it did is remembered from then on, and
    may yet land.
    """
    age = time.time() - item.claim.key_created_at
    sent = any(attempt.method == "POST" for attempt in item.attempts)
    return item.ambiguous and not sent and age > _KEY_SECONDS
