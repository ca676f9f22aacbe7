"""What the web services answer over HTTP, each on its real server.

To start a server takes most of the time, so that one test asks it for everything.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.app_server import KEY, Service, running

if TYPE_CHECKING:
    from async_refunds.emulator import Emulator

UVICORN = ("uvicorn", "--fd", "FD", "--log-level", "warning")
HYPERCORN = ("hypercorn", "--bind", "fd://FD", "--log-level", "warning")
AIOHTTP = ("tests.apps.aiohttp_app", "FD")

# The command, and what becomes of a handler whose client hangs up: see the README.
SERVERS: dict[str, tuple[tuple[str, ...], str]] = {
    "FastAPI on uvicorn": ((*UVICORN, "tests.apps.fastapi_app:app"), "canceled"),
    "Litestar on hypercorn": ((*HYPERCORN, "tests.apps.litestar_app:app"), "canceled"),
    "Django on uvicorn": (
        (*UVICORN, "tests.apps.django_app:application"),
        "interrupted",
    ),
    "aiohttp.web": (AIOHTTP, "canceled"),
    "aiohttp.web with handler_cancellation": (
        (*AIOHTTP, "--cancel-handlers"),
        "interrupted",
    ),
}
# Two attempts, and two reads that would settle it.
FAILING = ["503"] * 4
LOST = ["reset_after", "503", "503", "503"]


@pytest.mark.parametrize(("command", "outcome"), SERVERS.values(), ids=SERVERS)
def test_service(
    command: tuple[str, ...], outcome: str, stripe_emulator: Emulator
) -> None:
    with (
        running(*command, stripe=stripe_emulator) as service,
        httpx.Client(base_url=service.url, timeout=60) as shop,
    ):
        check_answers(shop, stripe_emulator)
        check_unknown_outcomes(shop, stripe_emulator)
        check_hang_up(service, shop, stripe_emulator, outcome)
    books = stripe_emulator.books
    assert set(books.cancellations.values()) == {1}
    assert len(books.cancellations) == 4


def check_answers(shop: httpx.Client, stripe: Emulator) -> None:
    """It says what became of the refund."""
    waiting, paid = stripe.add_refund(), stripe.add_refund(status="succeeded")
    done = shop.post(f"/refunds/{waiting}/cancel")
    assert (done.status_code, done.json()["status"]) == (200, "canceled")
    assert done.json()["id"] == waiting

    again = shop.post(f"/refunds/{waiting}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "canceled")

    key = {"Idempotency-Key": "intent-0"}
    refused = shop.post(f"/refunds/{paid}/cancel", headers=key)
    assert (refused.status_code, refused.json()) == (409, {"status": "succeeded"})

    missing = shop.post("/refunds/re_missing/cancel")
    assert (missing.status_code, missing.json()) == (404, {"status": "not found"})

    stripe.faults.script("rate_429", "rate_429")
    overloaded = shop.post(f"/refunds/{paid}/cancel", headers=key)
    assert overloaded.status_code == 503
    assert overloaded.json() == {"status": "try again later"}
    assert overloaded.headers["Retry-After"] == "5"
    stripe.restrict_key(KEY)
    not_allowed = shop.post(f"/refunds/{paid}/cancel", headers=key)
    assert not_allowed.status_code == 502
    assert not_allowed.json() == {"status": "Stripe refused it"}
    stripe.restrict_key(KEY, allow=("cancel", "retrieve"))
    # None of them leaves anything open.
    assert shop.get("/cancellations/intent-0").json() == {"status": "known"}
    assert shop.post("/cancellations/intent-0").status_code == 404


def check_unknown_outcomes(shop: httpx.Client, stripe: Emulator) -> None:
    """It is asked again with the key, or a webhook closes it."""
    first, second = stripe.add_refund(), stripe.add_refund()
    stripe.faults.script(*FAILING)
    key = {"Idempotency-Key": "intent-1"}
    lost = shop.post(f"/refunds/{first}/cancel", headers=key)
    assert lost.status_code == 202
    assert lost.json() == {"status": "unknown", "key": "intent-1"}
    wrong = shop.post(f"/refunds/{second}/cancel", headers=key)
    assert wrong.status_code == 409
    assert wrong.json() == {"status": "the key is another refund's"}
    # Overloaded, it cannot tell more of it.
    stripe.faults.script("rate_429", "rate_429")
    assert shop.post("/cancellations/intent-1").status_code == 503
    assert shop.get("/cancellations/intent-1").json() == {"status": "unknown"}
    asked = shop.post("/cancellations/intent-1")
    assert (asked.status_code, asked.json()["status"]) == (200, "canceled")
    assert shop.get("/cancellations/intent-1").json() == {"status": "known"}

    stripe.faults.script(*LOST)
    lost = shop.post(f"/refunds/{second}/cancel")
    assert lost.status_code == 202
    assert stripe.refund(second)["status"] == "canceled"
    closed = f"/cancellations/{lost.json()['key']}"
    while shop.get(closed).json() != {"status": "known"}:
        pass  # the event comes a little later

    forged = shop.post("/webhook", headers={"Stripe-Signature": "t=1,v1=00"})
    assert forged.status_code == 400


def check_hang_up(
    service: Service, shop: httpx.Client, stripe: Emulator, outcome: str
) -> None:
    """It ends as the README's table says, and can be asked again with its key."""
    refund_id = stripe.add_refund()
    received = len(stripe.requests)
    stripe.latency = 0.5
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port)) as client:
        client.sendall(
            f"POST /refunds/{refund_id}/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Content-Length: 0\r\nIdempotency-Key: intent-2\r\n\r\n".encode()
        )
        while len(stripe.requests) == received:  # they come in another thread
            time.sleep(0)
    assert service.outcome_of("intent-2") == outcome
    stripe.latency = 0.0
    key = {"Idempotency-Key": "intent-2"}
    done = shop.post(f"/refunds/{refund_id}/cancel", headers=key)
    while done.status_code == 202:  # the first request is still being executed
        done = shop.post(f"/refunds/{refund_id}/cancel", headers=key)
    assert done.json()["status"] == "canceled"
