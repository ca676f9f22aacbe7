"""How long a batch keeps trying, whatever holds its calls up."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from async_refunds import RefundsClient, cancel_many
from async_refunds.journal import MemoryJournal
from tests.support.answering import answering, canceled
from tests.support.batches import KEY, canceled_many
from tests.support.leased import long_batch
from tests.support.scripted import answer, refund_json, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from async_refunds.journal import Claim


@pytest.mark.parametrize("count", [1, 3, 8, 12, 40, 1000])
async def test_patience_bounds_a_batch_behind_a_dead_backend(count: int) -> None:
    asked: Counter[str] = Counter()
    sent: set[str] = set()

    def respond(method: str, refund_id: str) -> bytes:
        asked[method] += 1
        sent.add(refund_id)
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
    # What was sent may be carried out yet; what was not waits for another run.
    outcome = {result.refund_id: result.outcome for result in results}
    assert outcome == {
        refund_id: "unknown" if refund_id in sent else "failed" for refund_id in ids
    }
    for result in results:
        if result.outcome == "failed":
            assert result.idempotency_key is None
            assert re.search(r"failed for [56] s: HTTP status 502$", str(result.error))
    # The outage is seen with the first answer after five seconds, and one comes every
    # two. The reads that settle what was sent take as long again.
    assert seconds < 10
    # Some cancels and reads until the outage is noticed, then one in two seconds each.
    assert asked.total() < 20 + 1.1 * seconds


class SlowJournal(MemoryJournal):
    """A journal that takes as long for claims as a disk at work."""

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        await asyncio.sleep(0.1)
        return await super().claim(limits)


async def test_rest_is_given_up_at_once_where_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    loop = asyncio.get_running_loop()
    ids = [f"re_{number}" for number in range(300)]
    url = f"http://127.0.0.1:{port}"
    async with RefundsClient(KEY, base_url=url) as refunds:
        began = loop.time()
        found = await canceled_many(refunds, ids, journal=SlowJournal())
        seconds = loop.time() - began
    assert {found[each].outcome for each in ids} == {"failed"}
    text = f"{url} could not be reached for [5-8] s: no connection"
    assert re.search(text, str(found[ids[-1]].error))
    # Not a claim for each: what is given up has no pace.
    assert seconds < 10


async def test_batch_goes_on_after_an_outage() -> None:
    down = True

    def respond(method: str, refund_id: str) -> bytes:
        if down:
            return answer(502, b"<html>Bad Gateway</html>")
        return canceled(refund_id)

    async def stream() -> AsyncGenerator[str]:
        nonlocal down
        for number in range(20):
            yield f"re_{number}"
        await asyncio.sleep(30)
        down = False
        for number in range(20, 40):
            yield f"re_{number}"

    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = [each async for each in cancel_many(refunds, stream(), patience=5)]
    outcome = {result.refund_id: result.outcome for result in results}
    assert all(outcome[f"re_{number}"] != "canceled" for number in range(20))
    assert all(outcome[f"re_{number}"] == "canceled" for number in range(20, 40))


async def test_refund_that_always_fails_closes_nothing() -> None:
    def respond(method: str, refund_id: str) -> bytes:
        if refund_id == "re_bad":
            return answer(502, b"<html>Bad Gateway</html>")
        return canceled(refund_id)

    async def stream() -> AsyncGenerator[str]:
        yield "re_bad"
        await asyncio.sleep(4.9)
        for number in range(20):
            yield f"re_{number}"
            await asyncio.sleep(0.1)

    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = [each async for each in cancel_many(refunds, stream(), patience=5)]
    outcome = {result.refund_id: result.outcome for result in results}
    assert outcome.pop("re_bad") == "unknown"
    assert set(outcome.values()) == {"canceled"}


async def test_answer_that_never_came_is_settled_after_an_outage() -> None:
    """Its end is the first that is heard once the account may be tried again."""

    def respond(method: str, refund_id: str) -> bytes:
        if refund_id != "re_stalled":
            return answer(502, b"<html>Bad Gateway</html>")
        return b"" if method == "POST" else canceled(refund_id)

    ids = ["re_stalled", *(f"re_{number}" for number in range(20))]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url, attempt_timeout=30.0) as refunds,
    ):
        found = await canceled_many(refunds, ids, patience=5)
    assert found.pop("re_stalled").outcome == "canceled"
    assert {result.outcome for result in found.values()} == {"unknown", "failed"}


async def test_account_that_goes_for_an_outage_says_so_however_late_its_calls_end() -> (
    None
):
    """Its next holder is to wait, though patience has passed again meanwhile."""

    def respond(method: str, refund_id: str) -> bytes:
        stalled = method == "POST" and refund_id == "re_stalled"
        return b"" if stalled else answer(502, b"<html>Bad Gateway</html>")

    ids = ["re_stalled", *(f"re_{number}" for number in range(20))]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url, attempt_timeout=30.0) as refunds,
        long_batch(refunds, patience=5.0) as batch,
    ):
        await batch.journal.enqueue(ids, None)
        batch.open(None)
        await batch.until_idle()
    assert batch.closings[None] is not None


async def test_settling_read_that_has_no_turn_is_left_to_a_later_call() -> None:
    """The reads are held back after an outage of theirs, which the cancels outlive."""
    reads = itertools.count()

    def respond(method: str, refund_id: str) -> bytes:
        if method == "POST":
            return refusal(400, type="invalid_request_error", message="Charges must")
        if next(reads) < 20:
            return answer(503, b"{}")
        return answer(200, refund_json("succeeded", id=refund_id))

    ids = [f"re_{number}" for number in range(30)]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        found = await canceled_many(
            refunds, ids, timeout=2.0, concurrency=30, rate=1000.0
        )
    first_two = {
        tuple(each.method for each in result.attempts[:2]) for result in found.values()
    }
    assert first_two == {("POST", "GET"), ("POST", "POST")}
    assert {result.outcome for result in found.values()} == {"not_cancelable"}


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
