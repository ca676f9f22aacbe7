"""Locks per charge: one write at a time on the refunds of one charge.

https://docs.stripe.com/rate-limits#object-lock-timeouts
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class ChargeLocks:
    """Who writes, and who waits to; each name is known only while somebody does."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def held(self, name: Hashable) -> bool:
        """Return whether somebody has the lock."""
        return name in self._entries

    async def take(self, name: Hashable, *, wait: float) -> bool:
        """Take the lock, first come first served, or return False.

        Args:
            name: Whose lock it is.
            wait: For how many seconds to wait if another has it.
        """
        entry = self._entries.setdefault(name, _Entry())
        entry.users += 1
        taken = False
        try:
            if wait > 0 or not entry.lock.locked():
                async with asyncio.timeout(wait if entry.lock.locked() else None):
                    taken = await entry.lock.acquire()
        except TimeoutError:
            pass
        finally:
            if not taken:
                self._leave(name, entry)
        return taken

    def release(self, name: Hashable) -> None:
        """Give back a lock that was taken."""
        entry = self._entries[name]
        entry.lock.release()
        self._leave(name, entry)

    def _leave(self, name: Hashable, entry: _Entry) -> None:
        entry.users -= 1
        if not entry.users:
            del self._entries[name]
