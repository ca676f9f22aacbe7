"""How many calls does a disturbance of the service cost?

Four disturbances, each met by this project with all of its defaults, and the outcome of
every call held against the emulator's books:

- **door**: connections are refused for 50 ms, with 200 calls in flight;
- **blink**: every answer is a 503 for one second, at 200 calls a second;
- **failure**: every answer is a 503 for ten seconds, at 25 calls a second;
- **stall**: some requests are never answered, with ten seconds for each call.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import OutcomeUnknownError, RefundsClient, RefundsError
from benchmarks import drawing, report
from benchmarks.faults_emulator import emulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.faults_emulator import Stripe

QUESTION = "How many calls does a disturbance of the service cost?"
KEY = "sk_test_availability"

DOOR_CALLS, DOOR_IN_FLIGHT, DOOR_SECONDS = 3000, 200, 0.05
BLINK_CALLS, BLINK_RATE, BLINK_SECONDS = 1000, 200.0, 1.0
FAILURE_RATE, FAILURE_SECONDS = 25.0, 10.0
STALL_CALLS, STALLED, STALL_IN_FLIGHT, STALL_TIMEOUT = 300, 15, 50, 10.0
BEFORE = 2.0
"""Seconds of undisturbed traffic before a disturbance."""


class Flags(report.Flags, frozen=True, kw_only=True):
    """What this benchmark can be asked for."""

    parts: tuple[str, ...]


class Met(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of one disturbance met, summed over the rounds."""

    name: str
    calls: int
    canceled: int
    unknown: int
    failed: int
    """Ended with another error: nothing was canceled."""
    untrue: int
    """Calls whose word the emulator's books contradict."""
    requests_per_call: float
    """Of the calls that began during the disturbance, reads included."""
    p99: float
    """Seconds."""


class Report(report.Report, frozen=True, kw_only=True):
    """What was found."""

    met: list[Met]


class Ended(msgspec.Struct, frozen=True):
    """One call."""

    refund_id: str
    outcome: str
    began: float
    seconds: float
    requests: int


class Calls:
    """Makes calls with one client, and keeps what each ended with.

    Args:
        refunds: The client.
        timeout: Seconds for each call; ``None`` is the client's own deadline.
    """

    def __init__(self, refunds: RefundsClient, timeout: float | None = None) -> None:
        self._refunds = refunds
        self._timeout = timeout
        self.ended: list[Ended] = []
        self.third = asyncio.Event()

    async def cancel(self, refund_id: str) -> None:
        """Make one call."""
        began = time.monotonic()
        try:
            refund = await self._refunds.cancel(refund_id, timeout=self._timeout)
            outcome, attempts = "canceled", refund.last_response.attempts
        except OutcomeUnknownError as error:
            outcome, attempts = "unknown", error.attempts
        except RefundsError as error:
            outcome, attempts = "failed", error.attempts
        seconds = time.monotonic() - began
        self.ended.append(Ended(refund_id, outcome, began, seconds, len(attempts)))

    async def in_flight(self, ids: list[str], concurrency: int) -> None:
        """Make all calls, so many at a time."""
        waiting = iter(ids)

        async def work() -> None:
            for refund_id in waiting:
                await self.cancel(refund_id)
                if len(self.ended) == len(ids) // 3:
                    self.third.set()

        await asyncio.gather(*(work() for _ in range(concurrency)))

    async def at_rate(self, ids: list[str], rate: float) -> None:
        """Begin so many calls a second, and wait for the end of all."""
        began, calls = time.monotonic(), set[asyncio.Task[None]]()
        for number, refund_id in enumerate(ids):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            calls.add(asyncio.create_task(self.cancel(refund_id)))
        await asyncio.gather(*calls)


async def door(stripe: Stripe, refunds: RefundsClient) -> tuple[Calls, float, float]:
    """Refuse connections for a moment, with many calls in flight."""
    calls = Calls(refunds)
    ids = stripe.seed(DOOR_CALLS)
    stripe.timing(slow=0.2, refuse=DOOR_SECONDS)
    began = time.monotonic()

    async def shut() -> None:
        await calls.third.wait()
        await asyncio.to_thread(stripe.script, "refuse")

    await asyncio.gather(calls.in_flight(ids, DOOR_IN_FLIGHT), shut())
    return calls, began, time.monotonic()


async def failing(
    stripe: Stripe, refunds: RefundsClient, *, count: int, rate: float, seconds: float
) -> tuple[Calls, float, float]:
    """Answer 503 for some seconds, with calls at a steady rate."""
    calls = Calls(refunds)
    ids = stripe.seed(count)
    between: list[float] = []

    async def disturb() -> None:
        await asyncio.sleep(BEFORE)
        await asyncio.to_thread(stripe.storm, 1.0, ("503",), 1)
        between.append(time.monotonic())
        await asyncio.sleep(seconds)
        await asyncio.to_thread(stripe.calm)
        between.append(time.monotonic())

    await asyncio.gather(calls.at_rate(ids, rate), disturb())
    return calls, between[0], between[1]


async def blink(stripe: Stripe, refunds: RefundsClient) -> tuple[Calls, float, float]:
    """Answer 503 for a second."""
    return await failing(
        stripe, refunds, count=BLINK_CALLS, rate=BLINK_RATE, seconds=BLINK_SECONDS
    )


async def failure(stripe: Stripe, refunds: RefundsClient) -> tuple[Calls, float, float]:
    """Answer 503 for ten seconds."""
    count = int(FAILURE_RATE * (BEFORE + FAILURE_SECONDS + BEFORE))
    return await failing(
        stripe, refunds, count=count, rate=FAILURE_RATE, seconds=FAILURE_SECONDS
    )


async def stall(stripe: Stripe, refunds: RefundsClient) -> tuple[Calls, float, float]:
    """Leave some requests without an answer."""
    calls = Calls(refunds, timeout=STALL_TIMEOUT)
    ids = stripe.seed(STALL_CALLS)
    every = STALL_CALLS // STALLED
    names = ["stall" if number % every == 0 else "ok" for number in range(STALL_CALLS)]
    stripe.script(*names)
    began = time.monotonic()
    await calls.in_flight(ids, STALL_IN_FLIGHT)
    return calls, began, time.monotonic()


PARTS: dict[
    str, Callable[[Stripe, RefundsClient], Awaitable[tuple[Calls, float, float]]]
] = {
    "door": door,
    "blink": blink,
    "failure": failure,
    "stall": stall,
}


def untrue(stripe: Stripe, ended: list[Ended]) -> int:
    """Count the calls that said "canceled" and were not, or "failed" and were."""
    canceled = stripe.books().cancellations
    return sum(
        each.outcome != "unknown"
        and (each.outcome == "canceled") != (canceled.get(each.refund_id, 0) == 1)
        for each in ended
    )


async def played(stripe: Stripe, name: str) -> Met:
    """Play one disturbance once."""
    async with RefundsClient(KEY, base_url=stripe.base_url) as refunds:
        calls, begins, ends = await PARTS[name](stripe, refunds)
    ended = calls.ended
    during = [each for each in ended if begins <= each.began < ends] or ended
    outcomes = [each.outcome for each in ended]
    return Met(
        name=name,
        calls=len(ended),
        canceled=outcomes.count("canceled"),
        unknown=outcomes.count("unknown"),
        failed=outcomes.count("failed"),
        untrue=await asyncio.to_thread(untrue, stripe, ended),
        requests_per_call=sum(each.requests for each in during) / len(during),
        p99=sorted(each.seconds for each in ended)[int(0.99 * len(ended))],
    )


def summed(name: str, rounds: list[Met]) -> Met:
    """Add the counts of several rounds; take the median of the rest."""
    return Met(
        name=name,
        calls=sum(each.calls for each in rounds),
        canceled=sum(each.canceled for each in rounds),
        unknown=sum(each.unknown for each in rounds),
        failed=sum(each.failed for each in rounds),
        untrue=sum(each.untrue for each in rounds),
        requests_per_call=statistics.median(each.requests_per_call for each in rounds),
        p99=statistics.median(each.p99 for each in rounds),
    )


def row(met: Met) -> list[str]:
    """Return a line of the table."""
    counts = (met.calls, met.canceled, met.unknown, met.failed, met.untrue)
    figures = [f"{met.requests_per_call:.2f}", f"{met.p99:.2f}"]
    return [met.name, *map(str, counts), *figures]


HEAD = (
    *("disturbance", "calls", "canceled", "unknown", "failed", "untrue"),
    *("requests/call", "p99 s"),
)


def draw(told: Report, path: Path) -> None:
    """Draw the share of calls that did not end canceled."""
    lost = [100 * (each.calls - each.canceled) / each.calls for each in told.met]
    with drawing.sheet(path, QUESTION, size=(7, 3)) as (axes,):
        drawing.bars(
            axes,
            [each.name for each in told.met],
            lost,
            [f"{share:.1f} %" for share in lost],
        )
        axes.set_xlabel("% of the calls that did not end canceled")


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = report.parser(QUESTION, rounds=3)
    report.add_parts(parser, PARTS)
    asked = report.read(parser, Flags)
    if not asked.json:
        print(report.heading(QUESTION, f"{asked.rounds} rounds of each disturbance"))
    met: list[Met] = []
    for name in asked.parts:
        rounds: list[Met] = []
        for _ in range(asked.rounds):
            report.say(f"{name} ...")
            with emulator() as stripe:
                rounds.append(asyncio.run(played(stripe, name)))
        met.append(summed(name, rounds))
    if not asked.json:
        print("\n".join(report.table(HEAD, [row(each) for each in met])), flush=True)
    headlines = {
        f"unknown or failed, {each.name}": float(each.unknown + each.failed)
        for each in met
    }
    headlines |= {f"untrue, {each.name}": float(each.untrue) for each in met}
    told = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines=headlines,
        met=met,
    )
    report.finish(asked, told, lambda path: draw(told, path))


if __name__ == "__main__":
    main()
