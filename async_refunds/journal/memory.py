"""The journal of a batch without one: it holds what is under way, no more."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from .base import (
    BatchGuard,
    Claim,
    Leases,
    Record,
    Tally,
    check_limits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from async_refunds.results import CancelOutcome, CancelRequest, CancelResult

WINDOW = 1000
"""Items read ahead, so that a slow account at the front does not hold up the others."""


class MemoryJournal(BatchGuard):
    """A `Journal` that holds a window of the input and forgets what has a result.

    An item that is in the window is not added again. The next batch on the same object
    gets what the last one left without a result.

    Args:
        window: How many items it holds.
        clock: Gives Unix seconds.
        new_key: Gives an idempotency key that was never used before.
    """

    run = None  # any client may use it
    leases: Leases | None = None  # nobody shares it

    def __init__(
        self,
        *,
        window: int = WINDOW,
        clock: Callable[[], float] = time.time,
        new_key: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        super().__init__()
        self._window = window
        self._clock = clock
        self._new_key = new_key
        self._count = 0
        self._numbers: dict[tuple[str | None, str], int] = {}  # of all it holds
        self._claims: dict[int, Claim] = {}
        self._unknown: dict[tuple[str | None, str], Claim] = {}
        """Of the items that ended `unknown` and are not in the window any more."""
        self._pending: dict[str | None, deque[tuple[int, str]]] = {}
        self._outcomes: Counter[CancelOutcome | None] = Counter()
        self._room = asyncio.Event()

    def now(self) -> float:
        """See `Journal.now`."""
        return self._clock()

    def begin(self, credentials: str = "") -> None:
        """Begin a batch: all items may be claimed."""
        if credentials != self._credentials:
            self._forget_credentials()
        super().begin(credentials)
        self._pending.clear()
        for (account, refund_id), number in self._numbers.items():
            self._put(account, number, refund_id)

    def _forget_credentials(self) -> None:
        """Note that another batch sends with others than those before."""
        for number, claim in self._claims.items():
            self._claims[number] = _of_several(claim)
        for item, claim in self._unknown.items():
            self._unknown[item] = _of_several(claim)

    def _put(self, account: str | None, number: int, refund_id: str) -> None:
        self._pending.setdefault(account, deque()).append((number, refund_id))

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        """Take the items in, as far as there is room, and wait for more room."""
        for request in requests:
            item = (request.stripe_account, request.refund_id)
            if item in self._numbers:
                continue
            while len(self._numbers) >= self._window:
                self._room.clear()
                await self._room.wait()
            self._count += 1
            self._numbers[item] = self._count
            self._put(request.stripe_account, self._count, request.refund_id)

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        """Give out the next items of some accounts."""
        check_limits(limits)
        return {
            account: self._next(account, limit) for account, limit in limits.items()
        }

    def _next(self, stripe_account: str | None, limit: int) -> list[Claim]:
        pending = self._pending.get(stripe_account, deque())
        taken = list(islice(pending, limit))
        for _ in taken:
            pending.popleft()
        if not pending:
            self._pending.pop(stripe_account, None)
        return [
            self._claimed(number, refund_id, stripe_account)
            for number, refund_id in taken
        ]

    def _claimed(self, number: int, refund_id: str, account: str | None) -> Claim:
        known = self._claims.get(number) or self._unknown.get((account, refund_id))
        now = self._clock()
        if known is None:
            key = self._new_key()
            claim = Claim(
                *(number, refund_id, account, key, now),
                maybe_sent=False,
                key_unused_until=now,
                same_credentials=bool(self._credentials),
            )
        else:
            claim = msgspec.structs.replace(known, number=number, maybe_sent=True)
        # Its age counts from now, when it is about to be sent.
        self._claims[number] = msgspec.structs.replace(claim, key_created_at=now)
        return claim

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a new key."""
        now = self._clock()
        new = msgspec.structs.replace(
            claim,
            idempotency_key=self._new_key(),
            key_created_at=now,
            maybe_sent=False,
            key_unused_until=now,
            same_credentials=bool(self._credentials),
        )
        self._claims[claim.number] = new
        return new

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Take back items that were never sent; the next batch gets them."""
        for claim in claims:
            if not claim.maybe_sent:
                self._claims.pop(claim.number, None)

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Count the results and forget the items."""
        for claim, result in known:
            item = (claim.stripe_account, claim.refund_id)
            if self._numbers.get(item) == claim.number:
                del self._numbers[item]
                kept = self._claims.pop(claim.number, claim)
                # Where it comes again, it is asked for with the same key.
                self._unknown.pop(item, None)
                if result.outcome == "unknown":
                    self._unknown[item] = kept
                self._outcomes[result.outcome] += 1
        self._room.set()

    async def hand_over(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep the results: nobody shares it."""
        await self.settle(known)

    async def accounts(self) -> list[str | None]:
        """Return the accounts with items that can be claimed."""
        return list(self._pending)

    def tally(self) -> Tally:
        """Count the items in the window, and the results so far."""
        outcomes = self._outcomes.copy()
        for record in self.records():
            outcomes[record.outcome] += 1
        return Tally(open=len(self._numbers), outcomes=outcomes)

    def records(self) -> Iterator[Record]:
        """Yield the items in the window, none of which has a result."""
        for (account, refund_id), number in list(self._numbers.items()):
            claim = self._claims.get(number)
            yield Record(
                number=number,
                refund_id=refund_id,
                stripe_account=account,
                outcome=None if claim is None else "unknown",
                status=None,
                idempotency_key=None if claim is None else claim.idempotency_key,
                attempts=0,
                request_id=None,
                error=None,
                seconds=None,
                settled=False,
            )

    async def close(self) -> None:
        """Do nothing: nothing is kept."""


def _of_several(claim: Claim) -> Claim:
    return msgspec.structs.replace(claim, same_credentials=False)
