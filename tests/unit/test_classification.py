"""What a 429 complains about, which decides how a batch slows down."""

from __future__ import annotations

import pytest

from async_refunds.protocol.classification import Limit, classify
from async_refunds.protocol.requests import (
    Cause,
    Reply,
    Response,
    TransportFailure,
    cancel_request,
)
from tests.support.scripted import RE, error_json

REQUEST = cancel_request(RE, idempotency_key="order-7")


def limited(reason: str | None = None, code: str | None = None) -> Response:
    headers = {"Request-Id": "req_1"}
    if reason is not None:
        headers["Stripe-Rate-Limited-Reason"] = reason
    return Response(429, headers, error_json(code=code))


LIMITS: dict[str, tuple[Reply, Limit | None, bool]] = {
    "endpoint-rate": (limited("endpoint-rate"), Limit.RATE, False),
    "endpoint-concurrency": (
        limited("endpoint-concurrency"),
        Limit.CONCURRENCY,
        False,
    ),
    "global-rate": (limited("global-rate"), Limit.RATE, True),
    "global-concurrency": (limited("global-concurrency"), Limit.CONCURRENCY, True),
    "lock": (limited(code="lock_timeout"), Limit.LOCK, False),
    "a limiter that has the lock's code": (
        limited("endpoint-rate", "lock_timeout"),
        Limit.RATE,
        False,
    ),
    "a proxy's": (Response(429, {}, b"slow down"), Limit.RATE, False),
    "another status": (Response(503, {}, b""), None, False),
    "no answer": (TransportFailure(Cause.RESET, "", sent=True), None, False),
}


@pytest.mark.parametrize(
    ("reply", "limit", "account"), LIMITS.values(), ids=LIMITS.keys()
)
def test_limit_is_told_from_a_lock_and_the_accounts_from_an_endpoints(
    reply: Reply,
    limit: Limit | None,
    account: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    found = classify(REQUEST, reply)
    assert found.limit is limit
    assert found.limits_account == account
