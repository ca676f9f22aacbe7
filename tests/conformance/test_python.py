"""Stripe's own Python client takes the emulator for Stripe, on each of its transports.

At the end of each test its answers are checked against Stripe's description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import stripe

from async_refunds.emulator import Limits
from tests.support.official_cases import ERRORS, OFFICIAL_KEY, REQUESTS_BY_FAULT
from tests.support.official_python import TRANSPORTS, Found, Official, opened
from tests.support.on_tap import hanging, on_tap

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.on_tap import Stripe


@pytest.fixture
def stripe_on_tap() -> Generator[Stripe]:
    with on_tap() as made:
        yield made


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def official(transport: str, stripe_on_tap: Stripe) -> Generator[Official]:
    with opened(transport, stripe_on_tap.base_url) as client:
        yield client


@pytest.fixture
def patient(
    transport: str, stripe_on_tap: Stripe, monkeypatch: pytest.MonkeyPatch
) -> Generator[Official]:
    """A client that retries twice, without a delay."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0)
    with opened(transport, stripe_on_tap.base_url, retries=2) as client:
        yield client


def headers(answer: Found) -> dict[str, str]:
    """Return the headers of an answer, or of an error."""
    found = (
        answer.headers
        if isinstance(answer, stripe.StripeError)
        else answer.last_response.headers
    )
    return {name.lower(): value for name, value in dict(found or {}).items()}


def code(error: stripe.StripeError) -> str | None:
    """Return the code, which some classes have on their error object only."""
    assert error.error is not None
    return error.error.code


def test_refund_is_canceled(official: Official, stripe_on_tap: Stripe) -> None:
    refund_id = stripe_on_tap.emulator.add_refund(metadata={"order": "6735"})
    refund = official.call("cancel", refund_id, options={"idempotency_key": "k"})
    assert isinstance(refund, stripe.Refund)
    assert refund.status == "canceled"
    assert refund.failure_reason == "merchant_request"
    assert refund.metadata is not None
    assert refund.metadata["order"] == "6735"
    assert "next_action" not in refund
    assert refund.last_response is not None
    assert refund.last_response.request_id == headers(refund)["request-id"]
    assert headers(refund)["idempotency-key"] == "k"
    assert headers(refund)["stripe-version"]
    assert stripe_on_tap.emulator.books.cancellations == {refund_id: 1}


def test_refund_is_retrieved(official: Official, stripe_on_tap: Stripe) -> None:
    refund_id = stripe_on_tap.emulator.add_refund(currency="thb")
    refund = official.call("retrieve", refund_id)
    assert refund.status == "requires_action"
    assert refund.next_action.display_details.email_sent.email_sent_to
    assert refund.destination_details.type == "th_bank_transfer"
    assert "failure_reason" not in refund
    assert "description" not in refund


def test_list_is_paged_through(official: Official, stripe_on_tap: Stripe) -> None:
    seeded = stripe_on_tap.emulator.seed_refunds(25)
    found = official.everything(limit=10)
    assert [refund.id for refund in found] == seeded[::-1]
    assert stripe_on_tap.emulator.books.requests == {"list": 3}
    last = stripe_on_tap.emulator.refund(seeded[20])
    some = official.everything(
        limit=3, created={"lte": last["created"]}, ending_before=seeded[5]
    )
    # From a cursor at the end the client walks backwards.
    assert [refund.id for refund in some] == seeded[6:21]
    (one,) = official.everything(charge=last["charge"])
    assert one.id == seeded[20]


def test_objects_are_expanded(official: Official, stripe_on_tap: Stripe) -> None:
    refund_id = stripe_on_tap.emulator.add_refund()
    expand = {"expand": ["charge", "failure_balance_transaction"]}
    refund = official.call("cancel", refund_id, expand)
    assert refund.charge.object == "charge"
    assert refund.failure_balance_transaction.type == "refund_failure"
    retrieved = official.call("retrieve", refund_id, {"expand": ["payment_intent"]})
    assert retrieved.payment_intent.object == "payment_intent"
    page = official.call("list", {"expand": ["data.charge"]})
    assert page.data[0].charge.object == "charge"


def test_connected_account_has_its_own(
    official: Official, stripe_on_tap: Stripe
) -> None:
    refund_id = stripe_on_tap.emulator.add_refund(account="acct_1")
    options = {"stripe_account": "acct_1"}
    with pytest.raises(stripe.InvalidRequestError):
        official.call("cancel", refund_id)
    refund = official.call("cancel", refund_id, options=options)
    assert refund.status == "canceled"
    assert headers(refund)["stripe-account"] == "acct_1"
    context = official.call("retrieve", refund_id, options={"stripe_context": "acct_1"})
    assert context.id == refund_id
    with pytest.raises(stripe.PermissionError) as caught:
        official.call("retrieve", refund_id, options={"stripe_account": "acct_2"})
    assert code(caught.value) == "account_invalid"


def test_organization_acts_for_its_account(
    transport: str, stripe_on_tap: Stripe
) -> None:
    refund_id = stripe_on_tap.emulator.add_refund(account="acct_1")
    with opened(transport, stripe_on_tap.base_url, key="sk_org_test_1") as client:
        options = {"stripe_context": "acct_1"}
        refund = client.call("cancel", refund_id, options=options)
        assert refund.status == "canceled"
        with pytest.raises(stripe.InvalidRequestError, match="Stripe-Context header"):
            client.call("retrieve", refund_id)


def test_test_helper_expires(official: Official, stripe_on_tap: Stripe) -> None:
    refund_id = stripe_on_tap.emulator.add_refund()
    assert official.expire(refund_id).status == "failed"
    with pytest.raises(stripe.InvalidRequestError, match="status of failed"):
        official.expire(refund_id)


@pytest.mark.parametrize("case", ERRORS)
def test_error_has_its_class_and_fields(
    case: str, official: Official, stripe_on_tap: Stripe
) -> None:
    expected = ERRORS[case]
    expected.prepare(stripe_on_tap.emulator)
    with pytest.raises(stripe.StripeError) as caught:
        official.call(*expected.call)
    error = caught.value
    assert type(error) is getattr(stripe, expected.python)
    assert (error.http_status, code(error)) == (expected.status, expected.code)
    assert getattr(error, "param", None) == expected.param
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert error.user_message
    assert OFFICIAL_KEY not in str(error)


def test_wrong_key_is_masked(transport: str, stripe_on_tap: Stripe) -> None:
    with (
        opened(transport, stripe_on_tap.base_url, key="sk_prod_secret") as client,
        pytest.raises(stripe.AuthenticationError) as caught,
    ):
        client.call("retrieve", "re_1")
    assert caught.value.http_status == 401
    assert "**********cret" in str(caught.value)


def test_replay_of_a_key_has_its_header(
    official: Official, stripe_on_tap: Stripe
) -> None:
    refund_id, other = stripe_on_tap.emulator.seed_refunds(2)
    options = {"idempotency_key": "k"}
    first = official.call("cancel", refund_id, options=options)
    again = official.call("cancel", refund_id, options=options)
    assert "idempotent-replayed" not in headers(first)
    assert headers(again)["idempotent-replayed"] == "true"
    assert headers(again)["original-request"] == headers(first)["request-id"]
    assert again.to_dict() == first.to_dict()
    for asked in ((refund_id, {"expand": ["charge"]}), (other,)):
        with pytest.raises(stripe.IdempotencyError) as caught:
            official.call("cancel", *asked, options=options)
        assert caught.value.http_status == 400
    assert stripe_on_tap.emulator.books.cancellations == {refund_id: 1}


@pytest.mark.parametrize("fault", ["reset_after", "reset_before"])
def test_lost_answer_is_retried(
    fault: str, patient: Official, stripe_on_tap: Stripe
) -> None:
    emulator = stripe_on_tap.emulator
    refund_id = emulator.add_refund()
    emulator.faults.script(fault)
    refund = patient.call("cancel", refund_id)
    assert refund.status == "canceled"
    assert ("idempotent-replayed" in headers(refund)) == (fault == "reset_after")
    assert emulator.books.cancellations == {refund_id: 1}
    first, second = emulator.requests
    assert first.idempotency_key == second.idempotency_key


@pytest.mark.parametrize(("fault", "requests"), REQUESTS_BY_FAULT.items())
def test_client_retries_where_stripe_lets_it(
    fault: str, requests: int, patient: Official, stripe_on_tap: Stripe
) -> None:
    emulator = stripe_on_tap.emulator
    refund_id = emulator.add_refund()
    emulator.faults.script(fault)
    if requests == 1:
        with pytest.raises(stripe.StripeError):
            patient.call("cancel", refund_id)
    else:
        assert patient.call("cancel", refund_id).status == "canceled"
    assert len(emulator.requests) == requests


def test_saved_500_is_replayed(official: Official, stripe_on_tap: Stripe) -> None:
    refund_id = stripe_on_tap.emulator.add_refund()
    stripe_on_tap.emulator.faults.script("saved_500")
    found: list[dict[str, str]] = []
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            official.call("cancel", refund_id, options={"idempotency_key": "k"})
        found.append(headers(caught.value))
    assert [each.get("idempotent-replayed") for each in found] == [None, "true"]
    assert [each["stripe-should-retry"] for each in found] == ["false", "false"]
    assert official.call("retrieve", refund_id).status == "canceled"


def test_key_in_flight_and_locked_charge_are_met(
    official: Official, stripe_on_tap: Stripe
) -> None:
    emulator = stripe_on_tap.emulator
    first, second = (emulator.add_refund(charge="ch_1") for _ in range(2))
    with hanging(emulator, first, "k"):
        with pytest.raises(stripe.APIError) as in_use:
            official.call("cancel", first, options={"idempotency_key": "k"})
        with pytest.raises(stripe.RateLimitError) as locked:
            official.call("cancel", second)
    assert in_use.value.http_status == 409
    assert code(in_use.value) == "idempotency_key_in_use"
    assert code(locked.value) == "lock_timeout"


def test_limits_are_met(official: Official, stripe_on_tap: Stripe) -> None:
    stripe_on_tap.emulator.limits = Limits(endpoint_rate=1e-6)
    official.call("list")
    with pytest.raises(stripe.RateLimitError) as caught:
        official.call("list")
    assert headers(caught.value)["stripe-rate-limited-reason"] == "endpoint-rate"
