"""aiohttp.web: ``python -m tests.apps.aiohttp_app FD [--cancel-handlers]``."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from typing import TYPE_CHECKING

from aiohttp import web

from async_refunds import (
    APIConnectionError,
    CallRecord,
    IdempotencyError,
    OutcomeUnknownError,
    RateLimitError,
    RefundNotCancelableError,
    RefundNotFoundError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
    SignatureVerificationError,
    WebhookError,
    refund_event,
)
from tests.apps.cancellations import Cancellations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

CLIENT = web.AppKey("refunds", RefundsClient)
cancellations = Cancellations()


def note(record: CallRecord) -> None:
    print(record.outcome, record.idempotency_key, flush=True)  # noqa: T201 - its log


async def refunds_client(app: web.Application) -> AsyncGenerator[None]:
    client = RefundsClient(
        os.environ["STRIPE_API_KEY"],
        base_url=os.environ.get("STRIPE_BASE_URL", "https://api.stripe.com"),
        retry=RetryPolicy(max_retries=1, initial_delay=0.1),  # a person waits
        on_call=note,
    )
    async with client as app[CLIENT]:
        yield
        await client.close(drain=10.0)


@web.middleware
async def answer_errors(
    request: web.Request,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefundsError as error:
        told: Mapping[str, str | None]
        later: dict[str, str] = {}
        match error:
            case OutcomeUnknownError():
                status, told = 202, {"status": "unknown", "key": error.idempotency_key}
            case RefundNotCancelableError():
                status, told = 409, {"status": error.refund.status}
            case IdempotencyError():
                status, told = 409, {"status": "the key is another refund's"}
            case RefundNotFoundError():
                status, told = 404, {"status": "not found"}
            case RateLimitError() | APIConnectionError():
                status, told, later = (
                    503,
                    {"status": "try again later"},
                    {"Retry-After": "5"},
                )
            case SignatureVerificationError():
                status, told = 400, {"status": "refused"}
            case WebhookError():
                status, told = 200, {"status": "ignored"}
            case _:
                status, told = 502, {"status": "Stripe refused it"}
        return web.json_response(told, status=status, headers=later)


async def cancel(request: web.Request) -> web.Response:
    key = request.headers.get("Idempotency-Key") or str(uuid.uuid4())
    return await cancel_with(request, request.match_info["refund_id"], key)


async def ask_again(request: web.Request) -> web.Response:
    key = request.match_info["key"]
    refund_id = cancellations.refund_of(key)
    if refund_id is None:
        raise web.HTTPNotFound(text="nothing is unknown of it")
    return await cancel_with(request, refund_id, key)


async def cancel_with(request: web.Request, refund_id: str, key: str) -> web.Response:
    with cancellations.calling(key, refund_id):
        refund = await request.app[CLIENT].cancel(
            refund_id, idempotency_key=key, timeout=10.0, already_canceled_ok=True
        )
    return web.json_response(refund.to_dict())


async def state(request: web.Request) -> web.Response:
    refund_id = cancellations.refund_of(request.match_info["key"])
    return web.json_response({"status": "unknown" if refund_id else "known"})


async def webhook(request: web.Request) -> web.Response:
    event = refund_event(
        await request.read(),
        request.headers.get("Stripe-Signature"),
        os.environ["STRIPE_WEBHOOK_SECRET"],
    )
    cancellations.settle(event)
    return web.json_response({"status": event.refund.status})


def make_app() -> web.Application:
    app = web.Application(middlewares=[answer_errors])
    app.cleanup_ctx.append(refunds_client)
    app.router.add_post("/refunds/{refund_id}/cancel", cancel)
    app.router.add_post("/cancellations/{key}", ask_again)
    app.router.add_get("/cancellations/{key}", state)
    app.router.add_post("/webhook", webhook)
    return app


if __name__ == "__main__":
    web.run_app(
        make_app(),
        sock=socket.socket(fileno=int(sys.argv[1])),
        handler_cancellation="--cancel-handlers" in sys.argv,
        print=None,
    )
