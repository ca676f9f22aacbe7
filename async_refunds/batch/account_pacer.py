"""When the requests of one account may go out, and what their replies teach.

Each account has limits of its own at Stripe, so each has a pace of its own. Nothing
here sends.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from async_refunds.protocol.requests import Cause, Response, TransportFailure

from .account_limits import AccountLimits
from .closing import Closing, refuses_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Leases
    from async_refunds.models import Attempt
    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import Request

    from .closing import ServiceMonitor
    from .endpoint import Endpoint
    from .item import Item
    from .rate_control import RateController

# Seconds until an account whose permit was refused asks again: a lease may live on.
_PAUSE = 0.5


class AccountPacer:
    """Lets the requests of one account out, and stops them when there is a reason.

    Args:
        account: ``acct_...``, or ``None`` for the key's own.
        new_pace: Makes the pace of one endpoint, at a given rate if there is one.
        clock: The event loop's time, in seconds.
        changed: Called when an item may go out sooner than was said.
        service: What all accounts ask.
        leases: Of this process; ``None`` if no other process shares the work.
    """

    __slots__ = (
        "_cancels",
        "_changed",
        "_clock",
        "_ended",
        "_leases",
        "_limits",
        "_made_closing",
        "_paused_until",
        "_service",
        "_sleeping",
        "account",
        "draining",
        "dropped",
    )

    def __init__(
        self,
        account: str | None,
        new_pace: Callable[[float | None], RateController],
        clock: Callable[[], float],
        changed: Callable[[Any], object],
        *,
        service: ServiceMonitor,
        leases: Leases | None,
    ) -> None:
        self.account = account
        self.dropped = False
        """Whether its lease is lost: nothing of it is sent, kept or told any more."""
        self.draining = False
        """Whether nothing more of it begins, and what is under way still counts."""
        self._leases = leases
        self._paused_until = -math.inf
        self._clock = clock
        self._changed = changed
        self._service = service
        start = None if leases is None else leases.rate(account)
        self._limits = AccountLimits(new_pace, start, clock)
        self._cancels = self._limits.cancels
        self._made_closing: Closing | None = None
        self._ended: asyncio.Event | None = None  # while a call sleeps: 0.8 KB
        self._sleeping = 0  # how many do

    @property
    def _closing(self) -> Closing:
        """What closes it, for which most accounts give no reason."""
        if self._made_closing is None:
            self._made_closing = Closing()
        return self._made_closing

    @property
    def rate(self) -> float:
        """Cancels a second that its pace allows now."""
        return self._cancels.pace.rate

    @property
    def found_rate(self) -> float | None:
        """See `RateController.found_rate`."""
        return self._cancels.pace.found_rate

    @property
    def in_trouble(self) -> bool:
        """Whether a pace of it is down because Stripe fails."""
        return self._limits.in_trouble

    # ------------------------------------------------------------------ the lease

    @property
    def permit(self) -> Callable[[], bool] | None:
        """What is asked before each send; ``None`` permits everything."""
        return None if self._leases is None else self.may_send

    def may_send(self) -> bool:
        """Tell whether a request may go out now."""
        leases = self._leases
        return leases is None or (not self.dropped and leases.may_send(self.account))

    def pause(self) -> None:
        """Begin nothing for a moment, because the permit was refused."""
        self._paused_until = self._clock() + _PAUSE

    # -------------------------------------------------------------------- closing

    @property
    def closed_by(self) -> Classification[Any] | None:
        """The reply after which nothing of this account can be canceled for now.

        It stays until `reopen_if_due` or a good reply opens the account.
        """
        closing = self._made_closing
        return None if closing is None else closing.reply

    @property
    def ends_items(self) -> bool:
        """Whether what it gives out ends without a request, a pace and a permit."""
        return self.draining or self.closed_by is not None

    def close(self, reply: Classification[Any], until: float = math.inf) -> None:
        """Cancel nothing of this account until then, because of this reply."""
        self._closing.close(reply, until)
        self._cancels.closed = self.dropped or self.draining or until < math.inf
        self.notify()

    def reopen_if_due(self) -> None:
        """Open the account if it was closed for long enough.

        The first step of each turn: of the account to give out an item or to claim
        more, of a reply, of a retry that has slept. No timer does it: what a closed
        account has is given out at once, to end, so nothing in it waits to be opened.
        While it is drained it opens no more: the next holder is to wait for that long.
        """
        closing = self._made_closing
        if closing is None or self.draining:
            return
        if closing.until <= self._clock():
            self._reopen()

    def _reopen(self) -> None:
        self._closing.reopen()
        self._cancels.outage = None
        self._cancels.closed = self.dropped or self.draining

    # ------------------------------------------------------------------- replies

    def record_reply(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Learn from an attempt.

        Args:
            item: Whose attempt it was.
            request: What was asked.
            classification: What came of it.
            attempt: When, and how long it took.
        """
        reply = classification.reply
        if isinstance(reply, TransportFailure) and reply.cause is Cause.NOT_PERMITTED:
            self.pause()
            return
        if self._limits.record_reply(item, request, classification, attempt):
            self.notify()
        closing, outage = self._made_closing, self._cancels.outage
        if closing is not None and closing.until < math.inf and outage is None:
            self._reopen()
        if isinstance(reply, Response):
            self._limits.has_answered = self._service.has_answered = True
            self._judge_key(
                item, reply, classification, cancel=request.method == "POST"
            )
        # After it was noted: a failure that came late does not begin the next outage.
        self.reopen_if_due()
        outage = self._cancels.outage
        if outage is not None and self.closed_by is None:
            verdict = self._service.judge(outage, reply, self._clock())
            if verdict is not None:
                self.close(*verdict)

    def _judge_key(
        self,
        item: Item,
        reply: Response,
        classification: Classification[Any],
        *,
        cancel: bool,
    ) -> None:
        """Close the account once there is evidence that the key is no good for it."""
        if self._made_closing is None and not refuses_key(reply, cancel=cancel):
            return  # nothing speaks against it, now or before
        if self._closing.condemns_key(
            item.claim.refund_id, reply, classification, cancel=cancel
        ):
            self.close(classification)

    # --------------------------------------------------------------------- waiting

    async def wait_for_slot(
        self, item: Item, request: Request[Any], seconds: float, until: float
    ) -> bool:
        """Sleep, then wait until the pace lets a request of a call out.

        Args:
            item: Whose call it is.
            request: A retry, or a read that has a slot of its own.
            seconds: At least so long.
            until: On the event loop's clock; a slot that is free is taken also later.

        Returns:
            Whether it may go out. If not, it was not its turn in time.
        """
        endpoint = self._limits.endpoint_of(request)
        if self._ends_before(endpoint, seconds):
            return False
        if self._clock() + seconds > until and (
            seconds or (self._limits.has_answered and not endpoint.is_free)
        ):
            return False
        self._leave()
        try:
            await self._sleep(seconds)
            self.reopen_if_due()
            if seconds and self._ends_before(endpoint, seconds):
                return False
            async with asyncio.timeout_at(until):
                return await self._limits.acquire_slot(item, request)
        except TimeoutError:
            return False
        finally:
            self._limits.under_way += 1
            self._changed(self)  # new items may have waited for this one

    def _ends_before(self, endpoint: Endpoint, seconds: float) -> bool:
        """Tell whether a call is to end without a request that would be the next.

        While the account is drained, only what may settle a call at once goes out.
        """
        if self.dropped:
            return True
        if not self.draining:
            return False
        return endpoint is self._cancels or seconds > 0 or not endpoint.is_free

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the account."""
        if not seconds:
            await asyncio.sleep(0)
            return
        self._ended = self._ended or asyncio.Event()
        self._sleeping += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ended.wait()
        finally:
            self._sleeping -= 1
            if not self._sleeping:
                self._ended = None

    def _wake_sleepers(self) -> None:
        """End the sleeps of calls between two attempts: no other one follows."""
        if self._ended is not None:
            self._ended.set()

    # --------------------------------------------------------------------- locks

    def needs_charge(self, item: Item) -> bool:
        """Tell whether only the item's charge can tell what it has to wait for."""
        if self.dropped or self.draining:
            return False
        return self._limits.needs_charge(item)

    def learn_charge(self, item: Item, charge: str | None) -> None:
        """Note the charge of an item; ``None`` if it could not be learned."""
        self._limits.learn_charge(item, charge)

    def _leave(self) -> None:
        self._limits.under_way -= 1
        self.notify()

    def notify(self) -> None:
        """Wake what waits for a change of this queue."""
        self._limits.notify()
        self._changed(self)
