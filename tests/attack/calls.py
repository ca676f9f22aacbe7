"""Plays a script of single calls, and judges what was told by the server's books."""

from __future__ import annotations

import asyncio
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from async_refunds import (
    OutcomeUnknownError,
    Refund,
    RefundNotCancelableError,
    RefundsError,
)

from .canaries import leaks
from .script import Call, Script
from .stripe import refund_id
from .world import DEADLINE, Report, World, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

# Seconds of fake time. What comes late has come by then.
_SETTLED = 60.0
# Seconds that a call may take beyond its deadline: jumps of time go a little too far.
_SLACK = 0.5
# Seconds until a call that has not ended is one that never will.
_HANGING = 300.0


@dataclass
class Told:
    """What came of one call."""

    call: Call
    key: str | None
    """The key it was given."""
    outcome: Refund | BaseException | None
    """``None`` if it never ended."""
    began: float
    seconds: float
    again: bool = False
    """Whether it asks once more with the key of an unknown outcome."""

    @property
    def used(self) -> str | None:
        """The key that it sent, as far as it says so."""
        if self.key is not None:
            return self.key
        if isinstance(self.outcome, Refund):
            return self.outcome.last_response.idempotency_key
        return getattr(self.outcome, "idempotency_key", None)


async def play(script: Script, seed: str, *, deep: bool = True) -> Report:
    """Play a script, and return what did not hold.

    Args:
        script: Its calls, and what they meet.
        seed: Of all chance in it.
        deep: Whether the locals of tracebacks are searched for secrets.
    """
    loop = asyncio.get_running_loop()
    async with opened(script, seed) as world:
        calls = [part for part in script if isinstance(part, Call)]
        if "close_at" in world.options:
            close = world.refunds.close
            loop.call_later(
                world.options["close_at"], lambda: loop.create_task(close())
            )
        told: list[Told] = []
        await asyncio.gather(*(_made(world, call, told) for call in calls))
        await asyncio.sleep(_SETTLED)
    for each in told:
        world.report.calls += 1
        _judge(world, each, told, deep=deep)
    _judge_keys(world, told)
    return world.report


async def _made(world: World, call: Call, told: list[Told]) -> None:
    await asyncio.sleep(call.at)
    key = f"key-of-call-{call.number}" if call.own_key else None
    first = await _ended(world, call, key)
    told.append(first)
    if call.ask_again and isinstance(first.outcome, OutcomeUnknownError):
        same = first.outcome.idempotency_key
        second = await _ended(world, call, same)
        second.again = True
        told.append(second)


async def _ended(world: World, call: Call, key: str | None) -> Told:
    loop, name = asyncio.get_running_loop(), refund_id(call.refund)
    began = loop.time()
    timeout = call.timeout or None
    arguments: dict[str, Any] = {
        "idempotency_key": key,
        "already_canceled_ok": call.already_canceled_ok,
        "timeout": timeout,
    }

    async def cancel() -> Refund:
        if call.reads:
            return await world.refunds.retrieve(name, timeout=timeout)
        return await world.refunds.cancel(name, **arguments)

    task = asyncio.create_task(_below(call.frames, cancel))
    if call.cancel_after >= 0:
        loop.call_later(call.cancel_after, task.cancel)
    for _ in range(call.cancel_step):
        await asyncio.sleep(0)
    if call.cancel_step >= 0:
        task.cancel()
    await asyncio.wait({task}, timeout=_HANGING)
    seconds = loop.time() - began
    if not task.done():
        task.cancel()
        return Told(call, key, None, began, seconds)
    try:
        return Told(call, key, task.result(), began, seconds)
    except BaseException as error:  # noqa: BLE001 - what it is, the judge says
        return Told(call, key, error, began, seconds)


async def _below(
    frames: int, cancel: Callable[[], Coroutine[Any, Any, Refund]]
) -> Refund:
    """Await a call where only so many frames of the stack are free."""
    if not frames:
        return await cancel()
    depth, frame = 0, inspect.currentframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back

    async def deeper(left: int) -> Refund:
        return await (deeper(left - 1) if left else cancel())

    return await deeper(max(0, sys.getrecursionlimit() - depth - frames))


# --------------------------------------------------------------------------- the judge


def _judge(world: World, told: Told, all_told: list[Told], *, deep: bool) -> None:
    report, call = world.report, told.call
    outcome = told.outcome
    what = "hang" if outcome is None else type(outcome).__name__
    report.told[what] += 1
    report.lines.append(f"call {call.number} told {outcome!r} {told.seconds:.3f} s")
    bound = call.timeout or world.options.get("deadline", DEADLINE)
    if outcome is None:
        report.add("a call that never ends", f"{call}")
        return
    if told.seconds > bound + _SLACK:
        report.add(
            "a call that outlives its deadline",
            f"{told.seconds} s, not {bound}: {call}",
        )
    if isinstance(outcome, Refund):
        if not call.reads:
            _judge_return(world, told, outcome)
        return
    if isinstance(outcome, asyncio.CancelledError):
        if call.cancel_after < 0 and call.cancel_step < 0:
            report.add("CancelledError that nobody asked for", f"{call}")
        return
    _judge_foreign(world, told, all_told, outcome)
    if call.reads:
        if isinstance(outcome, OutcomeUnknownError):
            report.add("an unknown outcome of a read", f"{outcome}")
    else:
        _judge_no(world, told, all_told, outcome)
    if found := leaks(outcome, deep=deep):
        report.add(
            f"secret in {found[0]} of {what}", f"{outcome} shows a secret in {found}"
        )


def _judge_return(world: World, told: Told, refund: Refund) -> None:
    name = refund_id(told.call.refund)
    if refund.id != name:
        world.report.add("returned another refund", f"{refund.id}, not {name}")
    if world.books.entries[name].status != "canceled" or refund.status != "canceled":
        world.report.add("returned though not canceled", f"{refund!r}")
    sent = refund.last_response.idempotency_key
    if sent is None or told.key not in (None, sent):
        world.report.add("returned with another key", f"{sent}, not {told.key}")


def _judge_foreign(
    world: World, told: Told, all_told: list[Told], error: BaseException
) -> None:
    name = refund_id(told.call.refund)
    if isinstance(error, RefundsError):
        return
    if isinstance(error, RuntimeError) and "close" in str(error):
        return  # the client was closed by the script
    if isinstance(error, RecursionError) and told.call.frames:
        others = {each.used for each in all_told if each is not told}
        # What a cancelled task has sent, nobody can tell from this call's.
        if None in others or not set(world.books.keys(name)) - others:
            return  # the caller's own stack was full before anything was sent
    world.report.add(f"foreign {type(error).__name__}", f"{error!r} of {told.call}")


def _judge_no(
    world: World, told: Told, all_told: list[Told], error: BaseException
) -> None:
    name = refund_id(told.call.refund)
    entry, report = world.books.entries[name], world.report
    if isinstance(error, OutcomeUnknownError):
        if not error.idempotency_key or told.key not in (None, error.idempotency_key):
            report.add("unknown without its key", f"{error.idempotency_key}")
        if not world.may_have_sent(name, error.idempotency_key):
            report.add("never sent, told unknown", f"{error}")
        return
    if told.again:
        return  # what the same key did before is the first call's
    others = {each.used for each in all_told if each is not told}
    if told.used is None and any(
        each.used is None and each.call.refund == told.call.refund
        for each in all_told
        if each is not told and not each.call.reads
    ):
        return  # what a cancelled task has sent, nobody can tell from this call's
    mine = [
        key
        for key in entry.canceled_by
        if key != "somebody else"
        and (
            key == told.used
            or (
                told.used is None
                and key not in others
                # What came before or after the call, a cancelled task has sent.
                and 0
                <= world.books.first_at(name, key) - told.began
                < told.seconds + 0.1
            )
        )
    ]
    if not mine:
        return
    kind = type(error).__name__
    if isinstance(error, RefundNotCancelableError):
        kind = f"{kind} ({error.refund.status})"
    report.add(f"{kind} though this call canceled", f"told {error}; canceled by {mine}")


def _judge_keys(world: World, all_told: list[Told]) -> None:
    """One call, one key, as often as its policy says and no more."""
    most = int(world.options.get("max_retries", 3)) + 1
    for name in world.books.entries:
        calls = [
            each
            for each in all_told
            if refund_id(each.call.refund) == name and not each.call.reads
        ]
        keys = world.books.keys(name)
        if len(keys) > len(calls):
            world.report.add("more keys than calls", f"{keys} of {len(calls)} calls")
        for key in keys:
            posts = [post for post in world.books.posts if post.key == key]
            users = sum(each.used in (key, None) for each in calls)
            # One more finds out whether a refusal without our key is ours.
            nameless = any(post.nameless for post in posts)
            strange = world.server.misplaced > 0 or "greets" in world.options
            more = 1 if strange or nameless else 0
            if len(posts) > (most + more) * max(users, 1):
                world.report.add("more attempts than allowed", f"{len(posts)} of {key}")
            # Tracing that raises hides the answer with that header.
            shifted = world.server.misplaced or {"greets", "trace"} & {*world.options}
            if users == 1 and not shifted and any(post.final for post in posts[:-1]):
                world.report.add("retried against Stripe-Should-Retry", f"{key}")
