from __future__ import annotations

import asyncio
import math

import pytest

from async_refunds.emulator import Emulator, Limits
from tests.support.stripe_caller import Answer, Caller, serving

HELPERS = "/v1/test_helpers/refunds"


async def soon(api: Caller, refund_id: str, key: str | None = None) -> Answer:
    """Cancel a moment after another request has begun."""
    await asyncio.sleep(0.1)
    return await api.cancel(refund_id, key)


def one_charge(emulator: Emulator, count: int = 2) -> list[str]:
    return [emulator.add_refund(charge="ch_1") for _ in range(count)]


async def test_write_on_a_charge_that_another_holds_is_a_lock_timeout(
    api: Caller,
) -> None:
    emulator = api.emulator
    emulator.latency = 1
    first, second = one_charge(emulator)
    canceled, refused = await asyncio.gather(api.cancel(first), soon(api, second, "k"))
    again = await api.cancel(second, "k")
    assert canceled.status == 200
    assert refused.refusal == (429, "lock_timeout")
    assert refused.error["type"] == "invalid_request_error"
    assert "Stripe-Rate-Limited-Reason" not in refused.headers
    assert refused.headers["Stripe-Should-Retry"] == "true"
    assert again.status == 200
    assert not again.replayed
    assert emulator.books.rate_limited == {"lock_timeout": 1}
    assert emulator.books.cancellations == {first: 1, second: 1}


async def test_second_request_for_one_refund_is_a_lock_timeout_too(
    api: Caller, refund_id: str
) -> None:
    api.emulator.latency = 1
    canceled, refused = await asyncio.gather(
        api.cancel(refund_id), soon(api, refund_id)
    )
    assert (canceled.status, refused.status) == (200, 429)


async def test_lock_of_a_charge_keeps_out_nothing_else(api: Caller) -> None:
    emulator = api.emulator
    emulator.latency = 1
    first, second = one_charge(emulator)
    other = emulator.add_refund(charge="ch_2")
    connected = emulator.add_refund(charge="ch_1", account="acct_1")
    headers = {"Stripe-Account": "acct_1"}
    canceled, read, listed, unlike, astray, elsewhere, unknown = await asyncio.gather(
        api.cancel(first),
        api.get(f"/{second}"),
        api.get("?charge=ch_1"),
        api.cancel(other),
        api.cancel(connected),
        api.cancel(connected, headers=headers),
        api.cancel("re_missing"),
    )
    assert {canceled.status, read.status, listed.status, unlike.status} == {200}
    assert elsewhere.status == 200
    assert astray.status == unknown.status == 404


async def test_expiring_a_refund_is_a_write_too(api: Caller) -> None:
    api.emulator.latency = 1
    first, second = one_charge(api.emulator)
    expired, refused = await asyncio.gather(
        api.send("POST", f"{HELPERS}/{first}/expire"), soon(api, second)
    )
    assert (expired.status, refused.status) == (200, 429)


async def test_answer_saved_under_a_key_needs_no_lock(api: Caller) -> None:
    api.emulator.latency = 1
    first, second = one_charge(api.emulator)
    await api.cancel(first, "k")
    canceled, replay = await asyncio.gather(api.cancel(second), soon(api, first, "k"))
    assert canceled.status == replay.status == 200
    assert replay.replayed


@pytest.mark.parametrize("fault", ["slow", "stall"])
async def test_request_that_hangs_holds_its_charge(fault: str, api: Caller) -> None:
    first, second = one_charge(api.emulator)
    api.emulator.faults.slow_seconds = 5
    api.emulator.faults.script(fault)
    hanging = asyncio.create_task(api.cancel(first, timeout=10))
    refused = await soon(api, second)
    await asyncio.wait([hanging])
    await asyncio.sleep(0.1)
    freed = await api.cancel(second)
    assert (hanging.exception() is None) == (fault == "slow")
    assert (refused.status, freed.status) == (429, 200)


async def test_stalled_request_with_a_bad_key_holds_nothing(
    api: Caller, refund_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.emulator.faults.script("stall")
    stalled = asyncio.create_task(api.cancel(refund_id, key="bad", timeout=10))
    assert (await soon(api, refund_id)).status == 200
    with pytest.raises(TimeoutError):
        await stalled
    assert caplog.records == []


async def test_stalled_request_does_not_take_a_lock_from_its_holder(
    api: Caller,
) -> None:
    first, second, third = one_charge(api.emulator, 3)
    api.emulator.faults.slow_seconds = 30
    api.emulator.faults.script("slow", "stall")
    slow = asyncio.create_task(api.cancel(first, timeout=60))
    await asyncio.sleep(0.1)
    with pytest.raises(TimeoutError):
        await api.cancel(second, timeout=10)
    refused = await api.cancel(third)
    assert (await slow).status == 200
    freed = await api.cancel(third)
    assert (refused.status, freed.status) == (429, 200)


async def test_write_waits_for_the_lock_as_long_as_lock_wait(api: Caller) -> None:
    api.emulator.latency, api.emulator.lock_wait = 1, 2.5
    refund_ids = one_charge(api.emulator, 4)
    answers = await asyncio.gather(*(api.cancel(refund_id) for refund_id in refund_ids))
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 429]
    assert answers[0].status == 200


async def test_wait_for_a_lock_ends_when_the_server_closes() -> None:
    emulator = Emulator(latency=1000, lock_wait=1000)
    refund_ids = one_charge(emulator, 3)
    loop = asyncio.get_running_loop()
    async with serving(emulator) as api:
        in_flight_tasks = [
            asyncio.create_task(api.cancel(refund_id, refund_id))
            for refund_id in refund_ids
        ]
        await asyncio.sleep(1)
        begun = loop.time()
    await asyncio.wait(in_flight_tasks)
    for task in in_flight_tasks:
        assert task.exception() is not None
    assert loop.time() - begun < 2
    emulator.latency = 0
    async with serving(emulator) as api:
        answers = [await api.cancel(name, name) for name in refund_ids]
    assert [(answer.status, answer.replayed) for answer in answers] == [
        (200, False)
    ] * 3


async def test_latency_is_how_late_every_execution_is_done(
    api: Caller, refund_id: str
) -> None:
    loop = asyncio.get_running_loop()
    api.emulator.latency = 3
    begun = loop.time()
    cancel = asyncio.create_task(api.cancel(refund_id))
    await asyncio.sleep(1)
    assert api.emulator.refund(refund_id)["status"] == "requires_action"
    assert (await cancel).status == 200
    assert 3 <= loop.time() - begun < 4
    assert (await api.get("")).status == 200
    assert (await api.get("/re_missing")).status == 404
    assert 9 <= loop.time() - begun < 10
    assert (await api.get("", key="bad")).status == 401
    assert (await api.cancel(refund_id, data="bogus=1")).status == 400
    assert loop.time() - begun < 10


async def test_latency_holds_the_key_and_counts_for_the_limiter() -> None:
    emulator = Emulator(latency=1, limits=Limits(endpoint_concurrency=2))
    refund_ids = emulator.seed_refunds(3)
    async with serving(emulator) as api:
        in_flight_tasks = [
            asyncio.create_task(api.cancel(name, name)) for name in refund_ids[:1]
        ]
        in_flight = await soon(api, refund_ids[0], refund_ids[0])
        in_flight_tasks.append(asyncio.create_task(api.cancel(refund_ids[1])))
        refused_one = await soon(api, refund_ids[2])
        await asyncio.gather(*in_flight_tasks)
        admitted = await api.cancel(refund_ids[2])
    assert in_flight.error["code"] == "idempotency_key_in_use"
    assert refused_one.headers["Stripe-Rate-Limited-Reason"] == "endpoint-concurrency"
    assert admitted.status == 200


async def test_execution_ends_although_the_client_has_hung_up(
    api: Caller, refund_id: str
) -> None:
    api.emulator.latency = 5
    with pytest.raises(TimeoutError):
        await api.cancel(refund_id, "k", timeout=1)
    assert api.emulator.refund(refund_id)["status"] == "requires_action"
    await asyncio.sleep(5)
    assert api.emulator.refund(refund_id)["status"] == "canceled"
    again = await api.cancel(refund_id, "k")
    assert again.replayed
    assert again.status == 200


async def test_latency_comes_before_the_fault(api: Caller, refund_id: str) -> None:
    api.emulator.latency = 5
    api.emulator.faults.script("html_502", "saved_500")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert (await api.cancel(refund_id, checked=False)).status == 502
    assert (await api.cancel(refund_id)).status == 500
    assert 10 <= loop.time() - begun < 11


@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_invalid_duration_is_refused(value: float) -> None:
    emulator = Emulator()
    with pytest.raises(ValueError, match="latency must be a number of seconds"):
        emulator.latency = value
    with pytest.raises(ValueError, match="lock_wait must be a number of seconds"):
        emulator.lock_wait = value
    with pytest.raises(ValueError, match="latency"):
        Emulator(latency=value)
    assert (emulator.latency, emulator.lock_wait) == (0, 0)


async def test_seeded_refunds_may_share_charges(api: Caller) -> None:
    seeded = [
        api.emulator.refund(name) for name in api.emulator.seed_refunds(7, per_charge=3)
    ]
    charges = [str(refund["charge"]) for refund in seeded]
    assert charges[0] == charges[1] == charges[2] != charges[3]
    assert len(set(charges)) == 3
    for name in ("payment_intent", "currency", "instructions_email"):
        assert len({refund[name] for refund in seeded[:3]}) == 1
    with pytest.raises(ValueError, match="per_charge must be 1 or more, not 0"):
        api.emulator.seed_refunds(1, per_charge=0)
    page = (await api.get(f"?charge={charges[3]}")).json
    await api.cancel(page["data"][0]["id"])
    charge = (
        await api.get(f"/{seeded[3]['id']}?expand[]=charge.balance_transaction")
    ).json["charge"]
    intent = (await api.get(f"/{seeded[3]['id']}?expand[]=payment_intent")).json
    assert [item["id"] for item in page["data"]] == [
        refund["id"] for refund in seeded[5:2:-1]
    ]
    amounts = [int(str(refund["amount"])) for refund in seeded[3:6]]
    assert charge["amount"] == charge["balance_transaction"]["amount"] == sum(amounts)
    assert intent["payment_intent"]["amount"] == sum(amounts)
    assert charge["amount_refunded"] == sum(amounts[:2])
    assert charge["refunded"] is False
