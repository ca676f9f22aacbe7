"""Measure clients side by side, in turn, round after round.

On a machine that others use too, an absolute time is worth nothing an hour later. So
every client takes its turn in every round, a ratio is computed within a round, whose
turns had the same neighbours, and what is reported is the median over the rounds, with
the distance between the quartiles as its spread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

K = TypeVar("K")
T = TypeVar("T")

Call: TypeAlias = Callable[[str], Awaitable[object]]
"""What is measured: awaits the work for one id."""

Opener: TypeAlias = Callable[[str, int], AbstractAsyncContextManager[Call]]
"""Opens a client of a base URL for so many calls at once, and closes it."""


class Turn(msgspec.Struct, frozen=True):
    """One client's calls of one round."""

    cpu: float
    """Seconds of CPU per call, of this process: user and system, all threads."""
    rate: float
    """Calls per second of wall time."""
    p50: float
    """Seconds of wall time, the median call."""
    p99: float
    """The same for the slowest of a hundred."""


class Figure(msgspec.Struct, frozen=True):
    """The median over the rounds, and how far apart its quartiles are."""

    median: float
    iqr: float


class Result(msgspec.Struct, frozen=True):
    """One client at one concurrency, over all rounds."""

    client: str
    concurrency: int
    cpu: Figure
    """Seconds per call."""
    rate: Figure
    """Calls per second."""
    p50: Figure
    """Seconds."""
    p99: Figure
    """Seconds."""
    cpu_ratios: dict[str, Figure]
    """CPU over that of a baseline, by the baseline's name."""
    rate_ratios: dict[str, Figure]
    """Calls per second over those of a baseline."""
    p99_ratios: dict[str, Figure]
    """p99 over that of a baseline."""


def in_turn(
    subjects: Mapping[K, Callable[[], T]], rounds: int, *, warm_up: bool = True
) -> dict[K, list[T]]:
    """Let each do its turn in every round; return what each gave, by the round.

    Args:
        subjects: What to measure, by name.
        rounds: How many to keep.
        warm_up: Make one more round first, which fills caches and specialises bytecode,
            and throw it away. What starts afresh at each turn has no use for it.
    """
    turns: dict[K, list[T]] = {name: [] for name in subjects}
    for number in range(-1 if warm_up else 0, rounds):
        for name, turn in subjects.items():
            found = turn()
            if number >= 0:
                turns[name].append(found)
    return turns


def ratio(own: Sequence[float], others: Sequence[float]) -> Figure:
    """Return how many times the others' own is, each round by itself."""
    return figure(mine / other for mine, other in zip(own, others, strict=True))


async def compare(
    openers: Mapping[str, Opener],
    base_url: str,
    *,
    concurrency: int,
    rounds: int,
    calls: int,
    baselines: Sequence[str],
) -> list[Result]:
    """Measure the clients in turn, and return a result for each in their order."""
    turns: dict[str, list[Turn]] = {name: [] for name in openers}
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(opener(base_url, concurrency))
            for name, opener in openers.items()
        }
        # What the imports of one client left on the heap would make every collection
        # in the turns of the others longer.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        # The round before the first fills caches and specialises bytecode: not kept.
        for number in range(rounds + 1):
            for name, call in clients.items():
                turn = await _turn(call, concurrency=concurrency, calls=calls)
                if number > 0:
                    turns[name].append(turn)
    return [_result(name, concurrency, turns, baselines) for name in openers]


async def _turn(call: Call, *, concurrency: int, calls: int) -> Turn:
    # Connections that timed out while the others had their turns are opened again
    # before the clock starts: the question is the cost of a call.
    await _work(call, _ids(concurrency), concurrency)
    ids = _ids(calls)
    # From the same state for all, and on during the turn, as in a program that runs.
    gc.collect()
    began, cpu_began = time.perf_counter(), time.process_time()
    seconds = await _work(call, ids, concurrency)
    cpu, wall = time.process_time() - cpu_began, time.perf_counter() - began
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return Turn(
        cpu=cpu / calls,
        rate=calls / wall,
        p50=percentiles[49],
        p99=percentiles[98],
    )


async def _work(call: Call, ids: list[str], concurrency: int) -> list[float]:
    """Make a call for each id, so many at a time; return the seconds of each."""
    waiting = iter(ids)
    seconds: list[float] = []

    async def worker() -> None:
        for refund_id in waiting:
            began = time.perf_counter()
            await call(refund_id)
            seconds.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return seconds


def _ids(count: int) -> list[str]:
    # Each id is used once, as in life: a URL that repeats would be found in yarl's
    # caches.
    return [f"re_{next(_NUMBERS):024d}" for _ in range(count)]


def _numbers() -> Iterator[int]:
    # By a step prime to the modulus, so that neighbours share no prefix.
    number = 0
    while True:
        number = (number + 618_033_988_749_894_848_204_587) % 10**24
        yield number


_NUMBERS = _numbers()


def _result(
    name: str,
    concurrency: int,
    turns: Mapping[str, Sequence[Turn]],
    baselines: Sequence[str],
) -> Result:
    own = turns[name]

    def ratios(read: Callable[[Turn], float]) -> dict[str, Figure]:
        return {
            baseline: ratio(
                [read(turn) for turn in own], [read(turn) for turn in turns[baseline]]
            )
            for baseline in baselines
        }

    return Result(
        client=name,
        concurrency=concurrency,
        cpu=figure(turn.cpu for turn in own),
        rate=figure(turn.rate for turn in own),
        p50=figure(turn.p50 for turn in own),
        p99=figure(turn.p99 for turn in own),
        cpu_ratios=ratios(lambda turn: turn.cpu),
        rate_ratios=ratios(lambda turn: turn.rate),
        p99_ratios=ratios(lambda turn: turn.p99),
    )


def on_one_core() -> None:
    """Keep this process, and those it starts, on one core, where that can be said.

    Across two, what the kernel takes to wake up the other one depends on how long the
    other side sleeps: it is laid to one client more than to another, and comes and
    goes between runs.
    """
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def figure(values: Iterable[float]) -> Figure:
    """Return the median of one value per round, and its spread."""
    found = list(values)
    if len(found) == 1:
        return Figure(found[0], 0.0)
    lower, median, upper = statistics.quantiles(found, n=4, method="inclusive")
    return Figure(median, upper - lower)
