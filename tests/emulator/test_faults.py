from __future__ import annotations

import asyncio
import math

import aiohttp
import pytest

from async_refunds.emulator import FAULTS, Emulator
from tests.support.stripe_caller import Answer, Caller, How, serving

# What the client sees of each fault, and whether the cancel was executed.
BROKEN = {
    "reset_before": False,
    "reset_after": True,
    "cut_body": True,
    "bad_gzip": True,
}
ANSWERED = {
    "garbage": (200, True),
    "empty": (200, True),
    "html_502": (502, True),
    "saved_500": (500, True),
    "unsaved_500": (500, False),
    "503": (503, False),
    "424": (424, False),
    "rate_429": (429, False),
    "lock_429": (429, False),
    "in_use_409": (409, False),
    "redirect": (302, False),
}
LATE = {"stall", "slow", "refuse"}


def test_every_fault_is_explained_and_tried_here() -> None:
    assert set(FAULTS) == {*BROKEN, *ANSWERED, *LATE}
    assert all(FAULTS.values())


async def cancel_twice(
    emulator: Emulator, api: Caller, refund_id: str, fault: str
) -> tuple[Answer, Answer]:
    emulator.faults.script(fault)
    first = await api.cancel(refund_id, "k", checked=False)
    executed = emulator.refund(refund_id)["status"] == "canceled"
    assert executed == ANSWERED[fault][1]
    again = await api.cancel(refund_id, "k")
    return first, again


@pytest.mark.parametrize("fault", BROKEN)
async def test_broken_answer_leaves_the_truth_under_the_key(
    fault: str, api: Caller, refund_id: str
) -> None:
    emulator = api.emulator
    emulator.faults.script(fault)
    with pytest.raises(aiohttp.ClientError):
        await api.cancel(refund_id, "k")
    executed = emulator.refund(refund_id)["status"] == "canceled"
    again = await api.cancel(refund_id, "k")
    assert executed == again.replayed == BROKEN[fault]
    assert again.json["status"] == "canceled"
    assert emulator.books.cancellations == {refund_id: 1}
    assert emulator.books.faults == {fault: 1}
    assert emulator.requests[0].fault == fault


@pytest.mark.parametrize("fault", sorted(set(ANSWERED) - {"saved_500"}))
async def test_false_answer_leaves_the_truth_under_the_key(
    fault: str, api: Caller, refund_id: str
) -> None:
    emulator = api.emulator
    first, again = await cancel_twice(emulator, api, refund_id, fault)
    status, executed = ANSWERED[fault]
    assert first.status == status
    assert emulator.requests[0].status == status
    assert again.replayed == executed
    assert again.json["status"] == "canceled"
    assert emulator.books.cancellations == {refund_id: 1}
    assert emulator.books.faults == {fault: 1}


@pytest.mark.parametrize("fault", ["reset_before", "reset_after"])
async def test_reset_is_a_tcp_reset(fault: str, api: Caller) -> None:
    api.emulator.faults.script(fault)
    with pytest.raises(ConnectionResetError):
        await api.raw(b"GET /v1/refunds HTTP/1.1\r\nHost: a\r\n\r\n")
    assert api.emulator.requests[0].status is None


async def test_cut_body_announces_all_and_sends_half(api: Caller) -> None:
    api.emulator.faults.script("cut_body")
    answer = await api.raw(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
    head, _, body = answer.lower().partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
    assert len(body) == length // 2 > 0
    assert api.emulator.requests[0].status == 404


async def test_garbage_is_no_json_and_empty_is_nothing(api: Caller) -> None:
    api.emulator.faults.script("garbage", "empty")
    garbage = await api.get("", checked=False)
    empty = await api.get("", checked=False)
    assert garbage.headers["Content-Type"] == "application/json"
    with pytest.raises(ValueError, match=r"decode|Expecting"):
        assert garbage.json
    assert empty.body == b""
    assert empty.headers["Request-Id"].startswith("req_")


async def test_html_502_is_a_proxys_page(api: Caller) -> None:
    api.emulator.faults.script("html_502")
    answer = await api.get("", checked=False)
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.body.startswith(b"<html>")
    assert "Request-Id" not in answer.headers


async def test_bad_gzip_says_gzip_and_is_not(api: Caller) -> None:
    api.emulator.faults.script("bad_gzip")
    async with aiohttp.request("GET", api.base_url) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_saved_500_is_replayed_for_ever_after(
    api: Caller, refund_id: str
) -> None:
    first, again = await cancel_twice(api.emulator, api, refund_id, "saved_500")
    fresh = await api.cancel(refund_id, "k2")
    assert first.status == again.status == 500
    assert first.error["type"] == "api_error"
    assert again.body == first.body
    assert again.replayed
    assert not first.replayed
    assert fresh.status == 400
    assert api.emulator.books.cancellations == {refund_id: 1}


async def test_saved_500_of_a_read_is_just_a_500(api: Caller) -> None:
    api.emulator.faults.script("saved_500")
    assert (await api.get("")).status == 500
    assert (await api.get("")).status == 200


@pytest.mark.parametrize(
    ("how", "status"), [(How(key="bad"), 401), (How(data="bogus=1"), 400)]
)
async def test_saved_500_does_not_hide_what_is_never_executed(
    how: How, status: int, api: Caller, refund_id: str
) -> None:
    api.emulator.faults.script("saved_500")
    wrong = await api.cancel(refund_id, "k", **how)
    right = await api.cancel(refund_id, "k")
    assert wrong.status == status
    assert right.status == 200


async def test_saved_answer_outlives_a_saved_500(api: Caller, refund_id: str) -> None:
    api.emulator.faults.script("ok", "saved_500")
    await api.cancel(refund_id, "k")
    again = await api.cancel(refund_id, "k")
    assert again.status == 200
    assert again.replayed


async def test_answers_of_refusing_faults_are_stripes(
    api: Caller, refund_id: str
) -> None:
    api.emulator.faults.script("rate_429", "lock_429", "in_use_409", "424", "503")
    rate, lock, in_use, dependency, down = [
        await api.cancel(refund_id, "k") for _ in range(5)
    ]
    assert rate.headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    assert rate.error["code"] == "rate_limit"
    assert "Stripe-Rate-Limited-Reason" not in lock.headers
    assert lock.error["code"] == "lock_timeout"
    assert in_use.error["code"] == "idempotency_key_in_use"
    assert dependency.status == 424
    assert down.error["type"] == "api_error"
    assert api.emulator.books.rate_limited == {"endpoint-rate": 1, "lock_timeout": 1}


async def test_redirect_leads_to_another_host(api: Caller) -> None:
    api.emulator.faults.script("redirect")
    answer = await api.get("/re_1", checked=False)
    assert answer.headers["Location"] == "https://elsewhere.invalid/v1/refunds/re_1"


async def test_slow_answers_late_and_executes_at_once(
    api: Caller, refund_id: str
) -> None:
    api.emulator.faults.slow_seconds = 7
    api.emulator.faults.script("slow")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    slow = asyncio.create_task(api.cancel(refund_id))
    await asyncio.sleep(0.1)
    assert api.emulator.refund(refund_id)["status"] == "canceled"
    answer = await slow
    assert 7 <= loop.time() - begun < 8
    assert answer.status == 200


async def test_slow_goes_on_when_the_client_has_hung_up(
    api: Caller, refund_id: str
) -> None:
    api.emulator.faults.slow_seconds = 2
    api.emulator.faults.script("slow")
    with pytest.raises(TimeoutError):
        await api.cancel(refund_id, "k", timeout=0.5)
    await asyncio.sleep(0.5)
    meanwhile = await api.cancel(refund_id, "k")
    await asyncio.sleep(1.5)
    again = await api.cancel(refund_id, "k")
    assert meanwhile.status == 409
    assert again.replayed
    assert again.status == 200


async def test_stall_holds_the_key_until_the_client_hangs_up(
    api: Caller, refund_id: str
) -> None:
    api.emulator.faults.script("stall")
    stalled = asyncio.create_task(api.cancel(refund_id, "k", timeout=100))
    await asyncio.sleep(50)
    meanwhile = await api.cancel(refund_id, "k")
    with pytest.raises(TimeoutError):
        await stalled
    await asyncio.sleep(0.1)
    assert api.emulator.refund(refund_id)["status"] == "requires_action"
    again = await api.cancel(refund_id, "k")
    assert meanwhile.status == 409
    assert again.status == 200
    assert not again.replayed
    assert api.emulator.requests[0].status is None


async def test_script_is_met_in_order_and_then_nothing(api: Caller) -> None:
    api.emulator.faults.script("ok", "503")
    api.emulator.faults.script("424")
    statuses = [(await api.get("")).status for _ in range(5)]
    assert statuses == [200, 503, 424, 200, 200]
    assert [entry.fault for entry in api.emulator.requests] == [
        None,
        "503",
        "424",
        None,
        None,
    ]


async def test_script_comes_before_the_storm_and_both_are_cleared(api: Caller) -> None:
    emulator = api.emulator
    emulator.faults.storm(1, names=["424"])
    emulator.faults.script("ok", "503")
    statuses = [(await api.get("")).status for _ in range(4)]
    emulator.faults.script("503")
    emulator.faults.clear()
    statuses.append((await api.get("")).status)
    assert statuses == [200, 503, 424, 424, 200]


def drawn(emulator: Emulator, count: int = 2000) -> list[str | None]:
    return [emulator.faults.draw() for _ in range(count)]


def test_storm_draws_every_fault_but_redirect_alike() -> None:
    emulator = Emulator(seed=3)
    emulator.faults.storm(0.5)
    faults = drawn(emulator, 17_000)
    assert set(faults) == {None, *FAULTS} - {"redirect"}
    assert 8000 < faults.count(None) < 9000
    for name in set(faults) - {None}:
        assert 400 < faults.count(name) < 600


def test_storm_comes_again_with_its_seed_and_with_the_emulators() -> None:
    one, two, three = Emulator(seed=1), Emulator(seed=2), Emulator(seed=1)
    for emulator in (one, two):
        emulator.faults.storm(0.3, seed=7)
    assert drawn(one) == drawn(two)
    four = Emulator(seed=1)
    four.seed_refunds(10)
    for emulator in (two, three, four):
        emulator.faults.storm(0.3)
    assert drawn(three) == drawn(four)


def test_weights_of_a_spec_are_each_faults_own() -> None:
    emulator = Emulator()
    emulator.faults.load("reset_after=0.1, 503=0.2,503=0.1")
    faults = drawn(emulator, 10_000)
    assert set(faults) == {None, "reset_after", "503"}
    assert 850 < faults.count("reset_after") < 1150
    assert 2800 < faults.count("503") < 3200


def test_specs_say_the_same_as_the_calls() -> None:
    spelt, called = Emulator(), Emulator()
    spelt.faults.load("storm:0.3:7")
    called.faults.storm(0.3, seed=7)
    assert drawn(spelt) == drawn(called)
    spelt.faults.load("storm:1")
    assert None not in drawn(spelt)
    spelt.faults.load("script:reset_after, ok,503")
    assert drawn(spelt, 3) == ["reset_after", None, "503"]
    spelt.faults.load(",".join(f"{name}=0.1" for name in list(FAULTS)[:10]))
    assert None not in drawn(spelt)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("", "no fault ''"),
        ("bogus", "no fault 'bogus'; there are: refuse, "),
        ("bogus=0.1", "no fault 'bogus'"),
        ("503", "'503' has no probability"),
        ("503=x", "'x' is no probability"),
        ("503=nan", "'nan' is no probability"),
        ("503=-0.1", "'-0.1' is no probability"),
        ("503=0.6,424=0.6", "add up to 1.2"),
        ("storm:", "'' is no probability"),
        ("storm:2", "'2' is no probability"),
        ("storm:0.3:x", "'x' is no seed"),
        ("storm:0.3:", "'' is no seed"),
        ("script:", "no fault ''"),
        ("script:503,bogus", "no fault 'bogus'"),
        ("tempest:0.3", "no fault 'tempest:0.3'"),
    ],
)
def test_bad_spec_is_refused_by_its_part(spec: str, named: str) -> None:
    emulator = Emulator()
    with pytest.raises(ValueError, match=r".") as caught:
        emulator.faults.load(spec)
    assert named in str(caught.value)
    assert drawn(emulator, 100) == [None] * 100


def test_bad_storm_is_refused() -> None:
    faults = Emulator().faults
    for probability in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="is no probability"):
            faults.storm(probability)
    with pytest.raises(ValueError, match="no fault 'bogus'"):
        faults.storm(0.1, names=["bogus"])
    with pytest.raises(ValueError, match="at least one"):
        faults.storm(0.1, names=[])


async def test_patient_client_cancels_each_refund_once_in_any_storm() -> None:
    emulator = Emulator(seed=5)
    refund_ids = emulator.seed_refunds(60)
    emulator.faults.storm(0.6)

    async def persist(api: Caller, refund_id: str) -> None:
        for _ in range(100):
            try:
                answer = await api.cancel(refund_id, refund_id, checked=False)
            except (aiohttp.ClientError, TimeoutError):
                pass
            else:
                if answer.status == 200 and answer.body.startswith(b'{"id"'):
                    return
                if answer.status == 500 and answer.replayed:
                    return
            await asyncio.sleep(1)

    async with serving(emulator) as api:
        await asyncio.gather(*(persist(api, refund_id) for refund_id in refund_ids))
    assert emulator.books.cancellations == dict.fromkeys(refund_ids, 1)
    assert set(emulator.books.faults) == set(FAULTS) - {"redirect"}
