"""What the web services remember is closed by nothing but what proves something."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from async_refunds import (
    IdempotencyError,
    OutcomeUnknownError,
    RateLimitError,
    RefundsError,
    refund_event,
)
from tests.apps.cancellations import Cancellations
from tests.support.scripted import refund_json
from tests.support.webhooks import NOW, SECRET, event, sign

if TYPE_CHECKING:
    from collections.abc import Generator

UNKNOWN = OutcomeUnknownError("perhaps it was canceled")
REFUSED = RateLimitError("it was not canceled")
REFUND: str = json.loads(refund_json())["id"]
KEY = "order-7"


@contextmanager
def ending(
    error: RefundsError, cancellations: Cancellations, refund_id: str = REFUND
) -> Generator[None]:
    """Make a call with the key that ends with an error, after this block."""
    with suppress(type(error)), cancellations.calling(KEY, refund_id):
        yield
        raise error


@pytest.fixture
def cancellations() -> Cancellations:
    return Cancellations()


@pytest.fixture
def unknown(cancellations: Cancellations) -> Cancellations:
    """One whose key is open."""
    with ending(UNKNOWN, cancellations):
        pass
    return cancellations


def test_key_that_is_open_is_refused_to_another_refund(unknown: Cancellations) -> None:
    with (
        pytest.raises(IdempotencyError, match="open for another refund"),
        unknown.calling(KEY, "re_2"),
    ):
        raise AssertionError("it was sent")
    assert unknown.refund_of(KEY) == REFUND
    with unknown.calling(KEY, REFUND):
        pass
    assert unknown.refund_of(KEY) is None
    with unknown.calling(KEY, "re_2"):
        assert unknown.refund_of(KEY) == "re_2"


def test_refusal_closes_no_key_whose_other_call_ended_unknown(
    cancellations: Cancellations,
) -> None:
    """A browser sent the same form twice."""
    with ending(REFUSED, cancellations), ending(UNKNOWN, cancellations):
        pass
    assert cancellations.refund_of(KEY) == REFUND


def test_refusal_closes_no_key_whose_other_call_is_under_way(
    cancellations: Cancellations,
) -> None:
    with ending(UNKNOWN, cancellations):
        with ending(REFUSED, cancellations):
            pass
        assert cancellations.refund_of(KEY) == REFUND
    assert cancellations.refund_of(KEY) == REFUND


def test_refusals_of_all_calls_close_the_key(cancellations: Cancellations) -> None:
    with ending(REFUSED, cancellations), ending(REFUSED, cancellations):
        pass
    assert cancellations.refund_of(KEY) is None


def test_call_closes_no_key_that_was_given_again(cancellations: Cancellations) -> None:
    with cancellations.calling(KEY, REFUND):
        with cancellations.calling(KEY, REFUND):
            pass
        with ending(UNKNOWN, cancellations, "re_2"):
            pass
    assert cancellations.refund_of(KEY) == "re_2"


def refund(**fields: object) -> dict[str, object]:
    return {"object": {**json.loads(refund_json()), **fields}}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (event(), None),
        # The same key in another account of the platform.
        (event(account="acct_2"), REFUND),
        (event(data=refund(id="re_2")), REFUND),
        # Of before, with the key of the order.
        (event("refund.created", data=refund(status="requires_action")), REFUND),
        (event(request={"id": "req_1", "idempotency_key": "order-8"}), REFUND),
        (event(request={"id": None, "idempotency_key": None}), REFUND),
    ],
)
def test_webhook_closes_what_it_shows_to_be_canceled(
    body: bytes, left: str | None, unknown: Cancellations
) -> None:
    unknown.settle(refund_event(body, sign(body), SECRET, now=NOW))
    assert unknown.refund_of(KEY) == left
