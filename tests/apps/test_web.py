"""What the web services answer, over HTTP, and what a client that hangs up does."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.app_server import Service, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.emulator import Emulator

UVICORN = ("uvicorn", "--fd", "FD", "--log-level", "warning")
SERVERS = {
    "FastAPI": (*UVICORN, "tests.apps.fastapi_app:app"),
    "aiohttp.web": ("tests.apps.aiohttp_app", "FD"),
    "Django": (*UVICORN, "tests.apps.django_app:application"),
}
# Two attempts, and two reads that would settle it.
FAILING = ["503"] * 4
LOST = ["reset_after", "503", "503", "503"]


@pytest.fixture(params=SERVERS)
def service(
    request: pytest.FixtureRequest, stripe_emulator: Emulator
) -> Iterator[Service]:
    module, *arguments = SERVERS[request.param]
    with running(module, *arguments, stripe=stripe_emulator) as service:
        yield service


def test_service_answers_what_became_of_it(
    service: Service, stripe_emulator: Emulator
) -> None:
    waiting, paid = (
        stripe_emulator.add_refund(),
        stripe_emulator.add_refund(status="succeeded"),
    )
    with httpx.Client(base_url=service.url, timeout=60) as shop:
        done = shop.post(f"/refunds/{waiting}/cancel")
        assert (done.status_code, done.json()["status"]) == (200, "canceled")
        assert done.json()["id"] == waiting

        again = shop.post(f"/refunds/{waiting}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "canceled")

        refused = shop.post(f"/refunds/{paid}/cancel")
        assert (refused.status_code, refused.json()) == (409, {"status": "succeeded"})

        missing = shop.post("/refunds/re_missing/cancel")
        assert (missing.status_code, missing.json()) == (404, {"status": "not found"})

        stripe_emulator.faults.script("rate_429", "rate_429")
        overloaded = shop.post(f"/refunds/{paid}/cancel")
        assert overloaded.status_code == 503
        assert overloaded.headers["Retry-After"] == "5"


def test_unknown_outcome_is_asked_again_with_the_key_or_closed_by_a_webhook(
    service: Service, stripe_emulator: Emulator
) -> None:
    first, second = stripe_emulator.add_refund(), stripe_emulator.add_refund()
    with httpx.Client(base_url=service.url, timeout=60) as shop:
        stripe_emulator.faults.script(*FAILING)
        lost = shop.post(
            f"/refunds/{first}/cancel", headers={"Idempotency-Key": "intent-1"}
        )
        assert lost.status_code == 202
        assert lost.json() == {"status": "unknown", "key": "intent-1"}
        assert shop.get("/cancellations/intent-1").json() == {"status": "unknown"}
        asked = shop.post("/cancellations/intent-1")
        assert (asked.status_code, asked.json()["status"]) == (200, "canceled")
        assert shop.get("/cancellations/intent-1").json() == {"status": "known"}

        stripe_emulator.faults.script(*LOST)
        lost = shop.post(f"/refunds/{second}/cancel")
        assert lost.status_code == 202
        key = lost.json()["key"]
        assert stripe_emulator.refund(second)["status"] == "canceled"
        closed = f"/cancellations/{key}"
        while shop.get(closed).json() != {"status": "known"}:
            pass  # the event comes a little later

        forged = shop.post("/webhook", headers={"Stripe-Signature": "t=1,v1=00"})
        assert forged.status_code == 400
    assert stripe_emulator.books.cancellations == {first: 1, second: 1}


HANG_UPS = {
    "FastAPI on uvicorn": (SERVERS["FastAPI"], "canceled"),
    "aiohttp.web": (SERVERS["aiohttp.web"], "canceled"),
    "aiohttp.web with handler_cancellation": (
        (*SERVERS["aiohttp.web"], "--cancel-handlers"),
        "interrupted",
    ),
    "Django on uvicorn": (SERVERS["Django"], "interrupted"),
}


@pytest.mark.parametrize(("command", "outcome"), HANG_UPS.values(), ids=HANG_UPS.keys())
def test_client_that_hangs_up(
    command: tuple[str, ...], outcome: str, stripe_emulator: Emulator
) -> None:
    """The table of the README."""
    refund_id = stripe_emulator.add_refund()
    stripe_emulator.latency = 1.0
    with running(command[0], *command[1:], stripe=stripe_emulator) as service:
        parts = urlsplit(service.url)
        with socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(
                f"POST /refunds/{refund_id}/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                "Content-Length: 0\r\nIdempotency-Key: intent-1\r\n\r\n".encode()
            )
            while not stripe_emulator.requests:  # they come in another thread
                time.sleep(0)
        assert service.next_outcome() == outcome
        # Whatever became of the handler: with its key it can be asked again.
        with httpx.Client(base_url=service.url, timeout=60) as shop:
            done = shop.post(
                f"/refunds/{refund_id}/cancel", headers={"Idempotency-Key": "intent-1"}
            )
            assert done.status_code == 200
    assert stripe_emulator.books.cancellations == {refund_id: 1}
