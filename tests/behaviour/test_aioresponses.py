"""Users' own canned answers work: aioresponses in place of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses

from async_refunds import (
    APIConnectionError,
    OutcomeUnknownError,
    RefundNotFoundError,
    RefundsClient,
    RetryPolicy,
)
from tests.support.scripted import KEY, RE, error_json, refund_json

if TYPE_CHECKING:
    from typing import Any

# aioresponses declares its arguments `Pattern` and `Any` without parameters.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

URL = f"https://api.stripe.com/v1/refunds/{RE}/cancel"


class Canned(aiohttp.ClientResponse):
    """aioresponses 0.7.9 leaves out an argument that aiohttp 3.14 asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **{"stream_writer": Mock(output_size=0), **kwargs})


async def test_canned_success() -> None:
    with aioresponses() as canned:
        canned.post(URL, body=refund_json(), response_class=Canned)
        async with RefundsClient(KEY) as refunds:
            refund = await refunds.cancel(RE)
    assert refund.status == "canceled"


async def test_canned_failure_and_then_success_is_one_key() -> None:
    with aioresponses() as canned:
        canned.post(URL, exception=aiohttp.ClientOSError(104, "reset"))
        canned.post(URL, status=503, response_class=Canned)
        canned.post(URL, body=refund_json(), response_class=Canned)
        async with RefundsClient(KEY) as refunds:
            refund = await refunds.cancel(RE)
        sent = [call for calls in canned.requests.values() for call in calls]
    keys = {call.kwargs["headers"]["Idempotency-Key"] for call in sent}
    assert keys == {refund.last_response.idempotency_key}
    assert [each.failure for each in refund.last_response.attempts] == [
        "reset",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (
            aiohttp.ClientConnectorError(Mock(), OSError(111, "refused")),
            APIConnectionError,
        ),
        (aiohttp.ConnectionTimeoutError(), APIConnectionError),
        (MemoryError(), APIConnectionError),
        (aiohttp.ClientOSError(104, "reset"), OutcomeUnknownError),
        (aiohttp.ServerTimeoutError(), OutcomeUnknownError),
    ],
)
async def test_canned_failure_says_whether_something_was_sent(
    error: BaseException, raised: type[Exception]
) -> None:
    with aioresponses() as canned:
        canned.post(URL, exception=error)
        retry = RetryPolicy(max_retries=0)
        async with RefundsClient(KEY, retry=retry) as refunds:
            with pytest.raises(raised):
                await refunds.cancel(RE)


async def test_canned_answer_to_another_key_is_not_believed() -> None:
    with aioresponses() as canned:
        other = {"Idempotency-Key": "another"}
        canned.post(URL, body=refund_json(), headers=other, response_class=Canned)
        canned.post(URL, body=refund_json(), response_class=Canned)
        async with RefundsClient(KEY) as refunds:
            refund = await refunds.cancel(RE)
    assert len(refund.last_response.attempts) == 2


async def test_canned_refusal() -> None:
    with aioresponses() as canned:
        canned.post(
            URL,
            status=404,
            body=error_json(code="resource_missing"),
            headers={"Request-Id": "req_1", "Idempotency-Key": "mine"},
            response_class=Canned,
        )
        async with RefundsClient(KEY) as refunds:
            with pytest.raises(RefundNotFoundError):
                await refunds.cancel(RE, idempotency_key="mine")
