"""One deadline for the whole call, on the event loop's clock."""

from __future__ import annotations

import asyncio

import pytest

from async_refunds import (
    Attempt,
    OutcomeUnknownError,
    RateLimitError,
    RefundsError,
    RetryPolicy,
)
from async_refunds.transport.deadlines import Deadlines
from tests.conftest import JumpingEventLoop
from tests.support.scripted import CANCELED, CUT, RE, refusal, scripted, seen

LIMITED = refusal(429, code="rate_limit")

# Seconds of real time that a loaded machine may add to those that only the clock jumps.
SLACK = 0.3


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("timeout", [0.2, 1.0, 7.0, 45.0, 80.0, 200.0])
async def test_stalling_server_cannot_hold_a_call_beyond_its_deadline(
    timeout: float,  # noqa: ASYNC109 - the argument under test
) -> None:
    async with scripted("stall", reads=["stall"]) as server, server.client() as refunds:
        began = now()
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE, timeout=timeout)
        assert now() - began <= timeout + SLACK
    assert server.methods().endswith("GET"), "the attempts left no room to settle"


async def test_nothing_is_sent_once_a_blocked_loop_has_used_the_time_up() -> None:
    def block(attempt: Attempt) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingEventLoop)
        if attempt.number == 1:
            loop.jump(100.0)

    async with (
        scripted("reset", reads=[seen("canceled")]) as server,
        server.client(on_attempt=block) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await refunds.cancel(RE)
    assert server.methods() == "POST"
    assert [each.failure for each in caught.value.attempts] == [
        "reset",
        "connect_timeout",
    ]


async def test_policy_has_the_deadline_of_a_call_that_names_none() -> None:
    policy = RetryPolicy(deadline=12.0)
    async with (
        scripted("stall", reads=["stall"]) as server,
        server.client(retry=policy) as refunds,
    ):
        began = now()
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
        assert 10.0 <= now() - began <= 12.0 + SLACK


async def test_no_sleep_outlives_the_deadline() -> None:
    policy = RetryPolicy(max_retries=1000, initial_delay=60.0, max_delay=60.0)
    async with scripted(LIMITED) as server, server.client(retry=policy) as refunds:
        began = now()
        with pytest.raises(RateLimitError):
            await refunds.cancel(RE, timeout=20.0)
        assert now() - began <= 20.0


async def test_no_attempt_starts_that_cannot_finish() -> None:
    attempts: list[Attempt] = []
    policy = RetryPolicy(max_retries=1000, initial_delay=0.5, max_delay=0.5)
    async with (
        scripted(LIMITED) as server,
        server.client(
            retry=policy, on_attempt=attempts.append, retry_budget=None
        ) as refunds,
    ):
        began = now()
        with pytest.raises(RateLimitError) as caught:
            await refunds.cancel(RE, timeout=20.0)
        # Of 20 s, 5 are kept for the read, and 1 is the least that an attempt needs.
        assert 13.5 <= now() - began <= 14.5
    assert len(attempts) > 30
    assert caught.value.retries_stopped_by == "deadline"


async def test_body_that_trickles_is_inside_the_deadline() -> None:
    async with (
        scripted("trickle", reads=["trickle"]) as server,
        server.client() as refunds,
    ):
        began = now()
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE, timeout=20.0)
        assert now() - began <= 20.0 + SLACK


async def test_attempt_that_ran_out_of_time_is_reported_with_its_seconds() -> None:
    async with (
        scripted("stall", CANCELED) as server,
        server.client(attempt_timeout=3.0) as refunds,
    ):
        refund = await refunds.cancel(RE)
    first, second = refund.last_response.attempts
    assert first.failure == "timeout"
    assert 3.0 <= first.seconds < 3.0 + SLACK
    assert second.slept <= 0.5


async def test_many_calls_share_the_timer_and_each_ends_in_its_own_time() -> None:
    """A later one is not cut off with an earlier one, nor forgotten."""
    async with (
        scripted("stall", reads=[seen("requires_action")]) as server,
        server.client(
            attempt_timeout=10.0, retry=RetryPolicy(max_retries=0)
        ) as refunds,
    ):

        async def cancel(delay: float) -> float:
            await asyncio.sleep(delay)
            with pytest.raises(RefundsError) as caught:
                await refunds.cancel(RE)
            return caught.value.attempts[0].seconds

        took = await asyncio.gather(*(cancel(delay) for delay in (0, 1, 5, 9, 12, 30)))
    assert all(10.0 <= each < 10.0 + SLACK for each in took), took


class TestDeadlines:
    """Its own, and nobody else's, cancellation turns into `TimeoutError`."""

    async def test_expires(self) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), 5.0)
        began = now()
        with pytest.raises(TimeoutError), deadlines.start(5.0, now()):
            await asyncio.sleep(60)
        assert 5.0 <= now() - began < 5.0 + SLACK
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # nothing is left to cancel this task once more

    async def test_shorter_one_expires_in_its_own_time(self) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), 5.0)
        began = now()
        with (
            pytest.raises(TimeoutError),
            deadlines.start(5.0, now()),
            deadlines.start(2.0, now()),
        ):
            await asyncio.sleep(60)
        assert 2.0 <= now() - began < 2.0 + SLACK
        with deadlines.start(2.0, now()):
            await asyncio.sleep(1)
        await asyncio.sleep(60)  # nothing is left to cancel this task

    async def test_lets_a_cancellation_from_outside_through(self) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), 5.0)

        async def wait() -> None:
            with deadlines.start(5.0, now()):
                await asyncio.sleep(60)

        task = asyncio.create_task(wait())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    async def test_cancellation_that_comes_with_the_expiry_wins(self) -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop, 5.0)

        async def wait() -> None:
            with deadlines.start(5.0, began):
                await asyncio.sleep(60)

        began = now()
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        loop.call_at(began + 5.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_timeout_around_it_ends_first(self) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), 5.0)

        async def wait() -> None:
            with deadlines.start(5.0, now()):
                await asyncio.sleep(60)

        began = now()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(), 2.0)
        assert 2.0 <= now() - began < 2.0 + SLACK

    async def test_result_that_beats_the_expired_deadline_is_kept(self) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), 5.0)
        task = asyncio.current_task()
        assert task is not None
        with deadlines.start(5.0, now()) as deadline:
            deadline.expire()  # while nothing is awaited: the cancel waits to be met
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(0)
        assert task.cancelling() == 0

    async def test_error_of_its_own_is_not_taken_for_the_expiry(self) -> None:
        deadlines = Deadlines(asyncio.get_running_loop(), 5.0)

        async def fail_while_cancelled() -> None:
            with deadlines.start(5.0, now()):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    raise KeyError("its own") from None

        with pytest.raises(KeyError):
            await fail_while_cancelled()

    async def test_closing_takes_the_timer_back_but_from_nobody(self) -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop, 5.0)
        deadlines.close()  # before there is one
        loop.call_soon(deadlines.close)  # while somebody waits
        with pytest.raises(TimeoutError), deadlines.start(5.0, now()):
            await asyncio.sleep(60)
        with deadlines.start(5.0, now()):
            pass
        deadlines.close()
        with pytest.raises(TimeoutError), deadlines.start(5.0, now()):
            await asyncio.sleep(60)

    def test_is_for_tasks(self) -> None:
        loop = asyncio.new_event_loop()
        errors: list[Exception] = []

        def start() -> None:
            try:
                Deadlines(loop, 5.0).start(5.0, loop.time())
            except RuntimeError as error:
                errors.append(error)

        loop.call_soon(start)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert len(errors) == 1


async def test_cut_answer_is_not_waited_for() -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + CUT[:8] + CUT
    async with scripted(cut, CANCELED) as server, server.client() as refunds:
        refund = await refunds.cancel(RE)
    assert sum(each.seconds for each in refund.last_response.attempts) < 1.0
