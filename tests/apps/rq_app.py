"""RQ: ``rq worker --with-scheduler refunds``.

RQ forks a process for each job, so a job has an event loop and a client of its own. The
key of a cancel is the job's id, which is the same when the job is retried: nothing is
canceled twice, and nothing has to be kept for it. Of a job that failed RQ keeps the
text of its error, which has the key too.
"""

# RQ's types are partly unknown.
# pyright: basic

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from rq import Retry, get_current_job

from async_refunds import (
    InvalidRequestError,
    RefundNotCancelableError,
    RefundsClient,
    RetryPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rq import Queue
    from rq.job import Job

# Seconds, all within the day for which Stripe keeps the key.
INTERVALS = (10, 60, 300, 1800, 3600, 3600)


def enqueue(queue: Queue, refund_id: str, intervals: Sequence[int] = INTERVALS) -> Job:
    """Cancel a refund soon, and ask again for what stays unknown."""
    later = Retry(max=len(intervals), interval=list(intervals))
    return queue.enqueue(cancel, refund_id, retry=later)


def cancel(refund_id: str) -> dict[str, Any]:
    job = get_current_job()
    assert job is not None
    return asyncio.run(cancel_as(refund_id, job.id))


async def cancel_as(refund_id: str, key: str) -> dict[str, Any]:
    client = RefundsClient(
        os.environ["STRIPE_API_KEY"],
        base_url=os.environ.get("STRIPE_BASE_URL", "https://api.stripe.com"),
        retry=RetryPolicy(max_retries=1, initial_delay=0.1),  # RQ retries
    )
    async with client:
        try:
            refund = await client.cancel(
                refund_id, idempotency_key=key, timeout=30.0, already_canceled_ok=True
            )
        except RefundNotCancelableError as error:
            return {"refund": refund_id, "status": error.refund.status}
        except InvalidRequestError as error:
            # A result: RQ would retry an error, whichever it is.
            return {"refund": refund_id, "status": "refused", "why": str(error)}
    return {"refund": refund_id, "status": refund.status}
