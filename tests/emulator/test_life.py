"""What Stripe, customers, banks and time do to a refund."""

from __future__ import annotations

import pytest

from async_refunds.emulator import Emulator, Limits
from tests.support.stripe_caller import LIVE_KEY, TEST_KEY, Answer, Caller, serving

NOW = 1_800_000_000.0
DAY = 24 * 3600


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def expire(
    api: Caller, refund_id: str, data: str = "", key: str = TEST_KEY
) -> Answer:
    path = f"/v1/test_helpers/refunds/{refund_id}/expire"
    return await api.send("POST", path, data=data, key=key, headers=FORM)


async def test_test_helper_expires_a_refund_that_waits(
    api: Caller, refund_id: str
) -> None:
    expired = await expire(api, refund_id, "expand[0]=charge")
    canceled = await api.cancel(refund_id)
    again = await expire(api, refund_id)
    assert expired.status == 200
    refund = expired.json
    assert (refund["id"], refund["status"]) == (refund_id, "failed")
    assert refund["failure_balance_transaction"].startswith("txn_")
    assert refund["failure_reason"] == "unknown"
    assert "next_action" not in refund
    assert refund["charge"]["object"] == "charge"
    assert canceled.status == 400
    assert again.status == 400
    assert again.error["type"] == "invalid_request_error"
    assert "status of failed" in again.error["message"]
    assert not api.emulator.books.cancellations
    assert api.emulator.books.requests == {"expire": 2, "cancel": 1}


async def test_test_helper_is_for_test_mode_and_its_own_parameters(api: Caller) -> None:
    emulator = api.emulator
    live = emulator.add_refund(livemode=True)
    test = emulator.add_refund()
    in_live = await expire(api, live, key=LIVE_KEY)
    unknown = await expire(api, test, "bogus=1")
    missing = await expire(api, "re_missing")
    elsewhere = await expire(api, f"{test}/now")
    read = await api.send("GET", f"/v1/test_helpers/refunds/{test}/expire")
    assert in_live.status == 400
    assert in_live.error["message"].startswith(
        "This endpoint is only available in testmode."
    )
    assert unknown.error["code"] == "parameter_unknown"
    assert missing.refusal == (404, "resource_missing")
    assert elsewhere.status == read.status == 404
    assert emulator.refund(test)["status"] == "requires_action"
    assert emulator.refund(live)["status"] == "requires_action"


async def test_test_helper_has_keys_limits_and_permissions_as_a_cancel_has() -> None:
    emulator = Emulator(limits=Limits(endpoint_rate=2), clock=lambda: NOW)
    refund_id = emulator.add_refund()
    emulator.restrict_key("rk_test_1", allow=["cancel"])
    headers = {"Idempotency-Key": "k"}
    path = f"/v1/test_helpers/refunds/{refund_id}/expire"
    async with serving(emulator) as api:
        forbidden = await api.send("POST", path, key="rk_test_1")
        first = await api.send("POST", path, headers=headers)
        replay = await api.send("POST", path, headers=headers)
        limited = await api.send("POST", path)
    assert forbidden.status == 403
    assert "rak_charge_write" in forbidden.error["message"]
    assert first.status == 200
    assert replay.replayed
    assert replay.body == first.body
    assert limited.status == 429


async def test_refund_fails_as_the_clock_passes_its_deadline() -> None:
    emulator = Emulator(clock=lambda: NOW)
    retrieved, listed, canceled, read_last, other = (
        emulator.add_refund() for _ in range(5)
    )
    emulator.set_status(other, "pending")
    async with serving(emulator) as api:
        emulator.clock.advance(45 * DAY - 1)
        refund = (await api.get(f"/{retrieved}")).json
        assert refund["status"] == "requires_action"
        deadline = refund["next_action"]["display_details"]["expires_at"]
        assert deadline == emulator.clock.time() + 1
        emulator.clock.advance(1)
        refund = (await api.get(f"/{retrieved}")).json
        page = (await api.get("?limit=100")).json
        answer = await api.cancel(canceled)
    assert refund["status"] == "failed"
    assert refund["failure_balance_transaction"].startswith("txn_")
    assert "next_action" not in refund
    by_id = {item["id"]: item["status"] for item in page["data"]}
    assert by_id[listed] == "failed"
    assert by_id[other] == "pending"
    assert answer.status == 400
    assert emulator.refund(read_last)["status"] == "failed"
    with pytest.raises(ValueError, match="that is failed cannot give_details"):
        emulator.give_details(read_last)


async def test_deadline_may_be_given() -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund(expires_at=int(NOW) + 60)
    emulator.clock.advance(59.5)
    assert emulator.refund(refund_id)["status"] == "requires_action"
    emulator.clock.advance(0.5)
    assert emulator.refund(refund_id)["status"] == "failed"


async def test_money_goes_out_and_comes_back() -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund(expires_at=int(NOW) + 60)
    async with serving(emulator) as api:
        emulator.give_details(refund_id)
        pending = (await api.get(f"/{refund_id}")).json
        emulator.clock.advance(10 * DAY)
        emulator.succeed(refund_id)
        succeeded = (await api.get(f"/{refund_id}")).json
        emulator.return_money(refund_id)
        returned = (await api.get(f"/{refund_id}")).json
        emulator.clock.advance(45 * DAY - 1)
        assert (await api.cancel(refund_id)).status == 200
    assert pending["status"] == "pending"
    assert pending["pending_reason"] == "processing"
    assert "next_action" not in pending
    assert succeeded["status"] == "succeeded"
    assert "pending_reason" not in succeeded
    assert returned["status"] == "requires_action"
    details = returned["next_action"]["display_details"]
    asked = NOW + 10 * DAY
    assert details["email_sent"]["email_sent_at"] == asked
    assert details["expires_at"] == asked + 45 * DAY


def test_step_from_a_wrong_state_is_refused_and_changes_nothing() -> None:
    emulator = Emulator()
    possible = {
        "give_details": {"requires_action"},
        "succeed": {"pending"},
        "return_money": {"pending", "succeeded"},
        "expire": {"requires_action"},
    }
    for step, allowed in possible.items():
        for status in ("requires_action", "pending", "succeeded", "failed", "canceled"):
            refund_id = emulator.add_refund(status=status)
            if status in allowed:
                getattr(emulator, step)(refund_id)
                assert emulator.refund(refund_id)["status"] != status
                continue
            with pytest.raises(ValueError, match=f"is {status} cannot {step}"):
                getattr(emulator, step)(refund_id)
            assert emulator.refund(refund_id)["status"] == status
    with pytest.raises(KeyError):
        emulator.succeed("re_missing")


def test_money_comes_back_only_to_a_customer_who_can_be_asked() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund(status="succeeded", instructions_email=None)
    with pytest.raises(ValueError, match="instructions_email"):
        emulator.return_money(refund_id)
    assert emulator.refund(refund_id)["status"] == "succeeded"


def test_refund_added_as_waiting_still_has_time_whenever_it_was_made() -> None:
    emulator = Emulator(clock=lambda: NOW)
    old = emulator.add_refund(created=int(NOW) - 60 * DAY)
    recent = emulator.add_refund(created=int(NOW) - 44 * DAY)
    assert emulator.refund(old)["created"] == NOW - 60 * DAY
    for refund_id in (old, recent):
        assert emulator.refund(refund_id)["status"] == "requires_action"
    emulator.clock.advance(DAY)
    assert emulator.refund(recent)["status"] == "failed"
    emulator.clock.advance(44 * DAY - 1)
    assert emulator.refund(old)["status"] == "requires_action"
    emulator.clock.advance(1)
    assert emulator.refund(old)["status"] == "failed"


def test_each_failure_has_a_transaction_of_its_own() -> None:
    emulator = Emulator(clock=lambda: NOW)
    refund_id = emulator.add_refund()
    emulator.expire(refund_id)
    first = emulator.refund(refund_id)["failure_balance_transaction"]
    emulator.clock.advance(DAY)
    emulator.set_status(refund_id, "requires_action")
    assert "failure_balance_transaction" not in emulator.refund(refund_id)
    emulator.expire(refund_id)
    assert emulator.refund(refund_id)["failure_balance_transaction"] != first
