"""Does a batch find Stripe's pace: the parts ``pace`` and ``brownout``.

Both ask the emulator with Stripe's limit, in real time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from async_refunds import RefundsClient
from async_refunds.batch import Batch
from async_refunds.emulator import Emulator, Limits
from benchmarks import drawing
from benchmarks.batch_child import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from async_refunds.emulator import ReceivedRequest

LIMIT = 25.0


@asynccontextmanager
async def limited(count: int) -> AsyncGenerator[tuple[Emulator, str, list[str]]]:
    """Serve an emulator with Stripe's limit, and the log of all its requests."""
    stripe = Emulator(limits=Limits(global_rate=None, endpoint_rate=LIMIT))
    stripe.requests = deque()
    ids = stripe.seed_refunds(count)
    async with stripe.serve() as base_url:
        yield stripe, base_url, ids


def pace(half: float) -> tuple[list[ReceivedRequest], dict[str, float]]:
    """Return every request of a run, and what share of the limit got through.

    Args:
        half: Seconds until the limit halves, and from then on to the end.
    """

    async def both() -> tuple[list[ReceivedRequest], dict[str, float]]:
        return await asyncio.gather(_alone(half), _together(half))

    log, shares = asyncio.run(both())
    return log, _passed(log, half) | shares


def _passed(log: Sequence[ReceivedRequest], half: float) -> dict[str, float]:
    began = log[0].received_at
    found: dict[str, float] = {}
    for name, start, end, limit in (
        ("first 30 s", 0.0, min(30.0, half), LIMIT),
        ("after 30 s", min(30.0, half / 2), half, LIMIT),
        ("20 s after it halved", half + min(20.0, half / 2), 2 * half, LIMIT / 2),
    ):
        passed = _count(log, began, start, end, 200)
        found[f"% of the limit, {name}"] = 100 * passed / (end - start) / limit
    for name, start, end in (("whole", 0.0, half), ("halved", half, 2 * half)):
        refused = _count(log, began, start, end, 429)
        passed = _count(log, began, start, end, 200)
        found[f"% answered 429, limit {name}"] = 100 * refused / (refused + passed)
    return found


def _count(
    log: Sequence[ReceivedRequest], began: float, start: float, end: float, status: int
) -> int:
    return sum(
        request.status == status and start <= request.received_at - began < end
        for request in log
    )


async def _alone(half: float) -> list[ReceivedRequest]:
    async with (
        limited(int(4 * half * LIMIT)) as (stripe, base_url, ids),
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        batch = Batch(refunds, ids)
        loop = asyncio.get_running_loop()
        loop.call_later(half, setattr, stripe.limits, "endpoint_rate", LIMIT / 2)
        loop.call_later(2 * half, batch.stop)
        async for _ in batch.results():
            pass
        return list(stripe.requests)


async def _together(half: float) -> dict[str, float]:
    """Two clients of one account, which know nothing of each other."""
    async with limited(int(8 * half * LIMIT)) as (stripe, base_url, ids):
        done: Counter[int] = Counter()
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def work(number: int) -> None:
            async with RefundsClient(KEY, base_url=base_url) as refunds:
                batch = Batch(refunds, ids[number::2])
                loop.call_later(2 * half, batch.stop)
                async for _ in batch.results():
                    if loop.time() - began > half:
                        done[number] += 1

        await asyncio.gather(work(0), work(1))
        del stripe
    return {
        "% that the lesser of two has of the greater": 100
        * min(done.values())
        / max(done.values()),
        "% of the limit, both": 100 * done.total() / half / LIMIT,
    }


def brownout(seconds: float) -> dict[str, float]:
    """Return what it costs when every answer is a 503 for so long in mid-run."""
    return asyncio.run(_browned_out(seconds))


async def _browned_out(seconds: float) -> dict[str, float]:
    count = int(seconds * LIMIT)
    stripe = Emulator()
    stripe.requests = deque()
    ids = stripe.seed_refunds(count)
    outcomes: Counter[str] = Counter()
    async with (
        stripe.serve() as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        async for result in Batch(refunds, ids).results():
            outcomes[result.outcome] += 1
            if outcomes.total() == count // 4:
                stripe.faults.storm(1, names=["503"])
                asyncio.get_running_loop().call_later(seconds, stripe.faults.clear)
    return {
        "requests an item": sum(stripe.books.requests.values()) / count,
        "items not canceled": count - outcomes["canceled"],
    }


def draw(log: Sequence[ReceivedRequest], half: float, axes: Any) -> None:  # noqa: ANN401 - see `drawing.bars`
    """Draw the requests of each second, let in and refused, over the limit."""
    began = log[0].received_at
    seconds = range(int(2 * half))
    passed = [_count(log, began, each, each + 1, 200) for each in seconds]
    refused = [_count(log, began, each, each + 1, 429) for each in seconds]
    axes.bar(
        seconds, passed, width=1, align="edge", label="canceled", color=drawing.OURS
    )
    axes.bar(
        seconds,
        refused,
        width=1,
        align="edge",
        bottom=passed,
        label="answered 429",
        color=drawing.BAD,
    )
    limits = [LIMIT if each < half else LIMIT / 2 for each in (*seconds, 2 * half)]
    axes.step(
        (*seconds, 2 * half),
        limits,
        where="post",
        linewidth=2,
        color=drawing.LINE,
        label="the limit",
    )
    axes.set_xlabel("seconds of a run whose limit halves")
    axes.set_ylabel("requests a second")
    axes.set_ylim(0, LIMIT * 1.2)
    axes.legend(loc="lower left", ncols=3)
