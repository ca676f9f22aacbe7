"""A Celery worker cancels refunds, and asks again for what it does not know."""

# Its client has untyped parts.
# pyright: basic

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from async_refunds import RefundNotFoundError
from tests.support.app_server import start

if TYPE_CHECKING:
    from redis import Redis

    from async_refunds.emulator import Emulator


def soon(result: Any) -> Any:  # noqa: ANN401 - as Celery has it
    return result.get(timeout=60, interval=0.05)


def test_worker_cancels_and_asks_again_with_the_same_key(
    redis: Redis, stripe_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"redis://127.0.0.1:{redis.get_connection_kwargs()['port']}"
    monkeypatch.setenv("BROKER_URL", f"{url}/0")
    monkeypatch.setenv("RESULTS", f"{url}/1")
    ids = [stripe_emulator.add_refund() for _ in range(2)]
    paid = stripe_emulator.add_refund(status="succeeded")
    # The first answer is lost, and all that would tell what it did.
    stripe_emulator.faults.script("reset_after", "503", "503", "503")
    module: Any = import_module("tests.apps.celery_app")
    first = module.cancel.delay(ids[0])
    worker = start(
        [
            *("celery", "-A", "tests.apps.celery_app", "worker"),
            *("--concurrency", "1", "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ],
        stripe_emulator,
    )
    try:
        assert soon(first) == {
            "refund": ids[0],
            "status": "canceled",
        }
        others = [module.cancel.delay(each) for each in (ids[1], paid, "re_missing")]
        done, refused, missing = others
        assert soon(done) == {
            "refund": ids[1],
            "status": "canceled",
        }
        assert soon(refused) == {
            "refund": paid,
            "status": "succeeded",
        }
        # Rebuilt by Celery from what the worker wrote as JSON.
        with pytest.raises(RefundNotFoundError, match="re_missing"):
            soon(missing)
    finally:
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=60)
        sys.modules.pop("tests.apps.celery_app")
    asked = [each for each in stripe_emulator.requests if ids[0] in each.path]
    cancels = [each.idempotency_key for each in asked if each.method == "POST"]
    assert len(cancels) == 3
    assert set(cancels) == {first.id}
    assert stripe_emulator.books.cancellations == dict.fromkeys(ids, 1)
    assert f"idempotency_key='{first.id}'" in log, "the retry's line has the key"
    assert "CANARY" not in log
