from __future__ import annotations

import asyncio
import base64
import re
from collections import deque

import pytest

from async_refunds.emulator import Emulator, ReceivedRequest
from tests.support.stripe_caller import TEST_KEY, Caller, serving


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize("key", ["sk_test_1", "rk_test_a_B9", "sk_live_1", "rk_live_x"])
async def test_any_key_sees_the_refunds_of_its_mode_alone(
    key: str, api: Caller
) -> None:
    ids = {
        livemode: api.emulator.add_refund(livemode=livemode)
        for livemode in (True, False)
    }
    page = (await api.get("?expand[]=data.charge", key=key)).json
    livemode = "live" in key
    assert [refund["id"] for refund in page["data"]] == [ids[livemode]]
    assert page["data"][0]["charge"]["livemode"] is livemode


async def test_key_may_be_the_user_name_of_basic_auth(
    api: Caller, refund_id: str
) -> None:
    for text in (f"{TEST_KEY}:", TEST_KEY):
        answer = await api.get(f"/{refund_id}", key=None, headers=basic(text))
        assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Digest {TEST_KEY}"},
        {"Authorization": TEST_KEY},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic /w=="},
        basic(":password"),
    ],
)
async def test_request_without_a_key_is_401(
    headers: dict[str, str], api: Caller
) -> None:
    answer = await api.get("", key=None, headers=headers)
    assert answer.status == 401
    assert answer.error["type"] == "invalid_request_error"
    assert "You did not provide an API key" in answer.error["message"]
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Stripe"'
    assert "request_log_url" not in answer.error


@pytest.mark.parametrize(
    ("key", "code", "message"),
    [
        ("sk_prod_0123456789", None, "Invalid API Key provided: **************6789"),
        ("sk_test_01234 6789", None, "Invalid API Key provided: sk_test_******6789"),
        ("sk_test_!bc", None, "Invalid API Key provided: sk_test_***"),
        ("abc", None, "Invalid API Key provided: ***"),
        ("schlüssel", None, "Invalid API Key provided: *****ssel"),
        ("sk_org_!bcdef", None, "Invalid API Key provided: sk_org_**cdef"),
        ("rk_org_1", None, "Invalid API Key provided: ****rg_1"),
        ("sk_test_old", "api_key_expired", "Expired API Key provided: sk_test_***"),
        ("pk_test_123", "secret_key_required", "with a publishable API key"),
    ],
)
async def test_bad_key_is_401_and_masked(
    key: str, code: str | None, message: str, api: Caller
) -> None:
    api.emulator.expire_key("sk_test_old")
    answer = await api.get("", key=key)
    assert answer.refusal == (401, code)
    assert message in answer.error["message"]
    assert (await api.get("", key="sk_test_older")).status == 200


async def test_restricted_key_is_403_where_it_has_no_permission(api: Caller) -> None:
    refund_id = api.emulator.add_refund(account="acct_1")
    connected = {"Stripe-Account": "acct_1"}
    api.emulator.restrict_key(TEST_KEY, allow=["retrieve"])
    retrieved = await api.get(f"/{refund_id}", headers=connected)
    canceled = await api.cancel(refund_id, headers=connected)
    listed = await api.get("")
    elsewhere = await api.get("/a/b")
    assert retrieved.status == 200
    assert canceled.status == listed.status == 403
    assert canceled.error["type"] == "invalid_request_error"
    assert "on account 'acct_1'" in canceled.error["message"]
    assert "rak_charge_write" in canceled.error["message"]
    assert "rak_charge_read" in listed.error["message"]
    assert TEST_KEY not in canceled.error["message"]
    assert "code" not in canceled.error
    assert elsewhere.status == 404


async def test_refunds_of_a_connected_account_are_apart(api: Caller) -> None:
    platform = api.emulator.add_refund()
    connected = api.emulator.add_refund(account="acct_1")
    headers = {"Stripe-Account": "acct_1"}
    assert (await api.get(f"/{connected}")).status == 404
    assert (await api.get(f"/{platform}", headers=headers)).status == 404
    page = await api.get("", headers=headers)
    canceled = await api.cancel(connected, headers=headers)
    assert [refund["id"] for refund in page.json["data"]] == [connected]
    assert page.headers["Stripe-Account"] == "acct_1"
    assert canceled.json["status"] == "canceled"
    assert api.emulator.requests[-1].stripe_account == "acct_1"


async def test_account_of_a_context_is_its_last_part(api: Caller) -> None:
    refund_id = api.emulator.add_refund(account="acct_1")
    for context in ("acct_1", "acct_0/acct_1"):
        headers = {"Stripe-Context": context}
        assert (await api.get(f"/{refund_id}", headers=headers)).status == 200


@pytest.mark.parametrize("key", ["sk_org_1", "sk_org_test_1", "sk_org_live_1"])
async def test_key_of_an_organization_acts_for_the_account_of_its_context(
    key: str, api: Caller
) -> None:
    livemode = "live" in key
    platform = api.emulator.add_refund(livemode=livemode)
    refund_id = api.emulator.add_refund(account="acct_1", livemode=livemode)
    version = {"Stripe-Version": "2026-10-28.endive"}
    for context, found in (
        ("acct_1", refund_id),
        ("acct_1Platform00000000/acct_1", refund_id),
        ("acct_1Platform00000000", platform),
    ):
        headers = {"Stripe-Context": context, **version}
        assert (await api.get(f"/{found}", key=key, headers=headers)).status == 200
    unknown = {"Stripe-Context": "acct_2", **version}
    assert (await api.get("", key=key, headers=unknown)).status == 403
    refused = [
        await api.get("", key=key, headers=version),
        await api.get("", key=key, headers={"Stripe-Account": "acct_1", **version}),
        await api.get("", key=key, headers={"Stripe-Context": "acct_1"}),
    ]
    assert [answer.refusal for answer in refused] == [(400, None)] * 3
    assert refused[0].error["message"] == refused[1].error["message"]
    assert refused[0].error["message"] == (
        "Please include the Stripe-Context header with your target account when using"
        " an Organization API key."
    )
    assert "Stripe-Version" in refused[2].error["message"]


async def test_platform_may_name_itself(api: Caller, refund_id: str) -> None:
    headers = {"Stripe-Account": "acct_1Platform00000000"}
    assert (await api.get(f"/{refund_id}", headers=headers)).status == 200


async def test_unknown_account_is_403_until_it_is_added(api: Caller) -> None:
    headers = {"Stripe-Account": "acct_new"}
    unknown = await api.get("", headers=headers)
    api.emulator.add_account("acct_new")
    known = await api.get("", headers=headers)
    assert unknown.refusal == (403, "account_invalid")
    assert "'acct_new'" in unknown.error["message"]
    assert TEST_KEY not in unknown.error["message"]
    assert known.json["data"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/charges"),
        ("POST", "/v1/refunds"),
        ("POST", "/v1/refunds/re_1"),
        ("GET", "/v1/refunds/re_1/cancel"),
        ("POST", "/v1/refunds/re_1/cancel/"),
        ("POST", "/v1/refunds//cancel"),
        ("DELETE", "/v1/refunds/re_1"),
        ("GET", "/v1/refunds/"),
        ("GET", "/"),
        ("GET", "/v2/refunds"),
    ],
)
async def test_unknown_url_is_404_in_stripes_words(
    method: str, path: str, api: Caller
) -> None:
    answer = await api.send(method, path)
    assert answer.status == 404
    assert answer.error["type"] == "invalid_request_error"
    message: str = answer.error["message"]
    assert message.startswith(f"Unrecognized request URL ({method}: {path}).")
    assert ("remove the trailing slash" in message) == path.endswith("/")


async def test_unknown_url_of_the_api_is_401_without_a_key(api: Caller) -> None:
    assert (await api.send("GET", "/v1/charges", key=None)).status == 401
    assert (await api.send("GET", "/charges", key=None)).status == 404


@pytest.mark.parametrize(
    ("given", "status", "shown"),
    [
        ("2026-10-28.endive", 200, "2026-10-28.endive"),
        ("2022-11-15", 200, "2022-11-15"),
        ("2025-01-01.a; b=v1", 200, "2025-01-01.a; b=v1"),
        ("", 200, "2026-10-28.endive"),
        ("newest", 400, "2026-10-28.endive"),
    ],
)
async def test_version_is_sent_back(
    given: str, status: int, shown: str, api: Caller
) -> None:
    answer = await api.get("", headers={"Stripe-Version": given})
    assert (answer.status, answer.headers["Stripe-Version"]) == (status, shown)
    if status == 400:
        assert answer.error["message"] == "Invalid Stripe API version: newest"
    assert (await api.get("")).headers["Stripe-Version"] == "2026-10-28.endive"


async def test_log_has_each_request_but_no_key() -> None:
    emulator = Emulator(clock=lambda: 5.0)
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        answer = await api.cancel(refund_id, "k", expand=["charge"])
        await api.get("?limit=3", key="bad")
        await api.send("GET", "/nowhere")
    canceled, listed, other = emulator.requests
    assert canceled == ReceivedRequest(
        method="POST",
        path=f"/v1/refunds/{refund_id}/cancel",
        endpoint="cancel",
        params=(("expand[]", "charge"),),
        idempotency_key="k",
        stripe_account=None,
        request_id=answer.headers["Request-Id"],
        received_at=5.0,
        status=200,
    )
    assert (listed.endpoint, listed.status) == ("list", 401)
    assert listed.params == (("limit", "3"),)
    assert (other.endpoint, other.status) == ("other", 404)
    assert TEST_KEY not in repr(emulator.requests)


async def test_log_forgets_the_oldest_requests(api: Caller) -> None:
    log = api.emulator.requests
    assert log.maxlen == 1000
    await api.get("?limit=1")
    log.extend([log[0]] * log.maxlen)
    assert len(log) == log.maxlen


async def test_log_may_be_replaced_by_one_that_forgets_nothing(api: Caller) -> None:
    api.emulator.requests = log = deque[ReceivedRequest]()
    await api.get("")
    assert [record.endpoint for record in log] == ["list"]
    assert api.emulator.requests is log


async def test_each_request_is_reported_once_it_has_ended(
    api: Caller, refund_id: str
) -> None:
    lines: list[str] = []
    emulator = api.emulator
    emulator.on_request = lambda record: lines.append(record.line())
    path = f"/v1/refunds/{refund_id}/cancel"
    emulator.faults.script("ok", "ok", "slow", "stall", "reset_before")
    await api.cancel(refund_id, "k")
    await api.cancel(refund_id, "schlüssel")
    await api.get("?limit=1")
    stalled = asyncio.create_task(api.cancel(refund_id, timeout=9))
    await asyncio.sleep(1)
    assert emulator.requests[-1].line() == f"POST {path} - fault=stall"
    for error, waiting in ((TimeoutError, stalled), (OSError, api.cancel(refund_id))):
        with pytest.raises(error):
            await waiting
        await asyncio.sleep(0.1)
    await api.cancel(refund_id, "k")
    await api.send("GET", "/_emulator/books", key=None, checked=False)
    assert emulator.on_request is not None
    emulator.on_request = None
    await api.get("")
    lines.append(emulator.requests[-1].line())
    shown = [re.sub(r"[0-9.]+ ms", "1 ms", line) for line in lines]
    assert shown == [
        f"POST {path} 200 1 ms key=k",
        f"POST {path} 400 1 ms key=schl\\xfcssel",
        "GET /v1/refunds 200 1 ms fault=slow",
        f"POST {path} - 1 ms fault=stall",
        f"POST {path} - 1 ms fault=reset_before",
        f"POST {path} 200 1 ms key=k replayed",
        "GET /v1/refunds 200 1 ms",
    ]
