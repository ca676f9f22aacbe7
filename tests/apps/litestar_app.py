"""Litestar: ``hypercorn tests.apps.litestar_app:app``.

Litestar writes JSON with msgspec, so that a handler returns the `Refund` itself.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator  # noqa: TC003 - Litestar reads annotations
from contextlib import asynccontextmanager
from typing import Annotated, Any

from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State  # noqa: TC002 - as above
from litestar.exceptions import NotFoundException
from litestar.params import Parameter

from async_refunds import (
    APIConnectionError,
    CallRecord,
    IdempotencyError,
    OutcomeUnknownError,
    RateLimitError,
    Refund,
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

cancellations = Cancellations()


def note(record: CallRecord) -> None:
    print(record.outcome, record.idempotency_key, flush=True)  # noqa: T201 - its log


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None]:
    client = RefundsClient(
        os.environ["STRIPE_API_KEY"],
        base_url=os.environ.get("STRIPE_BASE_URL", "https://api.stripe.com"),
        retry=RetryPolicy(max_retries=1, initial_delay=0.1),  # a person waits
        on_call=note,
    )
    async with client as app.state.refunds:
        yield
        await client.close(drain=10.0)


async def cancel_with(state: State, refund_id: str, key: str) -> Refund:
    client: RefundsClient = state.refunds
    with cancellations.calling(key, refund_id):
        return await client.cancel(
            refund_id, idempotency_key=key, timeout=10.0, already_canceled_ok=True
        )


@post("/refunds/{refund_id:str}/cancel", status_code=200)
async def cancel(
    state: State,
    refund_id: str,
    idempotency_key: Annotated[str | None, Parameter(header="Idempotency-Key")] = None,
) -> Refund:
    return await cancel_with(state, refund_id, idempotency_key or str(uuid.uuid4()))


@post("/cancellations/{key:str}", status_code=200)
async def ask_again(state: State, key: str) -> Refund:
    refund_id = cancellations.refund_of(key)
    if refund_id is None:
        raise NotFoundException("nothing is unknown of it")
    return await cancel_with(state, refund_id, key)


@get("/cancellations/{key:str}")
async def cancellation(key: str) -> dict[str, str]:
    return {"status": "unknown" if cancellations.refund_of(key) else "known"}


@post("/webhook", status_code=200)
async def webhook(request: Request[Any, Any, State]) -> dict[str, str | None]:
    event = refund_event(
        await request.body(),
        request.headers.get("Stripe-Signature"),
        os.environ["STRIPE_WEBHOOK_SECRET"],
    )
    cancellations.settle(event)
    return {"status": event.refund.status}


def told(
    code: int, /, headers: dict[str, str] | None = None, **content: str | None
) -> Response[dict[str, str | None]]:
    return Response(content, status_code=code, headers=headers)


def on_unknown(_: object, error: OutcomeUnknownError) -> Response[Any]:
    return told(202, status="unknown", key=error.idempotency_key)


def on_not_cancelable(_: object, error: RefundNotCancelableError) -> Response[Any]:
    return told(409, status=error.refund.status)


def on_other_refund(_: object, error: IdempotencyError) -> Response[Any]:
    return told(409, status="the key is another refund's")


def on_not_found(_: object, error: RefundNotFoundError) -> Response[Any]:
    return told(404, status="not found")


def on_overload(_: object, error: Exception) -> Response[Any]:
    return told(503, {"Retry-After": "5"}, status="try again later")


def on_other_refusal(_: object, error: RefundsError) -> Response[Any]:
    return told(502, status="Stripe refused it")


def on_forgery(_: object, error: SignatureVerificationError) -> Response[Any]:
    return told(400, status="refused")


def on_other_event(_: object, error: WebhookError) -> Response[Any]:
    return told(200, status="ignored")


app = Litestar(
    [cancel, ask_again, cancellation, webhook],
    lifespan=[lifespan],
    exception_handlers={
        OutcomeUnknownError: on_unknown,
        RefundNotCancelableError: on_not_cancelable,
        IdempotencyError: on_other_refund,
        RefundNotFoundError: on_not_found,
        RateLimitError: on_overload,
        APIConnectionError: on_overload,
        SignatureVerificationError: on_forgery,
        WebhookError: on_other_event,
        RefundsError: on_other_refusal,
    },
)
