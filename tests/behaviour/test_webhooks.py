"""An event closes what a call left unknown, with the emulator as Stripe."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from async_refunds import (
    OutcomeUnknownError,
    RefundEvent,
    RefundsClient,
    RetryPolicy,
    SignatureVerificationError,
    refund_event,
)
from async_refunds.emulator import Emulator

SECRET = "whsec_OfTheEndpoint"
KEY = "sk_test_1"


class Endpoint:
    """A service that waits for events of Stripe."""

    def __init__(self) -> None:
        self.secrets = [SECRET]
        self.events: list[RefundEvent] = []
        self.refused = 0
        self.arrived = asyncio.Event()

    async def receive(self, request: web.Request) -> web.Response:
        try:
            event = refund_event(
                await request.read(),
                request.headers.get("Stripe-Signature"),
                self.secrets,
            )
        except SignatureVerificationError:
            self.refused += 1
            return web.Response(status=400)
        else:
            self.events.append(event)
            return web.Response()
        finally:
            self.arrived.set()

    async def serve(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_post("/webhook", self.receive)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return runner, f"http://{host}:{port}/webhook"


async def test_event_names_the_key_of_the_call_that_was_left_unknown() -> None:
    emulator, endpoint = Emulator(), Endpoint()
    refund_id = emulator.add_refund()
    runner, url = await endpoint.serve()
    emulator.webhook(url, secret=SECRET)
    emulator.faults.script("reset_after", "503")  # done, and the read fails
    policy = RetryPolicy(max_retries=0)
    async with (
        emulator.serve() as base_url,
        RefundsClient(KEY, base_url=base_url, retry=policy) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await refunds.cancel(refund_id)
        await endpoint.arrived.wait()
    await runner.cleanup()
    (event,) = endpoint.events
    assert event.type == "refund.updated"
    assert (event.refund.id, event.refund.status) == (refund_id, "canceled")
    assert event.idempotency_key == caught.value.idempotency_key
    assert event.request_id is not None
    assert not event.livemode


async def test_event_of_another_secret_is_refused() -> None:
    emulator, endpoint = Emulator(), Endpoint()
    runner, url = await endpoint.serve()
    emulator.webhook(url, secret="whsec_another")
    async with emulator.serve():
        emulator.add_refund()
        await endpoint.arrived.wait()
    await runner.cleanup()
    assert endpoint.refused == 1
    assert not endpoint.events
