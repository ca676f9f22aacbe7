from __future__ import annotations

import base64

import pytest

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import LIVE_KEY, TEST_KEY, serving


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize("key", ["sk_test_1", "rk_test_a_B9", TEST_KEY])
async def test_any_test_key_sees_the_test_refunds(key: str) -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        assert (await api.get(f"/{refund_id}", key=key)).status == 200


async def test_any_live_key_sees_the_live_refunds_alone() -> None:
    emulator = Emulator()
    emulator.add_refund()
    live = emulator.add_refund(livemode=True)
    async with serving(emulator) as api:
        for key in (LIVE_KEY, "rk_live_x"):
            page = (await api.get("?expand[]=data.charge", key=key)).json
            assert [refund["id"] for refund in page["data"]] == [live]
            assert page["data"][0]["charge"]["livemode"] is True


async def test_key_may_be_the_user_name_of_basic_auth() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
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
async def test_request_without_a_key_is_401(headers: dict[str, str]) -> None:
    async with serving(Emulator()) as api:
        answer = await api.get("", key=None, headers=headers)
    assert answer.status == 401
    assert answer.error["type"] == "invalid_request_error"
    assert "You did not provide an API key" in answer.error["message"]
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Stripe"'
    assert "request_log_url" not in answer.error


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("sk_prod_0123456789", "**************6789"),
        ("sk_test_01234 6789", "sk_test_******6789"),
        ("sk_test_!bc", "sk_test_***"),
        ("abc", "***"),
        ("schlüssel", "*****ssel"),
    ],
)
async def test_invalid_key_is_401_and_masked(key: str, shown: str) -> None:
    async with serving(Emulator()) as api:
        answer = await api.get("", key=key)
    assert answer.status == 401
    assert answer.error["message"] == f"Invalid API Key provided: {shown}"


async def test_publishable_key_is_told_what_to_use() -> None:
    async with serving(Emulator()) as api:
        answer = await api.get("", key="pk_test_123")
    assert answer.status == 401
    assert answer.error["code"] == "secret_key_required"


async def test_expired_key_is_401_with_its_code() -> None:
    emulator = Emulator()
    emulator.expire_key(TEST_KEY)
    async with serving(emulator) as api:
        answer = await api.get("")
        other = await api.get("", key=TEST_KEY + "2")
    assert answer.status == 401
    assert answer.error["code"] == "api_key_expired"
    assert answer.error["message"] == (
        "Expired API Key provided: sk_test_******ator"  # of sk_test_51Emulator
    )
    assert other.status == 200


async def test_restricted_key_is_403_where_it_has_no_permission() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund(account="acct_1")
    connected = {"Stripe-Account": "acct_1"}
    emulator.restrict_key(TEST_KEY, allow=["retrieve"])
    async with serving(emulator) as api:
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


async def test_refunds_of_a_connected_account_are_apart() -> None:
    emulator = Emulator()
    platform = emulator.add_refund()
    connected = emulator.add_refund(account="acct_1")
    headers = {"Stripe-Account": "acct_1"}
    async with serving(emulator) as api:
        assert (await api.get(f"/{connected}")).status == 404
        assert (await api.get(f"/{platform}", headers=headers)).status == 404
        page = await api.get("", headers=headers)
        canceled = await api.cancel(connected, headers=headers)
    assert [refund["id"] for refund in page.json["data"]] == [connected]
    assert page.headers["Stripe-Account"] == "acct_1"
    assert canceled.json["status"] == "canceled"
    assert emulator.requests[-1].stripe_account == "acct_1"


async def test_account_of_a_context_is_its_last_part() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund(account="acct_1")
    async with serving(emulator) as api:
        for context in ("acct_1", "acct_0/acct_1"):
            headers = {"Stripe-Context": context}
            assert (await api.get(f"/{refund_id}", headers=headers)).status == 200


async def test_platform_may_name_itself() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    headers = {"Stripe-Account": "acct_1Platform00000000"}
    async with serving(emulator) as api:
        assert (await api.get(f"/{refund_id}", headers=headers)).status == 200


async def test_unknown_account_is_403_until_it_is_added() -> None:
    emulator = Emulator()
    headers = {"Stripe-Account": "acct_new"}
    async with serving(emulator) as api:
        unknown = await api.get("", headers=headers)
        emulator.add_account("acct_new")
        known = await api.get("", headers=headers)
    assert unknown.status == 403
    assert unknown.error["code"] == "account_invalid"
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
async def test_unknown_url_is_404_in_stripes_words(method: str, path: str) -> None:
    async with serving(Emulator()) as api:
        answer = await api.send(method, path)
    assert answer.status == 404
    assert answer.error["type"] == "invalid_request_error"
    message: str = answer.error["message"]
    assert message.startswith(f"Unrecognized request URL ({method}: {path}).")
    assert ("remove the trailing slash" in message) == path.endswith("/")


async def test_unknown_url_of_the_api_tells_nothing_without_a_key() -> None:
    async with serving(Emulator()) as api:
        assert (await api.send("GET", "/v1/charges", key=None)).status == 401
        assert (await api.send("GET", "/charges", key=None)).status == 404


async def test_version_is_sent_back() -> None:
    async with serving(Emulator()) as api:
        for version in ("2026-10-28.endive", "2022-11-15", "2025-01-01.a; b=v1"):
            answer = await api.get("", headers={"Stripe-Version": version})
            assert answer.status == 200
            assert answer.headers["Stripe-Version"] == version
        assert (await api.get("")).headers["Stripe-Version"] == "2026-10-28.endive"


async def test_version_that_is_none_is_400() -> None:
    async with serving(Emulator()) as api:
        answer = await api.get("", headers={"Stripe-Version": "newest"})
    assert answer.status == 400
    assert answer.error["message"] == "Invalid Stripe API version: newest"
    assert answer.headers["Stripe-Version"] == "2026-10-28.endive"


async def test_log_tells_each_request_but_no_key() -> None:
    emulator = Emulator(clock=lambda: 5.0)
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        answer = await api.cancel(refund_id, idempotency_key="k", expand=["charge"])
        await api.get("?limit=3", key="bad")
        await api.send("GET", "/nowhere")
    canceled, listed, other = emulator.requests
    assert (canceled.method, canceled.path) == (
        "POST",
        f"/v1/refunds/{refund_id}/cancel",
    )
    assert canceled.endpoint == "cancel"
    assert canceled.params == (("expand[]", "charge"),)
    assert canceled.idempotency_key == "k"
    assert canceled.request_id == answer.headers["Request-Id"]
    assert canceled.status == 200
    assert canceled.fault is None
    assert canceled.received_at == 5.0
    assert (listed.endpoint, listed.params, listed.status) == (
        "list",
        (("limit", "3"),),
        401,
    )
    assert (other.endpoint, other.status) == ("other", 404)
    assert TEST_KEY not in repr(emulator.requests)


async def test_log_forgets_the_oldest_requests() -> None:
    emulator = Emulator()
    assert emulator.requests.maxlen is not None
    async with serving(emulator) as api:
        await api.get("?limit=1")
        emulator.requests.extend([emulator.requests[0]] * emulator.requests.maxlen)
    assert len(emulator.requests) == emulator.requests.maxlen
