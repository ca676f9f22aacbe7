"""Celery: ``celery -A tests.apps.celery_app worker``.

A worker's process has one event loop and one client for all its tasks. The key of a
cancel is the task's id, which is the same when the task is retried, or delivered again
after a crash: nothing is canceled twice, and nothing has to be kept for it.
"""

# Celery has no types.
# pyright: basic

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.signals import worker_process_init, worker_process_shutdown

from async_refunds import (
    APIConnectionError,
    OutcomeUnknownError,
    RateLimitError,
    RefundNotCancelableError,
    RefundsClient,
    RetryPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

app = Celery(__name__, broker=os.environ["BROKER_URL"], backend=os.environ["RESULTS"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
)


class Worker:
    """What the tasks of a process share."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.refunds = RefundsClient(
            os.environ["STRIPE_API_KEY"],
            base_url=os.environ.get("STRIPE_BASE_URL", "https://api.stripe.com"),
            retry=RetryPolicy(max_retries=1, initial_delay=0.1),  # Celery retries
        )

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - its result
        return self._runner.run(call)

    def close(self) -> None:
        self.run(self.refunds.close())
        self._runner.close()


workers: list[Worker] = []


@worker_process_init.connect
def open_worker(**_: object) -> None:
    workers.append(Worker())


@worker_process_shutdown.connect
def close_worker(**_: object) -> None:
    workers.pop().close()


@app.task(
    bind=True,
    autoretry_for=(OutcomeUnknownError, RateLimitError, APIConnectionError),
    retry_backoff=True,
    retry_backoff_max=600,
    max_retries=20,  # within the day for which Stripe keeps the key
)
def cancel(task: Task, refund_id: str) -> dict[str, Any]:
    worker = workers[0]
    call = worker.refunds.cancel(
        refund_id, idempotency_key=task.request.id, already_canceled_ok=True
    )
    try:
        refund = worker.run(call)
    except RefundNotCancelableError as error:
        return {"refund": refund_id, "status": error.refund.status}
    return {"refund": refund_id, "status": refund.status}
