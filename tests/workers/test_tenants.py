"""One worker for several tenants, each with its own client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from async_refunds import RefundsClient, RetryPolicy
from tests.support.batches import KEY

if TYPE_CHECKING:
    from tests.workers.conftest import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

A = "acct_A"
FAST = 2000.0
RUN_OF = "SELECT async_refunds.create_run(%s, %s, false, %s)"


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 300.0), (7.0, 7.0)], ids=["policy", "timeout"]
)
async def test_no_new_key_as_long_as_a_call_of_the_tenants_client_may_take(
    fleet: Fleet, given: float | None, expected: float
) -> None:
    await fleet.seed(1, A)
    await fleet.ask(
        "UPDATE async_refunds.leases SET token = gen_random_uuid(), owner = 'killed'"
    )
    policy = RetryPolicy(deadline=300.0)
    async with RefundsClient(KEY, base_url=fleet.base_url, retry=policy) as patient:
        clients = {"default": patient}
        async with fleet.hosted(clients.get, rate=FAST, ttl=20.0, timeout=given):
            await fleet.until_told(1)
    seconds = await fleet.value(
        """SELECT extract(epoch FROM no_new_key_until - acquired_at)::float8
            FROM async_refunds.leases"""
    )
    assert seconds == pytest.approx(20.0 + expected, abs=1.0)


async def test_tenant_without_a_key_is_asked_for_again_and_told_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the function fails, as a vault that is away does."""
    monkeypatch.setattr("async_refunds.workers.worker._INTERVAL", 0.01)
    monkeypatch.setattr("async_refunds.workers.worker._ASK_AGAIN", 0.0)
    ids = await fleet.seed(2, A)
    asked: list[str] = []
    async with RefundsClient(KEY, base_url=fleet.base_url) as refunds:

        def client_of(tenant: str) -> RefundsClient | None:
            asked.append(tenant)
            if len(asked) == 1:
                raise OSError(f"no answer, {KEY}\nto {tenant}")
            return refunds if len(asked) > 4 else None

        async with fleet.hosted(client_of, rate=FAST):
            await fleet.until_told(2)
    assert fleet.results.keys() == set(ids)
    assert asked == ["default"] * 5
    (told,) = [each for each in caplog.messages if "no key for" in each]
    assert told.startswith("no key for default ")
    assert told.endswith(
        "its runs wait for others (OSError: no answer, sk_test_*** to default)"
    )


async def test_tenant_without_a_key_is_not_asked_for_at_each_look(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    await fleet.seed(1, A)
    async with RefundsClient(KEY, base_url=fleet.base_url) as refunds:

        def client_of(tenant: str) -> RefundsClient | None:
            asked.append(tenant)
            return None if tenant == "default" else refunds

        async with fleet.hosted(client_of, rate=FAST):
            await fleet.until(lambda: "no key for default" in caplog.text)
            for name in ("second", "third"):
                await fleet.seed(1, A)  # says that there is more for the first
                await fleet.ask(RUN_OF, name, fleet.base_url, name)
                await fleet.enqueue(fleet.stripe.seed_refunds(1), None, name)
                await fleet.until(lambda name=name: name in asked)  # type: ignore[misc]
    assert asked == ["default", "second", "third"]


async def test_tenant_whose_key_does_not_come_holds_up_no_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("async_refunds.workers.worker._PATIENCE", 3600.0)
    asked = asyncio.Event()

    async def hangs() -> str:
        asked.set()
        await asyncio.Event().wait()
        return KEY

    async with (
        RefundsClient(hangs, base_url=fleet.base_url) as waiting,
        RefundsClient(lambda: KEY, base_url=fleet.base_url) as refunds,
    ):
        await fleet.seed(1, A)
        await fleet.ask(RUN_OF, "second", fleet.base_url, "second")
        ids = await fleet.enqueue(fleet.stripe.seed_refunds(1), None, "second")
        clients = {"default": waiting, "second": refunds}
        async with fleet.hosted(clients.get, rate=FAST):
            await fleet.until_told(1)
            assert asked.is_set()
    assert fleet.results.keys() == set(ids)


async def test_tenant_whose_key_comes_too_late_is_told(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("async_refunds.workers.worker._PATIENCE", 0.05)

    async def hangs() -> str:
        await asyncio.Event().wait()
        return KEY

    await fleet.seed(1, A)
    async with (
        RefundsClient(hangs, base_url=fleet.base_url) as refunds,
        fleet.hosted({"default": refunds}.get),
    ):
        await fleet.until(lambda: "gave no key in time" in caplog.text)
    assert not fleet.stripe.requests
