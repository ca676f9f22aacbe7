"""Executes requests: at once, or over a time in which they hold what they took."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from async_refunds.emulator.api import errors
from async_refunds.emulator.state.locks import ChargeLocks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds.emulator.api.request import RequestContext
    from async_refunds.emulator.state.stripe_state import StripeState


class Executor:
    """Executes the requests of one server.

    Args:
        state: Says how long an execution takes, and how long a write waits for a lock.
    """

    def __init__(self, state: StripeState) -> None:
        self._state = state
        self._locks = ChargeLocks()
        self._tasks: set[asyncio.Task[None]] = set()

    def run_at_once(
        self, context: RequestContext, *, fail: bool = False, delay: float = 0.0
    ) -> bool:
        """Execute the request as `run` does, unless that takes time.

        Returns:
            Whether it is done. If not, it is admitted, and `run` continues from there.
        """
        if not context.admitted:
            context.admit()
        # A request that is answered already, by an error or a replay, is not executed.
        if delay or not (context.status or self._is_free(context)):
            return False
        context.execute(fail=fail)
        context.finish()
        return True

    async def run(
        self, context: RequestContext, *, fail: bool = False, delay: float = 0.0
    ) -> None:
        """Admit, execute and finish a request.

        The execution continues when the client hangs up, as it does at Stripe.

        Args:
            context: The request.
            fail: Do the work, but answer with a 500.
            delay: How many seconds to wait after the execution.
        """
        if self.run_at_once(context, fail=fail, delay=delay):
            return
        task = asyncio.create_task(self._run(context, fail=fail, delay=delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    @asynccontextmanager
    async def hold(self, context: RequestContext) -> AsyncGenerator[None]:
        """Admit a request and let it hold its key and its charge without executing."""
        context.admit()
        name = context.lock
        lock = None if name is None else await self._locks.acquire(name, wait=0)
        try:
            yield
        finally:
            context.finish()
            if lock is not None:
                lock.release()

    async def close(self) -> None:
        """Cancel every execution that takes time."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _is_free(self, context: RequestContext) -> bool:
        """Return whether the request can be executed without waiting."""
        if self._state.latency:
            return False
        # The first check is the cheaper one.
        name = context.lock if self._locks else None
        return name is None or not self._locks.in_use(name)

    async def _run(self, context: RequestContext, *, fail: bool, delay: float) -> None:
        name, lock = context.lock, None
        try:
            if name is not None:
                lock = await self._locks.acquire(name, wait=self._state.lock_wait)
                if lock is None:
                    context.refuse(errors.lock_timeout())
            if not context.status:
                await asyncio.sleep(self._state.latency)
                context.execute(fail=fail)
            await asyncio.sleep(delay)
        finally:
            context.finish()
            if lock is not None:
                lock.release()
