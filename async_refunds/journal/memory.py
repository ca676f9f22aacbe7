"""The journal of a batch that has none: it knows what is under way, and forgets."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from .base import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from async_refunds.results import CancelRequest, CancelResult

WINDOW = 1000
"""Items. What is read ahead, so that a slow account in front holds up no other one."""


class MemoryJournal:
    """A window on the input: what is waiting in it and what is under way.

    An item that is in it already is merged with itself.

    Args:
        window: How many items it holds.
        clock: Unix seconds.
        new_key: Makes an idempotency key.
    """

    def __init__(
        self,
        *,
        window: int = WINDOW,
        clock: Callable[[], float] = time.time,
        new_key: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._window = window
        self._clock = clock
        self._new_key = new_key
        self._count = 0
        self._waiting: dict[str | None, deque[tuple[int, str]]] = {}
        self._held: set[tuple[str | None, str]] = set()
        self._room = asyncio.Event()

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        """Take the items in, as far as there is room, and wait for more."""
        for request in requests:
            item = (request.stripe_account, request.refund_id)
            if item in self._held:
                continue
            while len(self._held) >= self._window:
                self._room.clear()
                await self._room.wait()
            self._held.add(item)
            self._count += 1
            waiting = self._waiting.setdefault(request.stripe_account, deque())
            waiting.append((self._count, request.refund_id))

    async def claim(self, stripe_account: str | None, limit: int) -> list[Claim]:
        """Give out the next items of an account."""
        waiting = self._waiting.get(stripe_account, deque())
        taken = list(islice(waiting, limit))
        for _ in taken:
            waiting.popleft()
        if not waiting:
            self._waiting.pop(stripe_account, None)
        now = self._clock()
        return [
            Claim(
                number=number,
                refund_id=refund_id,
                stripe_account=stripe_account,
                idempotency_key=self._new_key(),
                key_created_at=now,
                asked=False,
            )
            for number, refund_id in taken
        ]

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a fresh key."""
        return msgspec.structs.replace(
            claim,
            idempotency_key=self._new_key(),
            key_created_at=self._clock(),
            asked=False,
        )

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Do nothing: with the batch, all of it is forgotten."""

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Forget the items."""
        for claim, _ in known:
            self._held.discard((claim.stripe_account, claim.refund_id))
        self._room.set()

    async def accounts(self) -> list[str | None]:
        """Return the accounts with items that wait."""
        return list(self._waiting)

    async def close(self) -> None:
        """Do nothing: nothing is kept."""
