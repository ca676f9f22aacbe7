from __future__ import annotations

import asyncio
import io

import pytest

from tests.support.stripe_caller import LIVE_KEY, Caller

# Faults that end a request before it is executed.
EARLY = ("rate_429", "lock_429", "in_use_409")


async def test_canceled_refund_is_given_back_with_what_a_cancel_changes(
    api: Caller,
) -> None:
    emulator = api.emulator
    refund_id = emulator.add_refund(amount=700, currency="thb")
    before = emulator.refund(refund_id)
    answer = await api.cancel(refund_id)
    assert answer.status == 200
    after = answer.json
    assert after == emulator.refund(refund_id)
    assert after.pop("failure_balance_transaction").startswith("txn_")
    assert after.pop("failure_reason") == "merchant_request"
    assert after.pop("status") == "canceled"
    assert before.pop("next_action") is not None
    assert before.pop("status") == "requires_action"
    assert after == before
    assert emulator.books.cancellations == {refund_id: 1}
    assert emulator.books.cancel_requests == {refund_id: 1}


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed", "canceled"])
async def test_refund_in_another_state_is_400_without_code_or_param(
    status: str, api: Caller
) -> None:
    refund_id = api.emulator.add_refund(status=status)
    answer = await api.cancel(refund_id)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert not {"code", "param", "doc_url"} & set(answer.error)
    assert "/v1/charges/" in answer.error["message"]
    assert not api.emulator.books.cancellations
    assert api.emulator.refund(refund_id)["status"] == status


async def test_second_cancel_is_refused_and_not_executed(
    api: Caller, refund_id: str
) -> None:
    first = await api.cancel(refund_id, "a")
    second = await api.cancel(refund_id, "b")
    assert (first.status, second.status) == (200, 400)
    assert api.emulator.books.cancellations == {refund_id: 1}


async def test_unknown_refund_is_404_resource_missing(api: Caller) -> None:
    canceled = await api.cancel("re_missing")
    retrieved = await api.get("/re_missing")
    assert canceled.status == retrieved.status == 404
    assert canceled.error["message"] == "No such refund: 're_missing'"
    assert canceled.error["code"] == retrieved.error["code"] == "resource_missing"
    assert (canceled.error["param"], retrieved.error["param"]) == ("refund", "id")
    assert "resource-missing" in canceled.error["doc_url"]


async def test_refund_of_the_other_mode_is_404_and_says_so(api: Caller) -> None:
    test, live = api.emulator.add_refund(), api.emulator.add_refund(livemode=True)
    assert (await api.get(f"/{live}", key=LIVE_KEY)).status == 200
    with_test_key = await api.cancel(live)
    with_live_key = await api.cancel(test, key=LIVE_KEY)
    assert with_test_key.status == with_live_key.status == 404
    assert "exists in live mode, but a test mode" in with_test_key.error["message"]
    assert "exists in test mode, but a live mode" in with_live_key.error["message"]
    assert "/test/logs/req_" in with_test_key.error["request_log_url"]
    assert "/test/" not in with_live_key.error["request_log_url"]
    assert not api.emulator.books.cancellations


async def test_same_key_replays_the_first_answer_and_executes_once(
    api: Caller, refund_id: str
) -> None:
    first = await api.cancel(refund_id, "k")
    again = await api.cancel(refund_id, "k")
    assert not first.replayed
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (again.status, again.body) == (first.status, first.body)
    assert first.headers["Original-Request"] == first.headers["Request-Id"]
    assert again.headers["Original-Request"] == first.headers["Request-Id"]
    assert again.headers["Request-Id"] != first.headers["Request-Id"]
    for answer in (first, again):
        assert answer.headers["Idempotency-Key"] == "k"
        assert answer.headers["Stripe-Should-Retry"] == "false"
    assert api.emulator.books.cancellations == {refund_id: 1}
    assert api.emulator.books.replays == 1
    assert [entry.replayed for entry in api.emulator.requests] == [False, True]


async def test_cancel_without_a_key_is_never_replayed(
    api: Caller, refund_id: str
) -> None:
    first = await api.cancel(refund_id)
    second = await api.cancel(refund_id, "")
    assert (first.status, second.status) == (200, 400)
    assert "Idempotency-Key" not in first.headers
    assert "Original-Request" not in first.headers


@pytest.mark.parametrize("status", ["succeeded", None])
async def test_refusal_of_a_cancel_is_saved_too(
    status: str | None, api: Caller
) -> None:
    refund_id = "re_later"
    if status is not None:
        api.emulator.add_refund(refund_id=refund_id, status=status)
    first = await api.cancel(refund_id, "k")
    if status is None:
        api.emulator.add_refund(refund_id=refund_id)
    api.emulator.set_status(refund_id, "requires_action")
    again = await api.cancel(refund_id, "k")
    fresh = await api.cancel(refund_id, "other")
    assert first.status == again.status == (404 if status is None else 400)
    assert again.replayed
    assert again.body == first.body
    assert fresh.status == 200


async def test_key_is_forgotten_after_24_hours(api: Caller, refund_id: str) -> None:
    await api.cancel(refund_id, "k")
    api.emulator.clock.advance(24 * 3600 - 60)
    assert (await api.cancel(refund_id, "k")).replayed
    api.emulator.clock.advance(61)
    expired = await api.cancel(refund_id, "k")
    assert not expired.replayed
    assert expired.status == 400


async def test_same_key_with_other_parameters_is_an_idempotency_error(
    api: Caller,
) -> None:
    refund_id, other_id = api.emulator.seed_refunds(2)
    await api.cancel(refund_id, "k")
    params = await api.cancel(refund_id, "k", expand=["charge"])
    path = await api.cancel(other_id, "k")
    replay = await api.cancel(refund_id, "k")
    assert params.status == path.status == 400
    assert params.error["type"] == path.error["type"] == "idempotency_error"
    assert "same parameters" in params.error["message"]
    assert f"'/v1/refunds/{refund_id}/cancel'" in path.error["message"]
    assert f"'/v1/refunds/{other_id}/cancel'" in path.error["message"]
    assert not params.replayed
    assert replay.replayed
    assert api.emulator.books.cancellations == {refund_id: 1}


async def test_both_ways_to_write_a_list_are_the_same_parameters(
    api: Caller, refund_id: str
) -> None:
    await api.cancel(refund_id, "k", data="expand[]=charge")
    again = await api.cancel(refund_id, "k", expand=["charge"])
    assert again.replayed


async def test_key_in_flight_is_409_until_the_answer_is_there(
    api: Caller, refund_id: str
) -> None:
    api.emulator.faults.script("slow")
    slow = asyncio.create_task(api.cancel(refund_id, "k"))
    await asyncio.sleep(0.1)
    meanwhile = await api.cancel(refund_id, "k")
    first = await slow
    again = await api.cancel(refund_id, "k")
    assert meanwhile.refusal == (409, "idempotency_key_in_use")
    assert meanwhile.error["type"] == "invalid_request_error"
    assert first.status == 200
    assert again.replayed
    assert again.body == first.body


async def test_keys_of_accounts_and_modes_are_apart(api: Caller) -> None:
    platform = api.emulator.add_refund()
    live = api.emulator.add_refund(livemode=True)
    connected = api.emulator.add_refund(account="acct_1")
    answers = [
        await api.cancel(platform, "k"),
        await api.cancel(live, "k", key=LIVE_KEY),
        await api.cancel(connected, "k", headers={"Stripe-Account": "acct_1"}),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200]


async def test_key_may_have_255_characters_and_no_more(
    api: Caller, refund_id: str
) -> None:
    long = await api.cancel(refund_id, "k" * 256)
    longest = await api.cancel(refund_id, "k" * 255)
    assert long.status == 400
    assert "255" in long.error["message"]
    assert longest.status == 200


async def test_key_that_is_no_ascii_works_and_is_not_sent_back(
    api: Caller, refund_id: str
) -> None:
    await api.cancel(refund_id, "schlüssel")
    again = await api.cancel(refund_id, "schlüssel")
    assert again.replayed
    assert "Idempotency-Key" not in again.headers


@pytest.mark.parametrize(
    ("status", "fault", "data"),
    [
        *((400, "ok", data) for data in ("bogus=1", "expand=charge", "expand[]=bogus")),
        *((int(fault[-3:]), fault, "") for fault in EARLY),
    ],
)
async def test_answer_from_before_the_execution_is_not_saved(
    status: int, fault: str, data: str, api: Caller
) -> None:
    refund_id = api.emulator.add_refund()
    api.emulator.faults.script(fault)
    refused = await api.cancel(refund_id, "k", data=data)
    right = await api.cancel(refund_id, "k")
    assert (refused.status, right.status) == (status, 200)
    assert refused.headers.get("Stripe-Should-Retry") != "false"
    assert not refused.replayed
    assert not right.replayed


async def test_idempotency_key_of_a_get_does_nothing(
    api: Caller, refund_id: str
) -> None:
    headers = {"Idempotency-Key": "k"}
    before = await api.get(f"/{refund_id}", headers=headers)
    canceled = await api.cancel(refund_id, "k")
    after = await api.get(f"/{refund_id}", headers=headers)
    assert before.json["status"] == "requires_action"
    assert canceled.status == 200
    assert after.json["status"] == "canceled"
    assert not after.replayed
    assert "Idempotency-Key" not in after.headers


async def test_body_that_is_no_form_is_400(api: Caller, refund_id: str) -> None:
    as_json = {"Content-Type": "application/json"}
    zipped = {"Content-Encoding": "gzip"}
    answers = [
        await api.cancel(refund_id, data='{"expand": []}', headers=as_json),
        await api.cancel(refund_id, data=b"expand[]=%FF"),
        await api.cancel(refund_id, data=b"expand[]=\xff"),
        await api.cancel(refund_id, data=b"\x1f\x8b", headers=zipped),
    ]
    large = await api.cancel(refund_id, data=b"expand[]=" + b"x" * 70_000)
    huge = await api.cancel(refund_id, data=io.BytesIO(b"x" * 2**21))
    empty = await api.cancel(refund_id, headers=as_json)
    assert {answer.status for answer in answers} == {400}
    assert "application/x-www-form-urlencoded" in answers[0].error["message"]
    assert large.status == huge.status == 413
    assert empty.status == 200
