"""When a closed account opens again, whoever looks at it, and how often."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from async_refunds import RefundsClient, cancel_many
from async_refunds.batch.item import Item
from async_refunds.journal import Claim, MemoryJournal
from async_refunds.models import Attempt
from async_refunds.protocol.classification import Classification, Outcome
from async_refunds.protocol.requests import (
    Cause,
    Response,
    TransportFailure,
    cancel_request,
)
from tests.batch.test_claiming import batch_queue, claim, scheduler
from tests.support.answering import answering, canceled
from tests.support.batches import KEY
from tests.support.scripted import answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from async_refunds.batch.scheduler import Scheduler

UNREACHABLE = Classification[object](
    TransportFailure(Cause.REFUSED, "nobody there", sent=False),
    Outcome.NOT_SENT,
    retry=False,
)


WRONG = Classification[object](Response(502, {}, b""), Outcome.AMBIGUOUS, retry=True)


def item() -> Item:
    return Item(Claim(1, "re_1", "acct_1", "key", 0.0, maybe_sent=False), 0.0)


async def test_to_look_at_a_closed_account_changes_nothing() -> None:
    queue = batch_queue()
    queue.close(UNREACHABLE, until=asyncio.get_running_loop().time() + 1)
    await asyncio.sleep(2)
    assert queue.closed_by is UNREACHABLE
    assert queue.closed_by is UNREACHABLE
    queue.reopen_if_due()
    assert queue.closed_by is None


async def test_account_does_not_open_before_its_time() -> None:
    queue = batch_queue()
    queue.close(UNREACHABLE, until=asyncio.get_running_loop().time() + 3)
    await asyncio.sleep(2)
    queue.reopen_if_due()
    assert queue.closed_by is UNREACHABLE
    queue.close(UNREACHABLE)
    await asyncio.sleep(1000)
    queue.reopen_if_due()
    assert queue.closed_by is UNREACHABLE


async def test_drained_account_says_why_it_was_closed_to_its_end() -> None:
    queue = batch_queue()
    queue.close(UNREACHABLE, until=asyncio.get_running_loop().time() + 1)
    queue.drain()
    await asyncio.sleep(2)
    queue.reopen_if_due()
    assert queue.closed_by is UNREACHABLE


async def test_retry_that_slept_until_an_account_opens_goes_out() -> None:
    """Nothing else of it is there to look whether the time has come."""
    queue, loop = batch_queue(), asyncio.get_running_loop()
    request = cancel_request("re_1", idempotency_key="key")
    queue.close(UNREACHABLE, until=loop.time() + 1)
    assert not await queue.wait_for_slot(item(), request, 0.5, math.inf)
    assert await queue.wait_for_slot(item(), request, 2.0, math.inf)


def fail(batch: Scheduler, each: Item) -> None:
    """Report that nobody answered."""
    request = cancel_request("re_1", idempotency_key="key")
    attempt = Attempt(1, "POST", "/v1/refunds", None, Cause.REFUSED, None, 0.0, 0.0)
    batch.record_reply(each, request, UNREACHABLE, attempt)


async def outage(batch: Scheduler) -> Item:
    """Let an account fail until it is closed for five seconds; return what it has."""
    batch.accounts.extend(["fast"])
    await claim(batch)
    first = await batch.next_item()
    assert first is not None
    fail(batch, first)
    assert batch.may_begin(first)
    await asyncio.sleep(5.5)
    fail(batch, first)
    assert not batch.may_begin(first)
    return first


async def test_item_whose_turn_comes_after_an_outage_is_sent() -> None:
    batch = scheduler()
    await outage(batch)
    ended = await batch.next_item()
    assert ended is not None
    assert batch.closed_by(ended) is not None
    await asyncio.sleep(5.5)
    tried = await batch.next_item()
    assert tried is not None
    assert batch.closed_by(tried) is None


async def test_failure_that_comes_after_an_outage_opens_and_begins_no_other() -> None:
    batch = scheduler()
    late = await outage(batch)
    await asyncio.sleep(5.5)
    fail(batch, late)
    assert batch.may_begin(late)
    await asyncio.sleep(5.5)
    fail(batch, late)  # the first failure of another outage
    assert batch.may_begin(late)


async def test_refused_key_does_not_let_the_retries_of_a_drained_account_go_on() -> (
    None
):
    queue = batch_queue()
    request = cancel_request("re_1", idempotency_key="key")
    attempt = Attempt(1, "POST", "/v1/refunds", 502, None, None, 0.0, 0.0)
    queue.record_reply(item(), request, WRONG, attempt)  # so that it has a pace
    retries = [
        asyncio.create_task(queue.wait_for_slot(item(), request, 0.0, math.inf))
        for _ in range(2)
    ]
    assert await retries[0]
    queue.drain()
    queue.close(UNREACHABLE)
    assert not await retries[1]


class CountingJournal(MemoryJournal):
    """A journal that notes how many claims were asked for, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, int]] = []

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        now = asyncio.get_running_loop().time()
        self.asked += [(now, limit) for limit in limits.values()]
        return await super().claim(limits)


async def test_account_that_opens_claims_no_more_than_it_sends_in_a_second() -> None:
    """While it was closed it had no pace, and its claims came by the hundred."""
    down, loop, journal = True, asyncio.get_running_loop(), CountingJournal()
    opened_at = math.inf

    def respond(method: str, refund_id: str) -> bytes:
        del method
        if down:
            return answer(502, b"<html>Bad Gateway</html>")
        return canceled(refund_id)

    async def stream() -> AsyncGenerator[str]:
        nonlocal down, opened_at
        for number in range(500):
            yield f"re_{number}"
        await asyncio.sleep(60)
        down, opened_at = False, loop.time()
        for number in range(500, 600):
            yield f"re_{number}"

    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = cancel_many(refunds, stream(), patience=5, rate=20, journal=journal)
        outcomes = {each.refund_id: each.outcome async for each in results}
    assert all(outcomes[f"re_{number}"] == "canceled" for number in range(500, 600))
    assert max(limit for when, limit in journal.asked if when < opened_at) > 100
    assert max(limit for when, limit in journal.asked if when >= opened_at) <= 20


async def test_request_that_was_not_permitted_says_nothing_of_the_service() -> None:
    """It never left: a service that failed before may be well by now."""
    queue = batch_queue()
    request = cancel_request("re_1", idempotency_key="key")
    held = TransportFailure(Cause.NOT_PERMITTED, "the lease is lost", sent=False)
    unsent = Classification[object](held, Outcome.NOT_SENT, retry=False)

    def record(came: Classification[object], cause: Cause) -> None:
        attempt = Attempt(1, "POST", "/v1/refunds", None, cause, None, 0.0, 0.0)
        queue.record_reply(item(), request, came, attempt)

    record(UNREACHABLE, Cause.REFUSED)
    await asyncio.sleep(4)
    record(UNREACHABLE, Cause.REFUSED)
    await asyncio.sleep(4)  # eight after the first: five are enough
    record(unsent, Cause.NOT_PERMITTED)
    assert queue.closed_by is None
    record(UNREACHABLE, Cause.REFUSED)
    assert queue.closed_by is not None
