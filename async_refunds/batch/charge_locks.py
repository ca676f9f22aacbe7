"""One retry at a time for the refunds of a charge.

Stripe locks a charge while it cancels one of its refunds. A cancel of another refund of
that charge fails meanwhile with a 429 ``lock_timeout``
(https://docs.stripe.com/rate-limits#object-lock-timeouts). If several of them retried
at the same time, all but one would fail again. So they wait for each other.

A cancel that never met a lock waits for nobody.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .item import Item

# Stands for the charge of refunds whose charge could not be read: one of them retries
# at a time, as if they were all of the same charge.
_UNKNOWN = ""


class ChargeLocks:
    """Lets one refund of a charge retry at a time, among those that met a lock."""

    __slots__ = ("_held", "_locked", "_locks")

    def __init__(self) -> None:
        # The items whose last cancel met a lock, and their charges; None: not read yet.
        self._locked: dict[Item, str | None] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # The items that hold the lock of a charge.
        self._held: dict[Item, str] = {}

    def note(self, item: Item, *, locked: bool) -> None:
        """Note whether the last cancel of an item met a lock."""
        if not locked:
            self._locked.pop(item, None)
        else:
            self._locked.setdefault(item, self._held.get(item))

    def needs_charge(self, item: Item) -> bool:
        """Tell whether to read the charge of an item before it retries.

        A single item that met a lock needs no read: no other item waits with it.
        """
        return len(self._locked) > 1 and self._locked.get(item, _UNKNOWN) is None

    def learn(self, item: Item, charge: str | None) -> None:
        """Note the charge of an item that met a lock; ``None``: it was not readable."""
        self._locked[item] = charge or _UNKNOWN

    async def acquire(self, item: Item) -> None:
        """If the item met a lock, wait until no other one of its charge retries."""
        charge = self._locked.get(item)
        if charge is None or item in self._held:
            return
        await self._locks.setdefault(charge, asyncio.Lock()).acquire()
        self._held[item] = charge

    def release(self, item: Item) -> None:
        """Note that an item's call has ended: another one of its charge may retry."""
        self._locked.pop(item, None)
        charge = self._held.pop(item, None)
        if charge is not None:
            self._locks[charge].release()
            if charge not in self._held.values() and not self._has_waiters(charge):
                del self._locks[charge]

    def _has_waiters(self, charge: str) -> bool:
        return charge in self._locked.values()
