"""How long a batch keeps trying, whatever holds its calls up."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from async_refunds import RefundsClient, cancel_many
from tests.support.answering import answering
from tests.support.batches import KEY
from tests.support.scripted import answer, refund_json


@pytest.mark.parametrize(("count", "most"), [(1, 8), (8, 30), (12, 60), (40, 250)])
async def test_patience_bounds_a_batch_behind_a_dead_backend(
    count: int, most: float
) -> None:
    asked: Counter[str] = Counter()

    def respond(method: str, refund_id: str) -> bytes:
        asked[method] += 1
        del refund_id
        return answer(502, b"<html>Bad Gateway</html>")

    loop = asyncio.get_running_loop()
    ids = [f"re_{number}" for number in range(count)]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        began = loop.time()
        results = [each async for each in cancel_many(refunds, ids, patience=5)]
        seconds = loop.time() - began
    assert {result.outcome for result in results} == {"unknown"}
    assert not any(result.settled for result in results)
    assert len(results) == count
    # Each refund is tried for five seconds from its first request, and its read takes a
    # moment. What comes after the first six begins when these have ended.
    assert all(result.seconds < 5 + 2.5 for result in results)
    assert seconds < most
    # Some cancels and reads until the outage is noticed, then one in two seconds each.
    assert asked.total() < 20 + 1.1 * seconds


@pytest.mark.parametrize("body", ["another refund", "not canceled"])
async def test_wrong_answer_is_no_outage(body: str) -> None:
    asked: Counter[str] = Counter()

    def respond(method: str, refund_id: str) -> bytes:
        asked[method] += 1
        if body == "another refund":
            return answer(200, refund_json("canceled", id="re_another"))
        return answer(200, refund_json("requires_action", id=refund_id))

    loop = asyncio.get_running_loop()
    ids = [f"re_{number}" for number in range(60)]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        began = loop.time()
        results = [each async for each in cancel_many(refunds, ids, patience=1)]
        seconds = loop.time() - began
    assert {result.outcome for result in results} == {"unknown"}
    requests = asked["POST"]
    # At the pace at which a batch begins, not at that of an outage.
    assert seconds < requests / 20 + 3
