"""What is done with is let go of, errors and what they hold among it."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from async_refunds import (
    Attempt,
    RefundNotFoundError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
    cancel_many,
)
from async_refunds.call import Call
from tests.support.batches import KEY, client, emulator

ONCE = RetryPolicy(max_retries=0)


class Desk:
    """Somebody's own class: its hook is the client's, and it keeps the last error."""

    def __init__(self, base_url: str) -> None:
        self.last_error: RefundsError | None = None
        self.refunds = RefundsClient(
            KEY, base_url=base_url, on_attempt=self.note, retry=ONCE
        )

    def note(self, attempt: Attempt) -> None:
        del attempt

    async def fail(self) -> None:
        async with self.refunds:
            try:
                await self.refunds.cancel("re_unheardof")
            except RefundNotFoundError as error:
                self.last_error = error


def errors() -> int:
    gc.collect()
    return sum(isinstance(each, RefundsError) for each in gc.get_objects())


async def test_who_keeps_an_error_and_has_the_hook_can_still_go() -> None:
    async with emulator().serve() as base_url:
        desk = Desk(base_url)
        await desk.fail()
        assert desk.last_error is not None
        gone = weakref.ref(desk)
        del desk
        await asyncio.sleep(1)
        gc.collect()
        assert gone() is None


async def test_batch_lets_go_of_what_it_asked_for_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # pytest keeps the records, and these have the errors.
    caplog.set_level(logging.CRITICAL, "async_refunds")
    stripe = emulator()
    ids = stripe.seed_refunds(100)
    stripe.faults.script(*["reset_after", "unsaved_500", "reset_before"] * 100)
    before = errors()
    async with client(stripe, retry=ONCE) as refunds:
        asked_again = 0
        async for result in cancel_many(refunds, ids):
            asked_again += len(result.attempts) > 1
            del result
    assert asked_again > 2
    await asyncio.sleep(1)
    assert errors() == before


@pytest.mark.parametrize("fault", ["ok", "unsaved_500", "reset_before"])
async def test_item_of_a_batch_goes_without_the_garbage_collector(
    fault: str,
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(30)
    stripe.faults.script(*[fault, "ok", "ok"] * 10)
    gc.collect()
    before = calls()  # of tests that ended in the middle of one
    gc.disable()
    try:
        async with client(stripe) as refunds:
            async for result in cancel_many(refunds, ids):
                assert result.outcome == "canceled"
            left = calls()
    finally:
        gc.enable()
    assert left == before


def calls() -> int:
    """Count the calls that nothing has let go of yet."""
    return sum(isinstance(each, Call) for each in gc.get_objects())
