"""Signed events: checked with Stripe's own library, as a receiver would."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import stripe
from aiohttp import web

from async_refunds.emulator import Emulator, WebhookAttempt
from tests.support.stripe_caller import Caller, serving
from tests.support.stripe_schema import check_refund

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SECRET = "whsec_test"
NOW = 1_800_000_000.0
DAY = 24 * 3600
ALL = ("refund.created", "refund.updated", "refund.failed", "charge.refund.updated")


class Receiver:
    """An endpoint that checks and keeps the events.

    Args:
        url: Where it listens.
    """

    def __init__(self) -> None:
        self.url = ""
        self.events: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.times: list[float] = []
        # The statuses of the next answers; then 200.
        self.statuses: list[int] = []

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        signature = request.headers["Stripe-Signature"]
        stripe.Webhook.construct_event(body, signature, SECRET)  # pyright: ignore[reportUnknownMemberType]
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body + b" ", signature, SECRET)  # pyright: ignore[reportUnknownMemberType]
        self.events.append(json.loads(body))
        self.headers.append(request.headers)
        self.times.append(asyncio.get_running_loop().time())
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


async def test_cancel_is_an_update_with_the_request_that_caused_it(
    api: Caller, receiver: Receiver, refund_id: str
) -> None:
    before = api.emulator.refund(refund_id)
    webhook = api.emulator.webhook(receiver.url, secret=SECRET)
    answer = await api.cancel(refund_id, "k")
    await asyncio.sleep(1)
    (event,) = receiver.events
    assert event["object"] == "event"
    assert event["id"].startswith("evt_")
    assert event["type"] == "refund.updated"
    assert event["api_version"] == "2026-10-28.endive"
    assert event["livemode"] is False
    assert event["pending_webhooks"] == 1
    assert event["request"] == {
        "id": answer.headers["Request-Id"],
        "idempotency_key": "k",
    }
    assert "account" not in event
    assert event["data"]["object"] == answer.json
    check_refund(event["data"]["object"])
    assert event["data"]["previous_attributes"] == {
        "status": "requires_action",
        "next_action": before["next_action"],
        "failure_reason": None,
        "failure_balance_transaction": None,
    }
    assert webhook.attempts == [WebhookAttempt(event["id"], "refund.updated", 200)]
    assert receiver.headers[0]["Content-Type"] == "application/json; charset=utf-8"


async def test_replay_and_refusal_are_no_events(
    api: Caller, receiver: Receiver, refund_id: str
) -> None:
    api.emulator.webhook(receiver.url, secret=SECRET)
    for key in ("k", "k", "other"):
        await api.cancel(refund_id, key)
    await api.get(f"/{refund_id}")
    await asyncio.sleep(1)
    assert receiver.types() == ["refund.updated"]


async def test_each_step_of_a_refund_is_an_event(
    api: Caller, receiver: Receiver
) -> None:
    emulator = api.emulator
    emulator.webhook(receiver.url, secret=SECRET, events=ALL)
    refund_id = emulator.add_refund(livemode=True, account="acct_1")
    for step in ("give_details", "succeed", "return_money", "expire"):
        await asyncio.sleep(1)
        getattr(emulator, step)(refund_id)
    await asyncio.sleep(1)
    changes = ["refund.updated", "charge.refund.updated"]
    assert receiver.types()[0] == "refund.created"
    assert sorted(receiver.types()[1:]) == sorted(changes * 4 + ["refund.failed"])
    assert "previous_attributes" not in receiver.events[0]["data"]
    for event in receiver.events:
        assert event["account"] == "acct_1"
        assert event["livemode"] is True
        assert event["request"] == {"id": None, "idempotency_key": None}
    assert receiver.events[-1]["data"]["object"]["status"] == "failed"
    assert len({event["id"] for event in receiver.events}) == len(receiver.events)


async def test_change_to_the_same_status_is_no_event(
    api: Caller, receiver: Receiver
) -> None:
    refund_id = api.emulator.add_refund(status="failed")
    api.emulator.set_status(refund_id, "failed")
    api.emulator.webhook(receiver.url, secret=SECRET)
    api.emulator.set_status(refund_id, "failed")
    await asyncio.sleep(1)
    assert receiver.events == []


async def test_refund_that_expires_as_the_clock_is_advanced_is_an_event(
    receiver: Receiver,
) -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund()
    emulator.webhook(receiver.url, secret=SECRET)
    async with serving(emulator):
        emulator.clock.advance(45 * DAY - 1)
        await asyncio.sleep(1)
        assert receiver.events == []
        emulator.clock.advance(1)
        await asyncio.sleep(1)
    assert sorted(receiver.types()) == ["refund.failed", "refund.updated"]
    assert receiver.events[0]["created"] == NOW + 45 * DAY
    assert receiver.events[0]["data"]["object"]["id"] == refund_id


async def test_endpoint_that_refuses_an_event_gets_it_again(
    api: Caller, receiver: Receiver, refund_id: str
) -> None:
    receiver.statuses = [500, 302]
    webhook = api.emulator.webhook(receiver.url, secret=SECRET)
    await api.cancel(refund_id)
    await asyncio.sleep(60)
    assert [attempt.status for attempt in webhook.attempts] == [500, 302, 200]
    assert len({event["id"] for event in receiver.events}) == 1
    first, second, third = receiver.times
    assert 0.5 <= second - first < 1
    assert 2 <= third - second < 3


async def test_endpoint_that_is_down_is_given_up(api: Caller, refund_id: str) -> None:
    webhook = api.emulator.webhook("http://127.0.0.1:1/")
    await api.cancel(refund_id)
    await asyncio.sleep(60)
    assert [attempt.status for attempt in webhook.attempts] == [None] * 4
    assert webhook.secret.startswith("whsec_")


async def test_delivery_in_flight_ends_with_the_server() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    webhook = emulator.webhook("http://127.0.0.1:1/")
    before = asyncio.all_tasks()
    async with serving(emulator) as api:
        await api.cancel(refund_id)
        await asyncio.sleep(1)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert [attempt.status for attempt in webhook.attempts] == [None, None]


async def test_event_from_before_the_serving_is_sent_then(receiver: Receiver) -> None:
    emulator = Emulator()
    emulator.webhook(receiver.url, secret=SECRET)
    emulator.add_refund()
    async with serving(emulator):
        await asyncio.sleep(1)
        assert receiver.types() == ["refund.created"]


async def test_each_endpoint_gets_the_events_it_has_chosen(
    api: Caller, receiver: Receiver, refund_id: str
) -> None:
    emulator = api.emulator
    emulator.webhook(receiver.url, secret=SECRET, events=["refund.failed"])
    both = emulator.webhook(receiver.url, secret=SECRET)
    emulator.expire(refund_id)
    await asyncio.sleep(1)
    events = {event["type"]: event["pending_webhooks"] for event in receiver.events}
    assert events == {"refund.failed": 2, "refund.updated": 1}
    assert len(receiver.events) == 3
    assert len(both.attempts) == 2


def test_bad_endpoint_is_refused() -> None:
    emulator = Emulator()
    with pytest.raises(ValueError, match="'localhost:80' is no http or https URL"):
        emulator.webhook("localhost:80")
    with pytest.raises(
        ValueError, match=r"no event 'bogus'; there are: refund\.created"
    ):
        emulator.webhook("http://localhost", events=["bogus"])


async def test_endpoint_is_added_over_http(api: Caller, receiver: Receiver) -> None:
    body = json.dumps({"url": receiver.url, "secret": SECRET})
    answer = await api.send(
        "POST", "/_emulator/webhooks", key=None, data=body, checked=False
    )
    assert answer.json["secret"] == SECRET
    api.emulator.add_refund()
    await asyncio.sleep(1)
    assert receiver.types() == ["refund.created"]
