"""Whatever comes in or back, only a request to the one path or our own errors."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from async_refunds import (
    AuthenticationError,
    OutcomeUnknownError,
    RefundNotCancelableError,
    RefundsClient,
    RefundsError,
)
from async_refunds.protocol import error_mapping, requests
from async_refunds.protocol.classification import Outcome, classify
from async_refunds.protocol.outcome import conclude
from async_refunds.protocol.redaction import contains_address, contains_key
from async_refunds.protocol.requests import (
    Cause,
    Reply,
    Request,
    Response,
    TransportFailure,
)
from tests.support.scripted import RE, error_json, refund_json

CANCEL = requests.cancel_request(RE, idempotency_key="key")
RETRIEVE = requests.retrieve_request(RE)
LIST = requests.list_request()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
bodies = (
    st.binary()
    | json_values.map(lambda value: repr(value).encode())
    | st.sampled_from(
        [
            refund_json(),
            refund_json("pending"),
            refund_json(id=7),
            refund_json(metadata={"a": 1}),
            error_json(),
            error_json(code="resource_missing"),
            b'{"error": "no object"}',
            b'{"error": {"message": 7, "type": null}}',
            b"[" * 5000,
            b'{"data": [], "has_more": true}',
            b'{"data": [' + refund_json() + b'], "has_more": false}',
        ]
    )
)
headers = st.dictionaries(
    st.sampled_from(
        [
            "Request-Id",
            "Idempotent-Replayed",
            "Stripe-Should-Retry",
            "Content-Type",
            "Idempotency-Key",
            "Retry-After",
        ]
    ),
    st.text() | st.sampled_from(["true", "false", "req_1", "key"]),
).map(CIMultiDict)
responses = st.tuples(st.integers(-1, 1000), headers, bodies).map(
    lambda parts: Response(*parts)
)
failures = st.tuples(st.sampled_from(Cause), st.text(), st.booleans()).map(
    lambda parts: TransportFailure(parts[0], parts[1], sent=parts[2])
)
replies: st.SearchStrategy[Reply] = responses | failures


def errors_of(request: Request[Any], reply: Reply) -> list[RefundsError]:
    last = classify(request, reply)
    errors = [error_mapping.error_for(request, last, ())]
    if request.idempotency_key is not None and last.value is None:
        for maybe_sent in (True, False):
            found = conclude(request, last, None, maybe_sent=maybe_sent, attempts=())
            assert found.error is not None
            errors.append(found.error)
    return errors


@given(replies)
def test_any_reply_is_a_refund_or_one_of_our_errors(reply: Reply) -> None:
    requests: tuple[Request[Any], ...] = (CANCEL, RETRIEVE, LIST)
    for request in requests:
        advice = classify(request, reply)
        assert (advice.value is not None) == (advice.outcome is Outcome.DONE)
        assert not (advice.retry and advice.outcome is Outcome.DONE)
        for error in errors_of(request, reply):
            assert isinstance(error, RefundsError)
            copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
            assert str(copied) == str(error)
            assert vars(copied) == vars(error)


@given(replies)
def test_cancel_is_done_only_by_this_refund_canceled(reply: Reply) -> None:
    advice = classify(CANCEL, reply)
    if advice.value is not None:
        assert advice.value.id == RE
        assert advice.value.status == "canceled"
        assert isinstance(reply, Response)
        assert 200 <= reply.status < 300


@given(replies)
def test_only_what_was_never_sent_or_was_refused_counts_as_a_no(reply: Reply) -> None:
    outcome = classify(CANCEL, reply).outcome
    if outcome is Outcome.NOT_SENT:
        assert isinstance(reply, TransportFailure)
        assert not reply.sent
    if outcome is Outcome.REFUSED:
        assert isinstance(reply, Response)
        assert 300 <= reply.status < 500
        assert reply.status not in {408, 409, 424}
        assert b'"error"' in reply.body
        assert reply.headers["Request-Id"].startswith("req_")
    last = classify(CANCEL, reply)
    if last.value is None:
        unknown = conclude(CANCEL, last, None, maybe_sent=True, attempts=())
        assert type(unknown.error) is OutcomeUnknownError


@given(st.text() | st.from_regex(r"(re|pyr)_[A-Za-z0-9_./%?#-]*"))
@example("re_")
@example("re_..")
@example("re_1/../../v1/charges")
@example("re_1\n")
@example("re_1%2e%2e")
@example("re_é")
@example("re_1?expand[]=charge")
@example("pyr_" + "a" * 252)
def test_any_id_is_the_one_path_or_a_value_error(refund_id: str) -> None:
    try:
        request = requests.cancel_request(refund_id, idempotency_key="k")
    except ValueError:
        return
    url = URL("https://api.stripe.com").with_path(request.path, encoded=True)
    assert str(url) == f"https://api.stripe.com/v1/refunds/{refund_id}/cancel"
    assert url.raw_parts == ("/", "v1", "refunds", refund_id, "cancel")


@given(st.text() | st.text(st.characters(codec="ascii")))
@example("")
@example("a\r\nX: y")
@example("a" * 256)
@example(" a")
@example("Pk_0")
@example("jane@shop.example")
@example("@")
def test_any_idempotency_key_is_one_header_value_or_a_value_error(key: str) -> None:
    try:
        request = requests.cancel_request(RE, idempotency_key=key)
    except ValueError:
        visible = key.isascii() and key.isprintable() and " " not in key
        valid = visible and 0 < len(key) < 256
        assert not valid or contains_key(key) or contains_address(key)
    else:
        assert request.idempotency_key == key
        assert key.isascii()
        assert key.isprintable()
        assert " " not in key


@given(st.text() | st.from_regex(r"acct_[\w/\n]*"))
@example("acct_1\r\nX: y")
@example("")
def test_any_account_is_one_header_value_or_a_value_error(account: str) -> None:
    try:
        request = requests.cancel_request(
            RE, idempotency_key="k", stripe_account=account
        )
    except ValueError:
        return
    assert request.stripe_account == account
    assert account.isascii()
    assert account.startswith("acct_")
    assert account.replace("_", "").isalnum()


@given(st.text())
@example("https://api.stripe.com")
@example("https://api.stripe.com@evil.example")
@example("https://api.stripe.com\\@evil.example")
@example("http://127.0.0.1:80@evil.example")
@example("http://[::1]:8080/")
@example("http://[::1%25lo]")
@example("http://2130706433")
@example("https://[::1")
@example("https://host:99999")
def test_any_base_url_is_an_origin_of_https_or_loopback_or_a_value_error(
    base_url: str,
) -> None:
    try:
        client = RefundsClient("sk_live_x", base_url=base_url)
    except ValueError:
        return
    origin = URL(repr(client).split(" ")[-1][:-1])
    assert origin == origin.origin()
    assert origin.user is None
    assert origin.host is not None
    assert origin.scheme == "https" or (
        origin.host in ("localhost", "::1") or origin.host.startswith("127.")
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"[]", b'{"error": []}', b'{"error": {"code": {}}}', b"[" * 10**5],
)
def test_refusal_with_any_body_goes_by_its_status(body: bytes) -> None:
    response = Response(401, CIMultiDict[str](), body)
    error = error_mapping.error_for(CANCEL, classify(CANCEL, response), ())
    assert type(error) is AuthenticationError
    assert error.status_code == 401


def test_refund_as_seen_is_never_a_reason_against_itself() -> None:
    """Only what forbids a cancel is named as what forbids it."""
    named = CIMultiDict({"Request-Id": "req_1", "Idempotency-Key": "key"})
    last = classify(CANCEL, Response(400, named, error_json()))
    for status in ("requires_action", None):
        read = classify(
            RETRIEVE, Response(200, CIMultiDict[str](), refund_json(status))
        )
        found = conclude(CANCEL, last, read, maybe_sent=False, attempts=())
        assert found.outcome == "failed"
        assert not isinstance(found.error, RefundNotCancelableError)
