"""All refunds, page by page, without a gap and without an end that is none."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from async_refunds import APIError, InvalidRequestError, RefundsClient
from async_refunds.emulator import Emulator
from tests.support.scripted import answer, error_json, refund_json, scripted


def page(*ids: str, more: bool) -> bytes:
    data = [json.loads(refund_json("pending", id=each)) for each in ids]
    body = {"object": "list", "url": "/v1/refunds", "has_more": more, "data": data}
    return answer(body=json.dumps(body).encode())


async def test_list_goes_through_all_pages_newest_first() -> None:
    emulator = Emulator()
    ids = emulator.seed_refunds(250)
    async with (
        emulator.serve() as url,
        RefundsClient("sk_test_x", base_url=url) as (refunds),
    ):
        found = [refund async for refund in refunds.list()]
    assert [refund.id for refund in found] == ids[::-1]
    assert emulator.books.requests["list"] == 3
    assert found[0].last_response.status_code == 200


async def test_list_hands_stripes_filters_on_to_every_page() -> None:
    pages = [page("re_1", "re_2", more=True), page("re_3", more=False)]
    async with scripted(reads=list(pages)) as server, server.client() as refunds:
        found = [
            refund.id
            async for refund in refunds.list(
                charge="ch_1",
                payment_intent="pi_1",
                created={"gte": 5, "lt": 9},
                starting_after="re_0",
                limit=2,
                expand=["data.charge"],
                stripe_account="acct_1",
            )
        ]
    assert found == ["re_1", "re_2", "re_3"]
    same = {
        "limit": "2",
        "charge": "ch_1",
        "payment_intent": "pi_1",
        "created[gte]": "5",
        "created[lt]": "9",
        "expand[]": "data.charge",
    }
    for request, after in zip(server.received, ("re_0", "re_2"), strict=True):
        assert dict(parse_qsl(urlsplit(request.target).query)) == {
            **same,
            "starting_after": after,
        }
        assert request.headers["stripe-account"] == "acct_1"


async def test_list_of_a_moment() -> None:
    async with scripted(reads=[page(more=False)]) as server, server.client() as refunds:
        assert [refund async for refund in refunds.list(created=7, timeout=5.0)] == []
    assert server.received[0].target == "/v1/refunds?limit=100&created=7"


@pytest.mark.parametrize(
    "pages",
    [
        [page(more=True)],
        [page("re_1", more=True), page("re_1", more=True)],
    ],
    ids=["empty", "the same again"],
)
async def test_page_that_leads_nowhere_is_an_error_not_the_end(
    pages: list[Any],
) -> None:
    async with scripted(reads=pages) as server, server.client() as refunds:
        with pytest.raises(APIError):
            _ = [refund async for refund in refunds.list()]


async def test_page_that_is_refused_is_raised_from_the_iteration() -> None:
    no = answer(400, error_json(param="charge"))
    async with scripted(reads=[no]) as server, server.client() as refunds:
        pages = refunds.list(charge="ch_1")
        with pytest.raises(InvalidRequestError) as caught:
            await anext(pages)
    assert caught.value.param == "charge"


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("limit", 0, ValueError),
        ("limit", 101, ValueError),
        ("limit", 1.0, TypeError),
        ("charge", "ch_1&x=y", ValueError),
        ("charge", 7, TypeError),
        ("payment_intent", "", ValueError),
        ("created", {"before": 1}, ValueError),
        ("created", {"lt": -1}, ValueError),
        ("created", {"lt": True}, TypeError),
        ("created", "yesterday", TypeError),
        ("created", True, TypeError),
        ("starting_after", "ch_1", ValueError),
        ("expand", "data.charge", TypeError),
        ("stripe_account", "me", ValueError),
        ("timeout", 0, ValueError),
    ],
)
async def test_bad_argument_is_refused_at_once(
    option: str, value: object, error: type[Exception]
) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(error):
        RefundsClient("sk_test_x").list(**options)
