"""A bad argument is refused with a sentence that says what to give instead."""

from __future__ import annotations

from typing import Any

import pytest

from async_refunds import RefundsClient
from async_refunds.protocol.requests import cancel_request
from tests.support.scripted import RE


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ch_3Mmlxz", "is the id of a charge"),
        ("pi_3Mmlxz", "is the id of a payment intent"),
        ("", "re_ or pyr_"),
        (" re_1", "re_ or pyr_"),
        ("re_1/../x", "re_ or pyr_"),
        ("re_" + "a" * 300, r"\.\.\. is not a refund id"),
    ],
)
async def test_refund_id(value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await RefundsClient("sk_test_x").cancel(value)


WORDS = {
    "idempotency_key": "idempotency_key must be",
    "stripe_account": "stripe_account must be",
    "expand": "expand must be",
    "timeout": "timeout must be",
}


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("idempotency_key", "", ValueError),
        ("idempotency_key", 7, TypeError),
        ("stripe_account", "", ValueError),
        ("stripe_account", 7, TypeError),
        ("expand", "charge", TypeError),
        ("expand", [7], TypeError),
        ("expand", ["charge&x"], ValueError),
        ("timeout", 0, ValueError),
        ("timeout", -1.0, ValueError),
        ("timeout", float("inf"), ValueError),
        ("timeout", "3", TypeError),
        ("timeout", True, TypeError),
        ("timeout", 10**400, ValueError),
        ("timeout", 2e9, ValueError),
    ],
)
async def test_argument_of_cancel(
    option: str, value: object, error: type[Exception]
) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(error, match=WORDS[option]):
        await RefundsClient("sk_test_x").cancel(RE, **options)


async def test_refund_id_that_is_no_text() -> None:
    wrong: Any = 7
    with pytest.raises(TypeError, match="refund_id must be a str, not int"):
        await RefundsClient("sk_test_x").cancel(wrong)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "is empty"),
        ("sk_test_x\n", "white space"),
        ("pk_test_x", "publishable"),
        ("whsec_x", "must be a secret key"),
        ("sk_test_x y", "must be a secret key"),
        ("sk_test_é", "must be a secret key"),
    ],
)
def test_api_key(key: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RefundsClient(key)


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("sk_test_x", "test"),
        ("rk_test_x", "test"),
        ("sk_live_x", "live"),
        ("rk_live_x", "live"),
        ("sk_org_x", "live"),
        ("sk_live_a_test_b", "live"),
    ],
)
def test_key_that_is_not_plainly_a_test_key_counts_as_live(key: str, mode: str) -> None:
    assert repr(RefundsClient(key)) == f"<RefundsClient {mode} https://api.stripe.com>"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.stripe.com/", "https://api.stripe.com"),
        ("HTTPS://API.Stripe.com", "https://api.stripe.com"),
        ("https://10.0.0.7:8443", "https://10.0.0.7:8443"),
        ("http://localhost:12111", "http://localhost:12111"),
        ("http://127.8.8.8", "http://127.8.8.8"),
        ("http://[0:0::1]:1", "http://[::1]:1"),
    ],
)
def test_base_url_is_put_together_anew(url: str, origin: str) -> None:
    assert repr(RefundsClient("sk_test_x", base_url=url)).endswith(f" {origin}>")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.stripe.com",
        "http://0.0.0.0:1",
        "http://localhost.example",
        "ftp://127.0.0.1",
        "https://",
        "https://user:pass@api.stripe.com",
        "https://api.stripe.com/v1",
        "https://api.stripe.com?x=y",
        "https://api.stripe.com#x",
        "https://api stripe.com",
        "https://[::1",
        "https://host:port",
        "http://[::1%25eth0]",
        "api.stripe.com",
        "",
    ],
)
def test_base_url_that_is_none_or_would_show_the_key(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        RefundsClient("sk_live_x", base_url=url)


def test_test_key_may_go_over_plain_http() -> None:
    client = RefundsClient("sk_test_x", base_url="http://emulator:12111")
    assert client.base_url == "http://emulator:12111"


KEYS = [
    "sk_live_51Hx",
    "rk_test_51Hx",
    "whsec_51Hx",
    "re_sk_live_51Hx",
    "re_whsec_51Hx",
]


@pytest.mark.parametrize("key", KEYS)
async def test_key_given_for_something_else_is_refused_and_not_shown(key: str) -> None:
    refunds = RefundsClient("sk_test_x")
    for call in (
        refunds.retrieve(key),
        refunds.retrieve(RE, stripe_account=key),
        refunds.retrieve(RE, expand=[key]),
        refunds.cancel(RE, idempotency_key=key),
    ):
        with pytest.raises(ValueError, match="contains an API key") as caught:
            await call
        assert "51Hx" not in str(caught.value)
    for name in ("charge", "payment_intent", "starting_after"):
        with pytest.raises(ValueError, match="contains an API key"):
            refunds.list(**{name: key})  # type: ignore[arg-type]  # any of them


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("base_url", 7, TypeError),
        ("stripe_version", "2026\r\nX: y", ValueError),
        ("stripe_version", 2026, TypeError),
        ("stripe_account", "7", ValueError),
        ("stripe_context", "a//b", ValueError),
        ("stripe_context", 7, TypeError),
        ("app_info", "shop\n", ValueError),
        ("app_info", 7, TypeError),
        ("attempt_timeout", 0, ValueError),
    ],
)
def test_option_of_the_client(
    option: str, value: object, error: type[Exception]
) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(error):
        RefundsClient("sk_test_x", **options)


@pytest.mark.parametrize(
    "key",
    ["jane@canary.example", "order-7/jane%40canary.example", "jane(at)canary.me"],
)
def test_idempotency_key_with_an_address_is_refused_and_not_shown(key: str) -> None:
    """It is logged, and stands in errors, since it is needed to ask again."""
    with pytest.raises(ValueError, match="contains an e-mail address") as caught:
        cancel_request(RE, idempotency_key=key)
    assert "canary" not in str(caught.value)


KEY_LIKE = ["task_42", "risk_test_x", "desk_live_1", "sk_42"]


@pytest.mark.parametrize("key", [*KEY_LIKE, "@", "order@7", "7@shop", "a@", "x@.y"])
def test_what_only_looks_like_a_key_or_an_address_is_accepted(key: str) -> None:
    assert cancel_request(RE, idempotency_key=key).idempotency_key == key
