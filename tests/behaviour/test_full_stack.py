"""A cancel awaited so deep that the stack is nearly full still says what it did."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_refunds import (
    CallRecord,
    OutcomeUnknownError,
    RefundsClient,
    RefundsError,
    RetryBudget,
)
from tests.support.scripted import CANCELED, KEY, RE, Act, refusal, scripted, seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

FAILING = refusal(503, type="api_error")

# More than a call makes sure of, so that some begin with hardly any more than that.
FRAMES = 75


def ignore(*told: object) -> None:
    del told


@pytest.fixture(autouse=True)
async def quiet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Let the garbage collector close what aiohttp had no room to close.

    pytest's own hook for its warnings has no room either. Nothing is left for another
    test: a traceback that is formatted during a collection makes an `ast.parse` fail in
    which that collection falls (https://github.com/python/cpython/issues/106905).
    """
    monkeypatch.setattr(sys, "unraisablehook", ignore)
    asyncio.get_running_loop().set_exception_handler(ignore)
    yield
    gc.collect()


async def nested(
    depth: int, call: Callable[..., Awaitable[Any]], *args: object
) -> object:
    """Await a call below so many other awaits."""
    if depth == 0:
        return await call(*args)
    return await nested(depth - 1, call, *args)


async def deepest() -> int:
    """Return how many awaits have room below a task."""
    fits, breaks = 0, sys.getrecursionlimit()
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        try:
            await nested(middle, asyncio.sleep, 0)
            fits = middle
        except RecursionError:
            breaks = middle
    return fits


ACTS: dict[str, tuple[list[Act], list[Act]]] = {
    "canceled": ([CANCELED], [seen("canceled")]),
    "failed once": ([FAILING, CANCELED], [seen("canceled")]),
    "reset": (["reset"], [seen("requires_action")]),
    "refused": ([refusal(400)], [seen("canceled")]),
}


async def told_by(call: Awaitable[object]) -> str:
    """Return the name of the error that a call raises, or ``"nothing"``."""
    try:
        await call
    except OutcomeUnknownError as error:
        assert error.idempotency_key in str(error)  # noqa: PT017 - any may be raised
        return "OutcomeUnknownError"
    except (RefundsError, RecursionError) as error:
        return type(error).__name__
    return "nothing"


@pytest.mark.parametrize(
    ("kept", "hooked"),
    [(False, False), (True, False), (True, True)],
    ids=["new connection", "kept", "hooks"],
)
@pytest.mark.parametrize(("cancels", "reads"), ACTS.values(), ids=ACTS.keys())
async def test_full_stack_is_never_a_bare_error_once_something_was_sent(
    cancels: list[Act],
    reads: list[Act],
    kept: bool,  # noqa: FBT001 - a parameter of the test
    hooked: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    found: Counter[tuple[str, bool]] = Counter()
    most = await deepest()
    records: list[CallRecord] = []
    hooks: dict[str, Any] = {"on_call": records.append, "on_attempt": ignore}
    async with scripted(reads=reads) as server:
        for free in range(FRAMES):
            async with server.client(**(hooks if hooked else {})) as refunds:
                if kept:
                    await refunds.retrieve(RE)
                server.cancels[:] = [*cancels]
                server.received.clear()
                told = await told_by(nested(most - free, refunds.cancel, RE))
                sent = any(each.method == "POST" for each in server.received)
                found[told, sent] += 1
                assert refunds.calls_in_progress == refunds.connections_in_use == 0
                server.cancels[:] = [CANCELED]
                assert (await refunds.cancel(RE)).status == "canceled"
    assert not found["RecursionError", True]
    assert not found["nothing", False]
    assert found["APIConnectionError", False] or kept
    if cancels[-1] == CANCELED:
        assert not found["APIConnectionError", True], "the refund is canceled"
    # Where not even an error of ours has room, nothing was sent.
    assert 0 < found["RecursionError", False] < 20


async def test_full_stack_where_nobody_listens_has_sent_nothing() -> None:
    most = await deepest()
    found: Counter[str] = Counter()
    async with RefundsClient(KEY, base_url="http://127.0.0.1:1") as refunds:
        for free in range(FRAMES):
            found[await told_by(nested(most - free, refunds.cancel, RE))] += 1
    assert set(found) == {"APIConnectionError", "RecursionError"}


class BrokenBudget(RetryBudget):
    """Raises as soon as an attempt has ended."""

    def record(self, now: float, *, first: bool, succeeded: bool) -> None:
        raise MemoryError


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (CANCELED, "OutcomeUnknownError"),
        (FAILING, "OutcomeUnknownError"),
        (refusal(404, code="resource_missing"), "APIConnectionError"),
        (refusal(404, echo=False, code="resource_missing"), "OutcomeUnknownError"),
    ],
    ids=["canceled", "failed", "refused", "perhaps refused"],
)
async def test_error_of_our_own_after_the_answer_hides_no_cancel(
    act: Act, told: str
) -> None:
    async with (
        scripted(act) as server,
        server.client(retry_budget=BrokenBudget()) as refunds,
    ):
        assert await told_by(refunds.cancel(RE)) == told


@pytest.mark.parametrize("method", ["cancel", "retrieve"])
async def test_full_stack_leaves_no_other_call_asleep(method: str) -> None:
    """Which waits in the pool for the connection that the deep one gives back."""
    most = await deepest()
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        scripted(CANCELED, reads=[seen("canceled")]) as server,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        refunds = server.client(session=session)
        for free in range(FRAMES):
            deep = nested(most - free, getattr(refunds, method), RE)
            first = asyncio.create_task(told_by(deep))
            await asyncio.sleep(0)
            async with asyncio.timeout(300):
                assert (await refunds.cancel(RE)).status == "canceled"
                await first


async def test_full_stack_at_a_read_is_an_error_of_ours() -> None:
    most = await deepest()
    found: Counter[str] = Counter()
    async with scripted(reads=[seen("pending")]) as server:
        for free in range(FRAMES):
            async with server.client() as refunds:
                found[await told_by(nested(most - free, refunds.retrieve, RE))] += 1
                assert refunds.calls_in_progress == refunds.connections_in_use == 0
    assert found["APIConnectionError"] > 0
    assert found["nothing"] > 0
    assert found["RecursionError"] < 20
