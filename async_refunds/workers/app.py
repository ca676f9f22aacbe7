"""What procrastinate does for a fleet: it wakes workers, and begins the nightly sweep.

Nothing rests on it. A job says only that an account has work, and a worker that is
never woken finds the work anyway, within a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import procrastinate
from procrastinate.jobs import Status

from async_refunds.journal.postgres.connection import Database

if TYPE_CHECKING:
    from collections.abc import Callable

    from procrastinate import App, JobContext

QUEUE = "async_refunds"
"""The queue of all jobs."""
WAKE = "async_refunds.wake"
"""The task that the SQL function ``async_refunds.enqueue`` asks for, one job for each
account that has got more."""
_TIDY, _SWEEP = "async_refunds.tidy", "async_refunds.sweep"
_WAKES = "async_refunds_wake"  # in the context of a job

# Seconds without a heartbeat after which a worker that had a job is gone. Its job is
# done all the same: somebody has seen the work by then.
_STALLED = 300
_HOURLY = "23 * * * *"
_POOL_PATIENCE = 5.0  # seconds for a connection


def new_app(database: str = "", *, connections: int = 4) -> App:
    """Return a procrastinate app of its own for a worker, with the tasks of a fleet.

    Args:
        database: As libpq has it. procrastinate's tables have to be there
            (``procrastinate schema --apply``), in the same database.
        connections: The most at once.
    """
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(
            conninfo=Database(database).conninfo,
            min_size=1,
            max_size=connections,
            timeout=_POOL_PATIENCE,
            kwargs={"application_name": "async_refunds procrastinate"},
        )
    )
    add_tasks(app)
    return app


def add_tasks(app: App) -> None:
    """Add the tasks of a fleet to an app that has others too."""
    app.task(name=WAKE, queue=QUEUE, pass_context=True)(_wake)
    # Also because procrastinate watches its own side tasks only while it has something
    # periodic: else the end of its heartbeat goes unnoticed (3.10, `worker.py`).
    tidy = app.task(name=_TIDY, queue=QUEUE, pass_context=True, queueing_lock=_TIDY)
    app.periodic(cron=_HOURLY)(tidy(_tidy))


def add_sweep(
    app: App, sweep: Callable[[int], Any], *, cron: str = "7 3 * * *"
) -> None:
    """Have something done each night, such as `sweep`, by one worker of all.

    Args:
        app: The app.
        sweep: A coroutine function; its argument is the time for which it is, in Unix
            seconds.
        cron: When, in UTC.
    """
    task = app.task(name=_SWEEP, queue=QUEUE, queueing_lock=_SWEEP)

    async def begin(timestamp: int) -> None:
        await sweep(timestamp)

    app.periodic(cron=cron)(task(begin))


def context_of(wake: Callable[[str], object]) -> dict[str, Any]:
    """Return the context with which a procrastinate worker wakes ours.

    Args:
        wake: Called with the scope in which there is work.
    """
    return {_WAKES: wake}


async def _wake(context: JobContext, scope: str, account: str) -> None:
    """Let the worker of this process look for work."""
    del account  # the worker looks for all that it can take
    values: dict[str, Any] = cast("Any", context).additional_context
    wake: Callable[[str], object] | None = values.get(_WAKES)
    if wake is not None:
        wake(scope)


async def _tidy(context: JobContext, timestamp: int) -> None:
    """Remove the jobs of workers that were killed: nobody else does."""
    del timestamp
    manager = context.app.job_manager
    for job in await manager.get_stalled_jobs(
        queue=QUEUE, seconds_since_heartbeat=_STALLED
    ):
        await manager.finish_job(job, status=Status.FAILED, delete_job=True)
