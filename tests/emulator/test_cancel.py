from __future__ import annotations

import asyncio
import io

import pytest

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import LIVE_KEY, serving


async def test_canceled_refund_is_given_back_with_what_a_cancel_changes() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund(amount=700, currency="thb")
    before = emulator.refund(refund_id)
    async with serving(emulator) as api:
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
    status: str,
) -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund(status=status)
    async with serving(emulator) as api:
        answer = await api.cancel(refund_id)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert not {"code", "param", "doc_url"} & set(answer.error)
    assert "/v1/charges/" in answer.error["message"]
    assert not emulator.books.cancellations
    assert emulator.refund(refund_id)["status"] == status


async def test_second_cancel_is_refused_and_not_executed() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        first = await api.cancel(refund_id, idempotency_key="a")
        second = await api.cancel(refund_id, idempotency_key="b")
    assert (first.status, second.status) == (200, 400)
    assert emulator.books.cancellations == {refund_id: 1}


async def test_unknown_refund_is_404_resource_missing() -> None:
    async with serving(Emulator()) as api:
        canceled = await api.cancel("re_nobody")
        retrieved = await api.get("/re_nobody")
    assert canceled.status == retrieved.status == 404
    assert canceled.error["message"] == "No such refund: 're_nobody'"
    assert canceled.error["code"] == retrieved.error["code"] == "resource_missing"
    assert (canceled.error["param"], retrieved.error["param"]) == ("refund", "id")
    assert "resource-missing" in canceled.error["doc_url"]


async def test_refund_of_the_other_mode_is_404_and_says_so() -> None:
    emulator = Emulator()
    test, live = emulator.add_refund(), emulator.add_refund(livemode=True)
    async with serving(emulator) as api:
        assert (await api.get(f"/{live}", key=LIVE_KEY)).status == 200
        with_test_key = await api.cancel(live)
        with_live_key = await api.cancel(test, key=LIVE_KEY)
    assert with_test_key.status == with_live_key.status == 404
    assert "exists in live mode, but a test mode" in with_test_key.error["message"]
    assert "exists in test mode, but a live mode" in with_live_key.error["message"]
    assert "/test/logs/req_" in with_test_key.error["request_log_url"]
    assert "/test/" not in with_live_key.error["request_log_url"]
    assert not emulator.books.cancellations


async def test_same_key_replays_the_first_answer_and_executes_once() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        first = await api.cancel(refund_id, idempotency_key="k")
        again = await api.cancel(refund_id, idempotency_key="k")
    assert not first.replayed
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (again.status, again.body) == (first.status, first.body)
    assert first.headers["Original-Request"] == first.headers["Request-Id"]
    assert again.headers["Original-Request"] == first.headers["Request-Id"]
    assert again.headers["Request-Id"] != first.headers["Request-Id"]
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"] == "k"
    assert emulator.books.cancellations == {refund_id: 1}
    assert emulator.books.replays == 1
    assert [entry.replayed for entry in emulator.requests] == [False, True]


async def test_cancel_without_a_key_is_never_replayed() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        first = await api.cancel(refund_id)
        second = await api.cancel(refund_id, idempotency_key="")
    assert (first.status, second.status) == (200, 400)
    assert "Idempotency-Key" not in first.headers
    assert "Original-Request" not in first.headers


@pytest.mark.parametrize("status", ["succeeded", None])
async def test_refusal_of_a_cancel_is_saved_too(status: str | None) -> None:
    emulator = Emulator()
    refund_id = "re_later"
    if status is not None:
        emulator.add_refund(refund_id=refund_id, status=status)
    async with serving(emulator) as api:
        first = await api.cancel(refund_id, idempotency_key="k")
        if status is None:
            emulator.add_refund(refund_id=refund_id)
        emulator.set_status(refund_id, "requires_action")
        again = await api.cancel(refund_id, idempotency_key="k")
        fresh = await api.cancel(refund_id, idempotency_key="other")
    assert first.status == again.status == (404 if status is None else 400)
    assert again.replayed
    assert again.body == first.body
    assert fresh.status == 200


async def test_key_is_forgotten_after_24_hours() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        await api.cancel(refund_id, idempotency_key="k")
        emulator.clock.advance(24 * 3600 - 60)
        assert (await api.cancel(refund_id, idempotency_key="k")).replayed
        emulator.clock.advance(61)
        expired = await api.cancel(refund_id, idempotency_key="k")
    assert not expired.replayed
    assert expired.status == 400


async def test_same_key_with_other_parameters_is_an_idempotency_error() -> None:
    emulator = Emulator()
    refund_id, other_id = emulator.seed_refunds(2)
    async with serving(emulator) as api:
        await api.cancel(refund_id, idempotency_key="k")
        params = await api.cancel(refund_id, idempotency_key="k", expand=["charge"])
        path = await api.cancel(other_id, idempotency_key="k")
        replay = await api.cancel(refund_id, idempotency_key="k")
    assert params.status == path.status == 400
    assert params.error["type"] == path.error["type"] == "idempotency_error"
    assert "same parameters" in params.error["message"]
    assert f"'/v1/refunds/{refund_id}/cancel'" in path.error["message"]
    assert f"'/v1/refunds/{other_id}/cancel'" in path.error["message"]
    assert not params.replayed
    assert replay.replayed
    assert emulator.books.cancellations == {refund_id: 1}


async def test_both_ways_to_write_a_list_are_the_same_parameters() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        await api.cancel(refund_id, idempotency_key="k", data="expand[]=charge")
        again = await api.cancel(refund_id, idempotency_key="k", expand=["charge"])
    assert again.replayed


async def test_key_in_flight_is_409_until_the_answer_is_there() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    emulator.faults.script("slow")
    async with serving(emulator) as api:
        slow = asyncio.create_task(api.cancel(refund_id, idempotency_key="k"))
        await asyncio.sleep(0.1)
        meanwhile = await api.cancel(refund_id, idempotency_key="k")
        first = await slow
        again = await api.cancel(refund_id, idempotency_key="k")
    assert meanwhile.status == 409
    assert meanwhile.error["type"] == "invalid_request_error"
    assert meanwhile.error["code"] == "idempotency_key_in_use"
    assert first.status == 200
    assert again.replayed
    assert again.body == first.body


async def test_keys_of_accounts_and_modes_are_apart() -> None:
    emulator = Emulator()
    platform = emulator.add_refund()
    live = emulator.add_refund(livemode=True)
    connected = emulator.add_refund(account="acct_1")
    async with serving(emulator) as api:
        answers = [
            await api.cancel(platform, idempotency_key="k"),
            await api.cancel(live, idempotency_key="k", key=LIVE_KEY),
            await api.cancel(
                connected, idempotency_key="k", headers={"Stripe-Account": "acct_1"}
            ),
        ]
    assert [answer.status for answer in answers] == [200, 200, 200]


async def test_key_may_have_255_characters_and_no_more() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        long = await api.cancel(refund_id, idempotency_key="k" * 256)
        longest = await api.cancel(refund_id, idempotency_key="k" * 255)
    assert long.status == 400
    assert "255" in long.error["message"]
    assert longest.status == 200


async def test_key_that_is_no_ascii_works_and_is_not_sent_back() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        await api.cancel(refund_id, idempotency_key="schlüssel")
        again = await api.cancel(refund_id, idempotency_key="schlüssel")
    assert again.replayed
    assert "Idempotency-Key" not in again.headers


@pytest.mark.parametrize("query", ["bogus=1", "expand=charge", "expand[]=bogus"])
async def test_parameter_error_is_not_saved_under_the_key(query: str) -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        wrong = await api.cancel(refund_id, idempotency_key="k", data=query)
        right = await api.cancel(refund_id, idempotency_key="k")
    assert wrong.status == 400
    assert not wrong.replayed
    assert right.status == 200
    assert not right.replayed


@pytest.mark.parametrize("fault", ["rate_429", "lock_429", "in_use_409"])
async def test_answer_from_before_the_execution_is_not_saved(fault: str) -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    emulator.faults.script(fault)
    async with serving(emulator) as api:
        refused = await api.cancel(refund_id, idempotency_key="k")
        right = await api.cancel(refund_id, idempotency_key="k")
    assert refused.status in {409, 429}
    assert right.status == 200
    assert not right.replayed


async def test_idempotency_key_of_a_get_does_nothing() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    headers = {"Idempotency-Key": "k"}
    async with serving(emulator) as api:
        before = await api.get(f"/{refund_id}", headers=headers)
        canceled = await api.cancel(refund_id, idempotency_key="k")
        after = await api.get(f"/{refund_id}", headers=headers)
    assert before.json["status"] == "requires_action"
    assert canceled.status == 200
    assert after.json["status"] == "canceled"
    assert not after.replayed
    assert "Idempotency-Key" not in after.headers


async def test_body_that_is_no_form_is_400() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    as_json = {"Content-Type": "application/json"}
    zipped = {"Content-Encoding": "gzip"}
    async with serving(emulator) as api:
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


async def test_life_of_a_refund_can_be_moved_by_hand() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        emulator.set_status(refund_id, "pending")
        pending = (await api.get(f"/{refund_id}")).json
        emulator.set_status(refund_id, "failed")
        failed = (await api.get(f"/{refund_id}")).json
        emulator.set_status(refund_id, "requires_action")
        returned = (await api.get(f"/{refund_id}")).json
    assert pending["pending_reason"] == "processing"
    assert "next_action" not in pending
    assert failed["failure_balance_transaction"].startswith("txn_")
    assert returned["next_action"]["type"] == "display_details"
    assert "failure_reason" not in returned
    assert not emulator.books.cancellations
