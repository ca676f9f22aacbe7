"""The attempts of a call after a first one that failed: pauses, and when to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from async_refunds import telemetry
from async_refunds.retry import retrying

if TYPE_CHECKING:
    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import Request
    from async_refunds.retry import StopReason

    from .attempts import CallAttempts

T = TypeVar("T")


async def retry(
    call: CallAttempts, first: Classification[T], request: Request[T], until: float
) -> Classification[T]:
    """Return the last attempt after a first one that may be retried.

    Args:
        call: Its ``stopped`` tells afterwards why no further retry came.
        first: What came of the attempt before.
        request: What is sent again.
        until: When the attempts have to be over, on the call's clock.
    """
    context, gate = call.context, call.retry_gate
    last = first
    slept: float | None = None
    refused = False  # by the gate

    async def attempt_again() -> Classification[T]:
        nonlocal last
        if refused:
            stop("deadline")
            return msgspec.structs.replace(last, retry=False)  # lets tenacity end
        # tenacity's first call stands for the attempt that was made before.
        if slept is not None:
            last = await call.attempt(request, until, slept)
        return last

    async def wait(seconds: float) -> None:
        nonlocal refused
        if gate is None:
            await asyncio.sleep(seconds)
        else:
            refused = not await gate.wait(request, seconds, until)

    def note(failed: Classification[T], pause: float) -> None:
        nonlocal slept
        slept = pause
        telemetry.log_retry(request, call.attempts[-1], failed, pause)

    def stop(reason: StopReason) -> None:
        call.stopped = reason
        stopped = msgspec.structs.replace(call.attempts[-1], stopped=reason)
        call.attempts = (*call.attempts[:-1], stopped)

    call.stopped = None
    controller = retrying(
        policy=context.policy,
        budget=context.budget,
        until=until,
        room=call.room,
        clock=call.clock,
        sleep=wait,
        before_sleep=note,
        on_stop=stop,
    )
    try:
        await controller(attempt_again)
    finally:
        # What it was to do next holds it, this call and its answer in a cycle: a
        # hundred objects that would wait for the garbage collector.
        controller.iter_state.reset()
    return last
