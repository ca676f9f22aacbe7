"""Events as Stripe sends them, signed as Stripe signs."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from tests.support.scripted import refund_json

SECRET = "whsec_CANARYofTheWebhook"
NOW = 1_800_000_000


def event(type_: str = "refund.updated", **fields: object) -> bytes:
    """Return the body of an event, about a canceled refund unless told otherwise.

    After the event of https://docs.stripe.com/api/events/object.
    """
    told: dict[str, Any] = {
        "id": "evt_3Q1",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": NOW - 2,
        "data": {"object": json.loads(refund_json()), "previous_attributes": {}},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": "req_1", "idempotency_key": "order-7"},
        "type": type_,
        **fields,
    }
    return json.dumps(told, indent=2).encode()


def sign(body: bytes, *secrets: str, at: int = NOW) -> str:
    """Return the header of https://docs.stripe.com/webhooks#verify-manually."""
    signed = b"%d." % at + body
    made = [
        hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        for secret in secrets or (SECRET,)
    ]
    return ",".join([f"t={at}", *(f"v1={each}" for each in made)])
