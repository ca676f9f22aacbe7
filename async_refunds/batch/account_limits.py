"""What Stripe limits of one account: its cancels, its reads, and work on one charge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_refunds.protocol.classification import Classification, Limit

from .charge_locks import ChargeLocks
from .endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.models import Attempt
    from async_refunds.protocol.requests import Request

    from .item import Item
    from .rate_control import RateController


class AccountLimits:
    """The endpoints of an account, and the locks of its charges.

    Most accounts make no reads and meet no lock, so those are made when they come.

    Args:
        new_pace: Makes the pace of one endpoint, at a given rate if there is one.
        start: The rate with which the cancels begin.
        clock: The event loop's time, in seconds.
    """

    __slots__ = (
        "_charge_locks",
        "_clock",
        "_made_reads",
        "_new_pace",
        "cancels",
        "has_answered",
        "under_way",
    )

    def __init__(
        self,
        new_pace: Callable[[float | None], RateController],
        start: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._new_pace = new_pace
        self._clock = clock
        self.under_way = 0
        """How many calls are not between two attempts."""
        self.has_answered = False
        """Whether an answer to any request ever came."""
        self.cancels = Endpoint(new_pace(start), clock, self)
        self._made_reads: Endpoint | None = None
        self._charge_locks: ChargeLocks | None = None

    @property
    def reads(self) -> Endpoint:
        """The endpoint of the reads."""
        if self._made_reads is None:
            self._made_reads = Endpoint(self._new_pace(None), self._clock, self)
        return self._made_reads

    def endpoint_of(self, request: Request[Any]) -> Endpoint:
        """Return the one that a request goes to."""
        return self.cancels if request.method == "POST" else self.reads

    @property
    def in_trouble(self) -> bool:
        """Whether a pace is down because Stripe fails."""
        reads = self._made_reads
        return self.cancels.pace.in_trouble or (
            reads is not None and reads.pace.in_trouble
        )

    def record_reply(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> bool:
        """Learn what came of an attempt; see `AccountPacer.record_reply`.

        Returns:
            Whether a request may go out sooner now.
        """
        limit, endpoint = classification.limit, self.endpoint_of(request)
        sooner = False
        if limit is None or limit is Limit.LOCK:
            endpoint.record_other(item, request, classification, attempt)
            sooner = True
        elif classification.limits_account:
            self.cancels.record_limit(limit, attempt)
            self.reads.record_limit(limit, attempt)
        else:
            endpoint.record_limit(limit, attempt)
        if endpoint is self.cancels:
            self._note_lock(item, locked=limit is Limit.LOCK)
        return sooner

    async def acquire_slot(self, item: Item, request: Request[Any]) -> bool:
        """Wait until a request of a call may go out; tell whether it may."""
        endpoint = self.endpoint_of(request)
        if endpoint is self.cancels and self._charge_locks is not None:
            await self._charge_locks.acquire(item)
        if not self.has_answered:  # then it has no pace to keep to
            return not endpoint.closed
        return await endpoint.acquire_slot()

    def notify(self) -> None:
        """Wake the calls that wait for a slot that may be free sooner."""
        if self.cancels.waiting:
            self.cancels.notify()
        if self._made_reads is not None:
            self._made_reads.notify()

    # --------------------------------------------------------------------- locks

    def _note_lock(self, item: Item, *, locked: bool) -> None:
        if locked and self._charge_locks is None:
            self._charge_locks = ChargeLocks()
        if self._charge_locks is not None:
            self._charge_locks.note(item, locked=locked)

    def release_charge(self, item: Item) -> None:
        """Note that an item's call has ended: another one of its charge may retry."""
        if self._charge_locks is not None:
            self._charge_locks.release(item)

    def needs_charge(self, item: Item) -> bool:
        """Tell whether only the item's charge can tell what it has to wait for."""
        locks = self._charge_locks
        return locks is not None and locks.needs_charge(item)

    def learn_charge(self, item: Item, charge: str | None) -> None:
        """Note the charge of an item; ``None`` if it could not be learned."""
        assert self._charge_locks is not None  # noqa: S101 - `needs_charge` comes before
        self._charge_locks.learn(item, charge)
