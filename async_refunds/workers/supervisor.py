"""Keeps procrastinate's worker alive, whatever becomes of it or of the database."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from async_refunds import telemetry
from async_refunds.journal.postgres.connection import describe

from .app import QUEUE, context_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from procrastinate import App

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds until it begins again, doubled each time that it does not last."""
_LASTING = 60.0
"""Seconds after which one that ends did last."""
_JOBS = 10
"""At once. Each only wakes our worker."""
_GRACE = 1.0
"""Seconds for its jobs, and then for the whole, to end."""


class Supervisor:
    """Runs procrastinate's worker beside ours. Its end never ends ours.

    Args:
        app: The app.
        wake: Called with the scope in which a job says that there is work.
    """

    def __init__(self, app: App, wake: Callable[[str], object]) -> None:
        self._app = app
        self._wake = wake
        self.restarts = 0
        """How often it had to be started again."""

    async def run(self) -> None:
        """Run it until the task is cancelled."""
        clock = asyncio.get_running_loop().time
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        pause = _FIRST_PAUSE
        while True:
            began = clock()
            try:
                await self._run_once()
            except Exception as error:  # noqa: BLE001 - ours goes on, whatever it was
                why = describe(error)
            else:
                why = "it ended"
            if task.cancelling():
                # An error of its end has taken the place of the cancellation.
                raise asyncio.CancelledError
            if clock() - began > _LASTING:
                pause = _FIRST_PAUSE
            telemetry.log(
                logging.WARNING,
                "procrastinate's worker stopped (%s); it begins again in %.1f s",
                why,
                pause,
            )
            await asyncio.sleep(pause)
            self.restarts += 1
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_once(self) -> None:
        try:
            await self._app.open_async()
            await self._app.run_worker_async(
                queues=[QUEUE],
                concurrency=_JOBS,
                install_signal_handlers=False,
                delete_jobs="always",
                shutdown_graceful_timeout=_GRACE,
                additional_context=context_of(self._wake),
            )
        finally:
            # Also after a failure: a pool that was opened in vain is closed for good,
            # and the app would keep it.
            await self._app.close_async()


async def end(running: asyncio.Task[None]) -> None:
    """End a supervisor's task; wait for it no longer than two seconds.

    What procrastinate still waits for then, such as the database, is broken off.
    """
    running.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait([running], timeout=2 * _GRACE)
    running.cancel()
