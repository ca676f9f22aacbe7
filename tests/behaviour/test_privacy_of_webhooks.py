"""A webhook's secret and the address in its body are looked for in what is printed."""

from __future__ import annotations

import json
import logging
from io import StringIO
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console

from async_refunds import SignatureVerificationError, WebhookError, refund_event
from async_refunds.protocol.redaction import SecretBytes
from tests.support.canary import EMAIL, KEY, SECRET, printed, spelled
from tests.support.scripted import refund_json
from tests.support.webhooks import NOW, event, sign

REFUND = json.loads(refund_json("requires_action", instructions_email=EMAIL))
BODY = event(data={"object": REFUND})
OTHER = "whsec_CANARYofAnotherEndpoint"


def signed(body: bytes, **others: object) -> dict[str, object]:
    return {"body": body, "signature": sign(body, SECRET), **others}


WRONG: dict[str, dict[str, object]] = {
    "no signature": {"signature": None},
    "unreadable signature": {"signature": "v1=00"},
    "another secret": {"signature": sign(BODY, "whsec_third")},
    "old": {"signature": sign(BODY, SECRET, at=NOW - 301)},
    "another body": {"body": BODY + b" "},
    "text": {"body": BODY.decode() + " "},
    "text that is none": {"body": BODY.decode() + "\ud800"},
    "bytearray": {"body": bytearray(BODY + b" ")},
    "parsed body": {"body": json.loads(BODY)},
    "no JSON": signed(f"{EMAIL} {SECRET}".encode()),
    "other event": signed(event("charge.refunded", data={"object": REFUND})),
    "odd event": signed(event(f"<{EMAIL}>", account=EMAIL)),
    "type like a key": signed(event(KEY.lower())),
    "type like a secret": signed(event(f"a.{SECRET.lower()}")),
    "no refund": signed(event(data={"object": {"id": 7, "for": EMAIL}}, account=EMAIL)),
    "API key": {"secrets": [SECRET, KEY]},
    "empty secret": {"secrets": [SECRET, ""]},
    "secret of bytes": {"secrets": [SECRET, OTHER.encode()]},
    "bytes": {"secrets": SECRET.encode()},
    "number": {"secrets": 7},
    "half a character": {"secrets": f"{SECRET}\udcff"},
    "signature of bytes": {"signature": b"t=1"},
    "none": {"secrets": ()},
    "no tolerance": {"tolerance": 0},
}


def given(name: str) -> dict[str, Any]:
    right: dict[str, Any] = {
        "body": BODY,
        "signature": sign(BODY, SECRET),
        "secrets": (SECRET, OTHER),
    }
    return {**right, "now": NOW, **WRONG[name]}


@pytest.mark.parametrize("name", WRONG)
def test_refused_webhook_shows_neither_secret_nor_address(name: str) -> None:
    with pytest.raises((WebhookError, ValueError, TypeError)) as caught:
        refund_event(**given(name))
    if isinstance(caught.value, UnicodeError):
        pytest.fail("an error of the codec holds the text")
    for text in printed(caught.value, besides=__file__):
        assert not spelled(text), text


@pytest.mark.parametrize("name", WRONG)
def test_handler_that_raises_tells_its_span_and_its_log_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    exporter, spans = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    spans.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = spans.get_tracer("a service")
    try:
        with tracer.start_as_current_span("POST /webhook"):
            refund_event(**given(name))
    except (WebhookError, ValueError, TypeError):
        logging.getLogger("a service").exception("the webhook failed")
    (span,) = exporter.get_finished_spans()
    assert [each.name for each in span.events] == ["exception"]
    assert not spelled(span.to_json())
    assert "Traceback" in caplog.text
    assert not spelled(caplog.text)


def test_body_is_hidden_from_what_cuts_long_values_short() -> None:
    """As rich does with a traceback's locals."""
    hidden = SecretBytes(BODY)
    assert hidden == BODY
    assert hidden[0] == BODY[0]
    assert hidden[:500] == BODY[:500]
    assert repr([hidden, hidden[:5]]) == f"[<{len(BODY)} bytes>, <5 bytes>]"


def test_event_shows_the_address_only_where_it_is_asked_for() -> None:
    found = refund_event(BODY, sign(BODY, SECRET), SECRET, now=NOW)
    assert not spelled(repr(found))
    assert found.refund.instructions_email == EMAIL


def test_event_shows_neither_a_key_nor_an_address_that_somebody_named_it_after() -> (
    None
):
    body = event(
        id=KEY,
        account=KEY,
        request={"id": KEY, "idempotency_key": EMAIL},
        data={"object": {**REFUND, "id": KEY, "currency": SECRET}},
    )
    found = refund_event(body, sign(body, SECRET), SECRET, now=NOW)
    console = Console(file=StringIO(), width=200)
    console.print(found)
    assert isinstance(console.file, StringIO)
    for text in (repr(found), console.file.getvalue()):
        assert not spelled(text), text
        assert "refund.updated" in text
    assert (found.id, found.idempotency_key) == (KEY, EMAIL)


def test_signature_error_is_what_a_handler_answers_400_for() -> None:
    for name in ("no signature", "another secret", "old", "text that is none"):
        with pytest.raises(SignatureVerificationError):
            refund_event(**given(name))
