"""Django, asynchronous: ``uvicorn tests.apps.django_app:application``.

ASGI's lifespan is not Django's: the client is made at the first request, in the event
loop of the server, and closed by `application` when the server says that it ends.
"""

# Django has no types.
# pyright: basic
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils.decorators import async_only_middleware
from django.views.decorators.http import require_http_methods, require_POST

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
    from collections.abc import Awaitable, Callable, Mapping

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    MIDDLEWARE=["tests.apps.django_app.answer_errors"],
    ROOT_URLCONF="tests.apps.django_app",
    SECRET_KEY="not used here",
)
django.setup()

cancellations = Cancellations()
clients: list[RefundsClient] = []


def note(record: CallRecord) -> None:
    print(record.outcome, record.idempotency_key, flush=True)  # noqa: T201 - its log


def refunds_client() -> RefundsClient:
    if not clients:
        base_url = os.environ.get("STRIPE_BASE_URL", "https://api.stripe.com")
        key = os.environ["STRIPE_API_KEY"]
        once_more = RetryPolicy(max_retries=1, initial_delay=0.1)  # a person waits
        clients.append(
            RefundsClient(key, base_url=base_url, retry=once_more, on_call=note)
        )
    return clients[0]


def answer(error: RefundsError) -> HttpResponse:
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
    return JsonResponse(told, status=status, headers=later)


@async_only_middleware
def answer_errors(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponse]],
) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
    async def middleware(request: HttpRequest) -> HttpResponse:
        return await get_response(request)

    def process_exception(
        request: HttpRequest, error: Exception
    ) -> HttpResponse | None:
        del request
        return answer(error) if isinstance(error, RefundsError) else None

    middleware.process_exception = process_exception  # type: ignore[attr-defined]  # Django's own way
    return middleware


async def cancel_with(refund_id: str, key: str) -> HttpResponse:
    with cancellations.calling(key, refund_id):
        refund = await refunds_client().cancel(
            refund_id, idempotency_key=key, timeout=10.0, already_canceled_ok=True
        )
    return JsonResponse(refund.to_dict())


@require_POST
async def cancel(request: HttpRequest, refund_id: str) -> HttpResponse:
    key = request.headers.get("Idempotency-Key") or str(uuid.uuid4())
    return await cancel_with(refund_id, key)


@require_http_methods(["GET", "POST"])
async def cancellation(request: HttpRequest, key: str) -> HttpResponse:
    refund_id = cancellations.refund_of(key)
    if request.method == "GET":
        return JsonResponse({"status": "unknown" if refund_id else "known"})
    if refund_id is None:
        raise Http404("nothing is unknown of it")
    return await cancel_with(refund_id, key)


@require_POST
async def webhook(request: HttpRequest) -> HttpResponse:
    event = refund_event(
        request.body,
        request.headers.get("Stripe-Signature"),
        os.environ["STRIPE_WEBHOOK_SECRET"],
    )
    cancellations.settle(event)
    return JsonResponse({"status": event.refund.status})


urlpatterns = [
    path("refunds/<refund_id>/cancel", cancel),
    path("cancellations/<key>", cancellation),
    path("webhook", webhook),
]

views = get_asgi_application()


async def application(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
    if scope["type"] != "lifespan":
        await views(scope, receive, send)
        return
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    if clients:
        await clients[0].close(drain=10.0)
    await send({"type": "lifespan.shutdown.complete"})
