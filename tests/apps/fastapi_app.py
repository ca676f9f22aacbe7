"""FastAPI: ``uvicorn tests.apps.fastapi_app:app``."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator  # noqa: TC003 - FastAPI reads annotations
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse

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

cancellations = Cancellations()


def note(record: CallRecord) -> None:
    print(record.outcome, record.idempotency_key, flush=True)  # noqa: T201 - its log


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    client = RefundsClient(
        os.environ["STRIPE_API_KEY"],
        base_url=os.environ.get("STRIPE_BASE_URL", "https://api.stripe.com"),
        retry=RetryPolicy(max_retries=1, initial_delay=0.1),  # a person waits
        on_call=note,
    )
    async with client as app.state.refunds:
        yield
        await client.close(drain=10.0)


app = FastAPI(lifespan=lifespan)


@app.post("/refunds/{refund_id}/cancel")
async def cancel(
    refund_id: str, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    return await cancel_with(refund_id, idempotency_key or str(uuid.uuid4()))


async def cancel_with(refund_id: str, key: str) -> dict[str, Any]:
    client: RefundsClient = app.state.refunds
    with cancellations.calling(key, refund_id):
        refund = await client.cancel(
            refund_id, idempotency_key=key, timeout=10.0, already_canceled_ok=True
        )
    return refund.to_dict()


@app.post("/cancellations/{key}")
async def ask_again(key: str) -> dict[str, Any]:
    refund_id = cancellations.refund_of(key)
    if refund_id is None:
        raise HTTPException(404, "nothing is unknown of it")
    return await cancel_with(refund_id, key)


@app.get("/cancellations/{key}")
async def state(key: str) -> dict[str, str]:
    return {"status": "unknown" if cancellations.refund_of(key) else "known"}


@app.post("/webhook")
async def webhook(request: Request) -> dict[str, str]:
    event = refund_event(
        await request.body(),
        request.headers.get("Stripe-Signature"),
        os.environ["STRIPE_WEBHOOK_SECRET"],
    )
    cancellations.settle(event)
    return {"status": event.refund.status or ""}


@app.exception_handler(OutcomeUnknownError)
async def on_unknown(request: Request, error: OutcomeUnknownError) -> JSONResponse:
    return JSONResponse({"status": "unknown", "key": error.idempotency_key}, 202)


@app.exception_handler(RefundNotCancelableError)
async def on_not_cancelable(
    request: Request, error: RefundNotCancelableError
) -> JSONResponse:
    return JSONResponse({"status": error.refund.status}, 409)


@app.exception_handler(IdempotencyError)
async def on_other_refund(request: Request, error: IdempotencyError) -> JSONResponse:
    return JSONResponse({"status": "the key is another refund's"}, 409)


@app.exception_handler(RefundNotFoundError)
async def on_not_found(request: Request, error: RefundNotFoundError) -> JSONResponse:
    return JSONResponse({"status": "not found"}, 404)


@app.exception_handler(RateLimitError)
@app.exception_handler(APIConnectionError)
async def on_overload(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"status": "try again later"}, 503, {"Retry-After": "5"})


@app.exception_handler(RefundsError)
async def on_other_refusal(request: Request, error: RefundsError) -> JSONResponse:
    return JSONResponse({"status": "Stripe refused it"}, 502)


@app.exception_handler(SignatureVerificationError)
async def on_forgery(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"status": "refused"}, 400)


@app.exception_handler(WebhookError)
async def on_other_event(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"status": "ignored"}, 200)
