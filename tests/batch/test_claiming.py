"""Claims ahead of need: a budget over all accounts, which no slow one uses up."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from async_refunds.batch.account_limits import AccountLimits
from async_refunds.batch.account_queue import AccountQueue
from async_refunds.batch.claim_budget import ClaimBudget
from async_refunds.batch.closing import ServiceMonitor
from async_refunds.batch.endpoint import Endpoint
from async_refunds.batch.rate_control import RateController
from async_refunds.batch.scheduler import Scheduler
from async_refunds.journal import Claim
from async_refunds.protocol.requests import cancel_request

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_refunds.batch.claim_rounds import WantedClaims

BUDGET = 5000
FAST, SLOW = 25.0, 0.01

numbers = count(1)


class Rates:
    """The leases of accounts, of which the last holders had found these rates."""

    on_lost: Callable[[str | None], object] | None = None

    def may_send(self, stripe_account: str | None) -> bool:
        del stripe_account
        return True

    def rate(self, stripe_account: str | None) -> float | None:
        return SLOW if stripe_account and stripe_account.startswith("slow") else FAST


def scheduler() -> Scheduler:
    clock = asyncio.get_running_loop().time
    return Scheduler(
        new_pace=lambda start: RateController(rate=start, now=clock()),
        clock=clock,
        workers=1_000_000,
        service="https://api.stripe.com",
        patience=120.0,
        leases=Rates(),
    )


def batch_queue() -> AccountQueue:
    """Return the queue of one account."""
    clock = asyncio.get_running_loop().time
    return AccountQueue(
        "acct_1",
        lambda _: RateController(rate=FAST, now=clock()),
        clock,
        lambda queue: queue,
        service=ServiceMonitor("https://api.stripe.com", 120.0),
        budget=ClaimBudget(),
    )


def give(batch: Scheduler, wanted: WantedClaims) -> None:
    """Give an account as many as it wants, as if it had no end."""
    claims = [
        Claim(next(numbers), "re_1", wanted.account, "key", 0.0, maybe_sent=False)
        for _ in range(wanted.limit)
    ]
    batch.accounts.add_claims(wanted, claims)


async def claim(batch: Scheduler) -> list[WantedClaims]:
    """Give what is wanted, until no more is."""
    found: list[WantedClaims] = []
    while True:
        try:
            async with asyncio.timeout(0.001):
                wanted = await batch.accounts.claims_wanted()
        except TimeoutError:
            return found
        for each in wanted:
            give(batch, each)
        found += wanted


async def send(batch: Scheduler) -> str | None:
    """Take one item, and be done with it. Return its account."""
    item = await batch.next_item()
    assert item is not None
    batch.release(item)
    return item.claim.stripe_account


async def test_of_thousands_of_accounts_some_claim_pages_and_the_others_wait() -> None:
    """A claim of one item each would cost a third more for every item."""
    batch = scheduler()
    batch.accounts.extend(f"fast_{number}" for number in range(3000))
    wanted = await claim(batch)
    assert sum(each.limit for each in wanted) == BUDGET
    assert {each.limit for each in wanted[:-1]} == {8}


async def test_each_account_has_its_turn_before_any_has_a_second() -> None:
    batch = scheduler()
    accounts = [f"fast_{number}" for number in range(3000)]
    batch.accounts.extend(accounts)
    claimed = [each.account for each in await claim(batch)]
    while len(claimed) < 2 * len(accounts):
        for _ in range(250):
            await send(batch)
        claimed += [each.account for each in await claim(batch)]
    assert sorted(map(str, claimed[:3000])) == sorted(accounts)


async def test_accounts_claim_when_others_have_sent_theirs() -> None:
    batch = scheduler()
    batch.accounts.extend(f"fast_{number}" for number in range(1000))
    await claim(batch)
    waiting = asyncio.create_task(batch.accounts.claims_wanted())
    for _ in range(250):
        await asyncio.sleep(0)
        assert not waiting.done()
        await send(batch)
    async with asyncio.timeout(0.001):
        wanted = await waiting
    assert sum(each.limit for each in wanted) == 250


async def test_slow_accounts_that_hold_all_claims_hold_up_no_other_one() -> None:
    batch = scheduler()
    loop = asyncio.get_running_loop()
    batch.accounts.extend(f"slow_{number}" for number in range(BUDGET))
    await claim(batch)
    for _ in range(BUDGET):
        await send(batch)  # the first one of each goes out at once
        await asyncio.sleep(0)
    await claim(batch)  # and the next one in a hundred seconds
    batch.accounts.extend(["fast"])
    assert await claim(batch) == []
    began = loop.time()
    sending = asyncio.create_task(send(batch))
    await asyncio.sleep(0)
    assert [each.account for each in await claim(batch)] == ["fast"]
    assert await sending == "fast"
    assert loop.time() - began < 0.1


@contextmanager
def bytes_taken() -> Generator[Callable[[], int]]:
    """Tell what was allocated in the block, and is still held."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


async def test_account_takes_little_memory() -> None:
    """Kilobytes for each of 5,000 accounts would be most of what a batch takes."""
    batch, many = scheduler(), 1000
    names = [f"fast_{number}" for number in range(many)]
    batch.accounts.extend(["first"])
    with bytes_taken() as taken:
        batch.accounts.extend(names)
        assert taken() / many < 1000


async def test_retry_leaves_no_memory_behind() -> None:
    """Where a network is slow, thousands of accounts retry sooner or later."""
    batch, many = scheduler(), 500
    batch.accounts.extend(f"fast_{number}" for number in range(many))
    await claim(batch)
    items = [await batch.next_item() for _ in range(many)]
    request = cancel_request("re_1", idempotency_key="key")
    with bytes_taken() as taken:
        for item in items:
            assert item is not None
            assert await batch.wait_for_slot(item, request, 1.0, math.inf)
        assert taken() / many < 200


async def test_wait_for_a_slot_leaves_no_memory_behind() -> None:
    clock = asyncio.get_running_loop().time
    limits = AccountLimits(
        lambda _: RateController(rate=FAST, now=clock()), None, clock
    )
    endpoints = [
        Endpoint(RateController(rate=FAST, now=clock()), clock, limits)
        for _ in range(500)
    ]
    with bytes_taken() as taken:
        for endpoint in endpoints:
            slots = [endpoint.acquire_slot() for _ in range(3)]
            assert await asyncio.gather(*slots) == [True] * 3
        assert taken() / len(endpoints) < 200
