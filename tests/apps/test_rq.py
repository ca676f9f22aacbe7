"""An RQ worker cancels refunds, and asks again for what it does not know."""

# RQ's types are partly unknown.
# pyright: basic

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rq import Queue

from tests.apps import rq_app
from tests.support.app_server import start

if TYPE_CHECKING:
    from redis import Redis
    from rq.job import Job

    from async_refunds.emulator import Emulator


# Two requests, and two reads that would settle it.
LOST = ("reset_after", "503", "503", "503")


def work(redis: Redis, stripe: Emulator) -> str:
    """Let a worker do all jobs that wait; return what it logged."""
    port = redis.get_connection_kwargs()["port"]
    worker = start(
        ["rq.cli", "worker", "--url", f"redis://127.0.0.1:{port}", "--burst", "jobs"],
        stripe,
    )
    out, log = worker.communicate(timeout=60)
    assert worker.returncode == 0
    return out + log


def text_of(job: Job) -> str:
    result = job.latest_result()
    assert result is not None
    return str(result.exc_string)


def test_worker_cancels_and_asks_again_with_the_same_key(
    redis: Redis, stripe_emulator: Emulator
) -> None:
    queue = Queue("jobs", connection=redis)
    waiting, lost = stripe_emulator.add_refund(), stripe_emulator.add_refund()
    paid = stripe_emulator.add_refund(status="succeeded")
    ids = (waiting, paid, "re_missing")
    jobs = [rq_app.enqueue(queue, each, intervals=(0,)) for each in ids]
    # The first answer is lost, and all that would tell what it did.
    stripe_emulator.faults.script(*LOST)
    log = work(redis, stripe_emulator)
    results: list[Any] = [each.return_value() for each in jobs]
    done, refused, missing = results
    assert done == {"refund": waiting, "status": "canceled"}
    assert refused == {"refund": paid, "status": "succeeded"}
    assert missing["status"] == "refused"
    assert "re_missing" in missing["why"]
    asked = [each for each in stripe_emulator.requests if waiting in each.path]
    cancels = [each.idempotency_key for each in asked if each.method == "POST"]
    assert len(cancels) == 3
    assert set(cancels) == {jobs[0].id}

    unknown = queue.enqueue(rq_app.cancel, lost)
    stripe_emulator.faults.script(*LOST)
    log += work(redis, stripe_emulator)
    assert unknown.is_failed
    assert f"idempotency_key='{unknown.id}'" in text_of(unknown)
    assert stripe_emulator.books.cancellations == {waiting: 1, lost: 1}
    assert "CANARY" not in log + text_of(unknown)
