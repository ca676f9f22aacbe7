"""A webhook is believed exactly where Stripe's own library believes it."""

from __future__ import annotations

import copy
import json
import pickle
import random
import time
import traceback
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import stripe

from async_refunds import (
    RefundEvent,
    SignatureVerificationError,
    WebhookError,
    refund_event,
)
from tests.support.scripted import RE, refund_json
from tests.support.webhooks import NOW, SECRET, event, sign

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = event()

# Their types leave the tolerance and the time unknown.
THEIRS: Any = stripe.WebhookSignature


def test_event_tells_the_refund_and_the_request_that_caused_it() -> None:
    found = refund_event(BODY, sign(BODY), SECRET, now=NOW)
    assert found.id == "evt_3Q1"
    assert (found.type, found.created, found.livemode) == (
        "refund.updated",
        NOW - 2,
        False,
    )
    assert (found.refund.id, found.refund.status) == (RE, "canceled")
    assert (found.idempotency_key, found.request_id) == ("order-7", "req_1")
    assert found.account is None


@pytest.mark.parametrize(
    "kind",
    ["refund.created", "refund.updated", "refund.failed", "charge.refund.updated"],
)
def test_each_event_of_a_refund_is_decoded(kind: str) -> None:
    body = event(kind, account="acct_1", livemode=True)
    found = refund_event(body, sign(body), SECRET, now=NOW)
    assert (found.type, found.account, found.livemode) == (kind, "acct_1", True)


def test_odd_field_of_the_refund_is_left_out() -> None:
    """Such as an endpoint of another API version may send."""
    whole = json.loads(BODY)
    whole["data"]["object"]["metadata"] = {"a": 1}
    body = json.dumps(whole).encode()
    found = refund_event(body, sign(body), SECRET, now=NOW)
    assert (found.refund.id, found.refund.status) == (RE, "canceled")
    assert found.refund.metadata is None


@pytest.mark.parametrize(
    ("request_", "key", "name"),
    [
        (None, None, None),
        ({"id": None, "idempotency_key": None}, None, None),
        ({"id": "req_7"}, None, "req_7"),
        ("req_7", None, "req_7"),
    ],
)
def test_event_of_no_request_or_of_one_without_a_key(
    request_: object, key: str | None, name: str | None
) -> None:
    body = event(request=request_)
    found = refund_event(body, sign(body), SECRET, now=NOW)
    assert (found.idempotency_key, found.request_id) == (key, name)


def test_body_may_be_text_or_any_bytes() -> None:
    forms: list[Any] = [BODY.decode(), bytearray(BODY)]
    for body in forms:
        assert refund_event(body, sign(BODY), SECRET, now=NOW).id == "evt_3Q1"


def test_any_of_several_secrets_and_signatures_will_do() -> None:
    header = sign(BODY, "whsec_old", "whsec_new")
    for secrets in ("whsec_new", ["whsec_other", "whsec_old"], iter(["whsec_new"])):
        assert refund_event(BODY, header, secrets, now=NOW)
    with pytest.raises(SignatureVerificationError, match="any of the secrets"):
        refund_event(BODY, header, ["whsec_a", "whsec_b"], now=NOW)


@pytest.mark.parametrize("ahead", [-300, 0, 300])
def test_time_within_the_tolerance_passes(ahead: int) -> None:
    assert refund_event(BODY, sign(BODY, at=NOW + ahead), SECRET, now=NOW)


@pytest.mark.parametrize(
    ("ahead", "words"), [(-301, "301 s old"), (301, "301 s in the future")]
)
def test_old_and_future_times_are_refused(ahead: int, words: str) -> None:
    with pytest.raises(SignatureVerificationError, match=words):
        refund_event(BODY, sign(BODY, at=NOW + ahead), SECRET, now=NOW)
    assert refund_event(BODY, sign(BODY, at=NOW + ahead), SECRET, 301, now=NOW)


def test_clock_is_the_default() -> None:
    assert refund_event(BODY, sign(BODY, at=int(time.time())), SECRET)
    with pytest.raises(SignatureVerificationError, match="in the future"):
        refund_event(BODY, sign(BODY, at=int(time.time()) + 1000), SECRET)


HEADERS: dict[str, str | None] = {
    "missing": None,
    "empty": "",
    "no time": sign(BODY).partition(",")[2],
    "no signature": f"t={NOW}",
    "another scheme": sign(BODY).replace("v1=", "v0="),
    "time that is none": sign(BODY).replace("t=", "t=x"),
    "huge time": sign(BODY).replace("t=", "t=" + "9" * 5000),
    "upper case": sign(BODY).upper().replace("T=", "t=").replace("V1=", "v1="),
    "item without a value": sign(BODY).replace("v1=", "v1"),
    "cut": sign(BODY)[:-1],
    "not ASCII": sign(BODY)[:-1] + "é",
    "no text": sign(BODY)[:-1] + "\ud800",
    "spaces": sign(BODY).replace(",", ", "),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_header_that_proves_nothing_is_refused(header: str | None) -> None:
    with pytest.raises(SignatureVerificationError) as caught:
        refund_event(BODY, header, SECRET, now=NOW)
    assert not shows_a_secret(caught.value)


OTHERS: dict[str, tuple[bytes, str | None]] = {
    "charge": (event("charge.refunded"), "charge.refunded"),
    "odd type": (event("<script>"), "of an unknown type"),
    "no refund": (event(data={"object": {"id": "ch_1"}}), "refund.updated"),
    "v2 event": (event(object="v2.core.event"), None),
    "no JSON": (b"canceled", None),
    "list": (b"[]", None),
    "deep": (b"[" * 100_000, None),
    "bad UTF-8": (b'{"id": "\xff"}', None),
    "empty": (b"", None),
}


@pytest.mark.parametrize(("body", "kind"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_refund_event_is_refused_by_another_name(
    body: bytes, kind: str | None
) -> None:
    with pytest.raises(WebhookError) as caught:
        refund_event(body, sign(body), SECRET, now=NOW)
    assert type(caught.value) is WebhookError
    assert caught.value.event_type == kind


WRONG: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "parsed body": ({"body": json.loads(BODY)}, TypeError),
    "no secret": ({"secrets": []}, ValueError),
    "empty secret": ({"secrets": ["whsec_1", " "]}, ValueError),
    "API key": ({"secrets": "sk_test_CANARY"}, ValueError),
    "None": ({"secrets": None}, TypeError),
    "None among them": ({"secrets": [None]}, TypeError),
    "no tolerance": ({"tolerance": 0}, ValueError),
    "tolerance of text": ({"tolerance": "300"}, TypeError),
    "signature of bytes": ({"signature": sign(BODY).encode()}, TypeError),
    "signature that is none": ({"signature": 7}, TypeError),
    "half a character": ({"secrets": "whsec_CANARY\udcff"}, ValueError),
}


@pytest.mark.parametrize(("given", "error"), WRONG.values(), ids=WRONG.keys())
def test_argument_that_is_none_is_the_callers_mistake(
    given: dict[str, Any], error: type[Exception]
) -> None:
    right: dict[str, Any] = {"body": BODY, "signature": sign(BODY), "secrets": SECRET}
    with pytest.raises(error) as caught:
        refund_event(**{**right, **given}, now=NOW)
    assert type(caught.value) is error
    assert not shows_a_secret(caught.value)


def shows_a_secret(error: BaseException) -> bool:
    shown = [str(error), repr(error), repr(pickle.dumps(error)), str(vars(error))]
    shown += traceback.format_exception(error)
    return any("CANARY" in text for text in shown)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_errors_and_events_copy_and_pickle(again: Callable[[Any], Any]) -> None:
    body = event("charge.refunded")
    with pytest.raises(WebhookError) as caught:
        refund_event(body, sign(body), SECRET, now=NOW)
    found = refund_event(BODY, sign(BODY), SECRET, now=NOW)
    values: list[Any] = [caught.value, found]
    for value in values:
        copied = again(value)
        if isinstance(copied, bytes):
            copied = pickle.loads(copied)  # noqa: S301 - bytes of our own
        assert type(copied) is type(value)
        if isinstance(value, RefundEvent):
            assert copied == value
        else:
            assert (str(copied), copied.event_type) == (str(value), "charge.refunded")


def test_event_is_frozen_and_shows_no_address() -> None:
    refund = json.loads(refund_json(instructions_email="canary@customer.example"))
    body = event(data={"object": refund})
    found = refund_event(body, sign(body), SECRET, now=NOW)
    assert "canary@" not in repr(found)
    assert found.refund.instructions_email == "canary@customer.example"
    with pytest.raises(AttributeError):
        found.id = "evt_2"  # type: ignore[misc]  # the point
    assert msgspec.json.decode(msgspec.json.encode(found), type=RefundEvent) == found


class Mutations:
    """Draws bodies, headers and secrets, most of them forged in one place."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - reproducible, not secret

    def text(self, text: str) -> str:
        """Change, remove, double or insert a character, or swap two pieces."""
        if not text:
            return "t"
        place = self.chance.randrange(len(text))
        other = self.chance.choice("0123456789abcdeft=v1,. _-+\té\x00AZ")
        return self.chance.choice(
            (
                text[:place] + other + text[place + 1 :],
                text[:place] + text[place + 1 :],
                text[:place] + text[place] + text[place:],
                text[:place] + other + text[place:],
                text[place:] + text[:place],
                text[:place],
                text.replace(",", f",{other}", 1),
                text.swapcase(),
            )
        )

    def draw(self) -> tuple[bytes, str, str]:
        chance = self.chance
        body = event(id=f"evt_{chance.randrange(10**6)}")
        age = chance.choice((0, 0, 0, 299, 300, 301, 10**4, 10**9))
        secrets = chance.choice(((SECRET,), ("whsec_old", SECRET), ("whsec_old",)))
        header, secret = sign(body, *secrets, at=NOW - age), SECRET
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            match chance.randrange(5):
                case 0:
                    body = self.text(body.decode()).encode()
                case 1:
                    secret = self.text(secret)
                case 2:
                    header += "," + sign(body, secret, at=NOW - age)
                case _:
                    header = self.text(header)
        return body, header, secret


def ours(body: bytes, header: str, secret: str) -> bool:
    try:
        refund_event(body, header, secret, now=NOW)
    except SignatureVerificationError:
        return False
    except ValueError:
        assert not secret.strip()
        return False
    except WebhookError:  # signed, but no event any more
        return True
    return True


def theirs(body: bytes, header: str, secret: str) -> bool | None:
    """Return what Stripe's library says, or ``None`` if it breaks on the header."""
    try:
        THEIRS.verify_header(body, header, secret, 300)
    except stripe.SignatureVerificationError:
        return False
    except TypeError:  # its comparison knows no signature that is not ASCII
        return None
    return True


def is_ahead(header: str) -> bool:
    """Tell whether the header's time is of the future, where the two differ."""
    times = [item[2:] for item in header.split(",") if item.startswith("t=")]
    try:
        return int(times[0]) > NOW + 300
    except (ValueError, IndexError):
        return False


def test_ten_thousand_forged_signatures_are_judged_as_stripe_judges_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Except for a time in the future, which Stripe's library accepts."""
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    mutations = Mutations(7)
    judged = dict.fromkeys((False, True, None), 0)
    while judged[False] + judged[True] < 10_000:
        body, header, secret = mutations.draw()
        mine, expected = ours(body, header, secret), theirs(body, header, secret)
        judged[expected] += 1
        if expected is True and is_ahead(header):
            expected = False
        assert mine == expected or expected is None, (header, secret)
    assert judged[True] > 1000


def test_event_is_read_as_stripe_reads_it() -> None:
    header = THEIRS.generate_signature_header(BODY.decode(), SECRET)
    made = stripe.Webhook.construct_event(BODY, header, SECRET)
    found = refund_event(BODY, header, SECRET)
    assert (found.id, found.type, found.created) == (made.id, made.type, made.created)
    assert found.refund.to_dict()["status"] == made.data.object["status"]
    assert made.request is not None
    assert found.idempotency_key == made.request.idempotency_key
