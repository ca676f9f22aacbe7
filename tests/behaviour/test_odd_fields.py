"""A field that is not as Stripe describes it costs that field, and nothing besides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from async_refunds import APIError, OutcomeUnknownError, RetryPolicy
from tests.support.scripted import RE, answer, refund_json, scripted

ODD: dict[str, dict[str, Any]] = {
    "a number in metadata": {"metadata": {"a": 1}},
    "no expiry": {
        "next_action": {
            "type": "display_details",
            "display_details": {"email_sent": None, "expires_at": None},
        }
    },
    "a reference that is a number": {
        "destination_details": {"type": "card", "card": {"reference": 5}}
    },
    "a list for a word": {"failure_reason": ["merchant_request"]},
    "a number for an object": {"charge": 5},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_odd_field_is_left_out_and_the_rest_is_told(odd: dict[str, Any]) -> None:
    body = refund_json(**odd)
    ((name, _),) = odd.items()
    async with (
        scripted(answer(body=body), reads=[answer(body=body)]) as server,
        server.client() as refunds,
    ):
        canceled = await refunds.cancel(RE)
        read = await refunds.retrieve(RE)
    assert canceled == read
    assert (canceled.id, canceled.status) == (RE, "canceled")
    assert getattr(canceled, name) is None
    assert canceled.amount == json.loads(body)["amount"]
    assert canceled.payment_intent == json.loads(body)["payment_intent"]
    assert canceled.last_response.body == body, "where it can be looked up"
    assert len(server.received) == 2


NEEDED: dict[str, dict[str, Any]] = {
    "status": {"status": ["canceled"]},
    "id": {"id": 5},
    "amount": {"amount": "1000"},
    "currency": {"currency": None},
}


@pytest.mark.parametrize("odd", NEEDED.values(), ids=NEEDED)
async def test_refund_is_not_read_without_what_it_is_about(odd: dict[str, Any]) -> None:
    body = answer(body=refund_json(**odd))
    retry = RetryPolicy(max_retries=0)
    async with (
        scripted(body, reads=[body]) as server,
        server.client(retry=retry) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)


async def test_refund_that_lacks_what_it_is_about_is_not_read() -> None:
    fields = json.loads(refund_json(metadata={"a": 1}))
    del fields["amount"]
    body = answer(body=json.dumps(fields).encode())
    async with scripted(reads=[body, body, body]) as server, server.client() as refunds:
        with pytest.raises(APIError, match="could not be read"):
            await refunds.retrieve(RE, timeout=5.0)


def page(*refunds: dict[str, Any]) -> bytes:
    body = {"object": "list", "has_more": False, "data": refunds}
    return answer(body=json.dumps(body).encode())


async def test_odd_field_of_one_refund_costs_no_page() -> None:
    good = json.loads(refund_json(id="re_1"))
    odd = {**good, "id": "re_2", "metadata": {"a": 1}}
    async with scripted(reads=[page(good, odd)]) as server, server.client() as refunds:
        found = [refund async for refund in refunds.list()]
    assert [refund.id for refund in found] == ["re_1", "re_2"]
    assert (found[0].metadata, found[1].metadata) == (good["metadata"], None)


async def test_page_with_what_is_no_refund_is_not_read() -> None:
    good = json.loads(refund_json(id="re_1"))
    odd = page(good, {**good, "amount": None})
    async with scripted(reads=[odd, odd, odd]) as server, server.client() as refunds:
        with pytest.raises(APIError):
            _ = [refund async for refund in refunds.list(timeout=5.0)]
