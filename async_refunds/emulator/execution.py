"""Carries requests out: at once, or over a time in which they hold what they took."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from . import errors
from .locks import ChargeLocks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .timing import Timing
    from .visit import Visit


class Executions:
    """What is being carried out.

    Args:
        timing: How long it takes.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._locks = ChargeLocks()
        self._lasting: set[asyncio.Task[None]] = set()

    def run_at_once(
        self, visit: Visit, *, broken: bool = False, late: float = 0.0
    ) -> bool:
        """Do what `run` does, unless it takes time; return whether it is done.

        If it is not, the request is let in, and `run` goes on from there.
        """
        if not visit.admitted:
            visit.admit()
        # What is refused, or replayed, is not carried out.
        if late or not (visit.status or self._free(visit)):
            return False
        visit.execute(broken=broken)
        visit.finish()
        return True

    async def run(
        self, visit: Visit, *, broken: bool = False, late: float = 0.0
    ) -> None:
        """Let a request in, carry it out and end it, if it is not refused.

        What takes its time goes on when the client hangs up, as it does at Stripe.

        Args:
            visit: The request.
            broken: Do it, but answer a 500 in place of the result.
            late: How long to hold the answer back once everything is done.
        """
        if self.run_at_once(visit, broken=broken, late=late):
            return
        task = asyncio.create_task(self._at_length(visit, broken=broken, late=late))
        self._lasting.add(task)
        task.add_done_callback(self._lasting.discard)
        await asyncio.shield(task)

    @asynccontextmanager
    async def holding(self, visit: Visit) -> AsyncGenerator[None]:
        """Let a request in, and let it hold its place, its key and its charge."""
        visit.admit()
        name = visit.lock
        locked = name is not None and await self._locks.take(name, wait=0)
        try:
            yield
        finally:
            visit.finish()
            if locked:
                self._locks.release(name)

    async def close(self) -> None:
        """End at once what takes its time: what is not done by then never is."""
        for task in self._lasting:
            task.cancel()
        if self._lasting:
            await asyncio.wait(self._lasting)

    def _free(self, visit: Visit) -> bool:
        """Return whether nothing stands in the way, and nothing takes its time."""
        if self._timing.latency:
            return False
        return not (self._locks and visit.lock and self._locks.held(visit.lock))

    async def _at_length(self, visit: Visit, *, broken: bool, late: float) -> None:
        name = None if visit.status else visit.lock
        locked = False
        try:
            if name is not None:
                wait = self._timing.lock_wait
                locked = await self._locks.take(name, wait=wait)
                if not locked:
                    visit.refuse(errors.lock_timeout())
            if not visit.status:
                await asyncio.sleep(self._timing.latency)
                visit.execute(broken=broken)
            await asyncio.sleep(late)
        finally:
            visit.finish()
            if locked:
                self._locks.release(name)
