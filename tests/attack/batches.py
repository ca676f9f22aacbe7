"""Plays a script of a batch, and judges its results by the server's books."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from async_refunds import CancelRequest, CancelResult, RefundsError
from async_refunds.batch import Batch

from .canaries import leaks
from .script import Act, Script
from .stripe import refund_id
from .world import DEADLINE, OddError, Report, World, given_by, opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_SETTLED = 60.0
# Seconds of fake time beyond a refund's patience, and a quarter of that: what is under
# way then ends, and a slow pace lets one refund after the other find its time over.
_GRACE = 12.0
_HANGING = 20_000.0
_PATIENCE = 120.0


@dataclass
class Outcome:
    """What a batch told, and how it ended."""

    results: list[CancelResult] = field(default_factory=list[CancelResult])
    error: BaseException | None = None
    ended: bool = False
    seconds: float = 0.0


async def play(script: Script, seed: str, *, deep: bool = True) -> Report:
    """Play a script, and return what did not hold. See `calls.play`."""
    loop = asyncio.get_running_loop()
    async with opened(script, seed) as world:
        outcome = Outcome()
        names = [refund_id(given.refund) for given in given_by(script)]
        names += names[: int(world.options.get("twice", 0))]
        batch = Batch(world.refunds, _input(world, names), **_arguments(world))
        began = loop.time()
        task = asyncio.create_task(_run(world, batch, outcome))
        if "cancel_at" in world.options:
            loop.call_later(world.options["cancel_at"], task.cancel)
        await asyncio.wait({task}, timeout=_HANGING)
        outcome.seconds = loop.time() - began
        if task.done():
            outcome.ended = True
            outcome.error = (
                asyncio.CancelledError() if task.cancelled() else task.exception()
            )
        task.cancel()
        await asyncio.sleep(_SETTLED)
    world.report.calls = len(names)
    _judge(world, script, names, outcome, deep=deep)
    return world.report


def _arguments(world: World) -> dict[str, Any]:
    options = world.options
    return {
        "concurrency": int(options.get("concurrency", 50)),
        "rate": options.get("rate"),
        "patience": options.get("patience", _PATIENCE),
    }


async def _input(world: World, names: list[str]) -> AsyncGenerator[CancelRequest]:
    options = world.options
    accounts = int(options.get("accounts", 1))
    for number, name in enumerate(names):
        if options.get("input_raises", -1) == number:
            raise OddError("of the input")
        if "slow_input" in options:
            await asyncio.sleep(options["slow_input"])
        # By the id, so that one that is there twice is of the same account.
        account = int(name[-3:]) % accounts
        yield CancelRequest(name, f"acct_{account}" if account else None)


async def _run(world: World, batch: Batch, outcome: Outcome) -> None:
    options = world.options
    async with aclosing(batch.results()) as results:
        async for result in results:
            outcome.results.append(result)
            told = len(outcome.results)
            if told > options.get("stop_at", 1e9):
                batch.stop()
            if told > options.get("interrupt_at", 1e9):
                batch.interrupt()
            if told >= options.get("leave_at", 1e9):
                return


# --------------------------------------------------------------------------- the judge

_ENDED_EARLY = ("stop_at", "interrupt_at", "leave_at", "cancel_at", "close_at")


def _judge(
    world: World, script: Script, names: list[str], outcome: Outcome, *, deep: bool
) -> None:
    report = world.report
    for result in outcome.results:
        report.told[result.outcome] += 1
        report.lines.append(f"told {result}")
    for result in outcome.results:
        _judge_result(world, result)
        if result.error is not None and (found := leaks(result.error, deep=deep)):
            what = type(result.error).__name__
            report.add(f"secret in {found[0]} of {what}", f"{result.error} in {found}")
    report.lines.append(f"the batch ended: {outcome.ended}, {outcome.error!r}")
    if not outcome.ended:
        report.add("a batch that never ends", f"after {outcome.seconds} s")
        return
    _judge_end(world, names, outcome)
    early = any(name in world.options for name in _ENDED_EARLY)
    if not early and outcome.error is None:
        _judge_count(report, names, outcome)
    _judge_time(world, outcome)
    _judge_neighbours(world, script, outcome)
    for name in world.books.entries:
        if len(keys := world.books.keys(name)) > 1:
            # Without a journal and in one run, nothing gives a refund another key.
            twice = names.count(name) > 1
            if not twice:
                report.add("two keys for one refund", f"{name}: {keys}")


def _judge_end(world: World, names: list[str], outcome: Outcome) -> None:
    options, error = world.options, outcome.error
    if error is None and options.get("input_raises", len(names)) < len(names):
        if not any(name in options for name in _ENDED_EARLY):
            world.report.add("an input's BaseException is lost", f"{len(names)} given")
        return
    if error is None or isinstance(error, (RefundsError, OddError)):
        if isinstance(error, OddError) and "input_raises" not in options:
            world.report.add("a hook's BaseException ends the batch", f"{error!r}")
        return
    if isinstance(error, asyncio.CancelledError) and "cancel_at" in options:
        return
    if isinstance(error, RuntimeError) and "close_at" in options:
        return
    world.report.add(f"foreign {type(error).__name__} ends the batch", f"{error!r}")


def _judge_count(report: Report, names: list[str], outcome: Outcome) -> None:
    told = Counter(result.refund_id for result in outcome.results)
    for name, times in Counter(names).items():
        if not 1 <= told[name] <= times:
            report.add("an id told not once", f"{name}: {told[name]} of {times}")
    if foreign := set(told) - set(names):
        report.add("an id told that nobody gave", f"{foreign}")


def _judge_time(world: World, outcome: Outcome) -> None:
    """Patience bounds: a refund is told within it, and one call's time."""
    options = world.options
    patience = options.get("patience", _PATIENCE)
    # A proxy without a backend answers at once: nothing has to be waited for.
    call = 0.0 if "outage" in options else options.get("deadline", DEADLINE)
    for result in outcome.results:
        if result.seconds > 1.25 * patience + call + _GRACE:
            world.report.add(
                "patience does not bound",
                f"{result.refund_id}: {result.seconds} s with patience {patience} and "
                f"a deadline of {call}",
            )


def _judge_neighbours(world: World, script: Script, outcome: Outcome) -> None:
    """One refund that is refused says nothing of the others."""
    refused = {
        part.refund
        for part in script
        if isinstance(part, Act) and part.api in ("401", "403")
    }
    acted = {refund_id(part.refund) for part in script if isinstance(part, Act)}
    if len(refused) != 1:
        return
    for result in outcome.results:
        kind = type(result.error).__name__
        if result.refund_id not in acted and kind in (
            "AuthenticationError",
            "PermissionDeniedError",
        ):
            world.report.add(
                "one refusal closes the account", f"{result.refund_id}: {result.error}"
            )


def _judge_result(world: World, result: CancelResult) -> None:
    entry = world.books.entries.get(result.refund_id)
    if entry is None:
        return
    key, outcome = result.idempotency_key, result.outcome
    mine = [each for each in entry.canceled_by if each != "somebody else"]
    if outcome == "canceled" and entry.status != "canceled":
        world.report.add("told canceled, and is not", f"{result}")
    elif outcome == "unknown":
        if not key:
            world.report.add("told unknown without a key", f"{result}")
        if not world.may_have_sent(result.refund_id, key):
            world.report.add("never sent, told unknown", f"{result}")
    elif outcome in ("already_canceled", "not_cancelable", "failed") and mine:
        # An id that is given twice has two results, each with a key of its own: the
        # second one is right to say that the first one canceled it, and a first one
        # that reached nobody, that it failed.
        told = [
            each
            for each in world.report.lines
            if result.refund_id in each and each.startswith("told")
        ]
        first_did = bool(told) and "outcome='canceled'" in told[0]
        another_did = key not in mine and any(
            "outcome='canceled'" in each for each in told
        )
        if not (
            (outcome == "already_canceled" and first_did)
            or (outcome == "failed" and another_did)
        ):
            world.report.add(
                f"told {outcome}, and this batch canceled it", f"{result}: {mine}"
            )
