"""Events: what Stripe sends to webhooks when a refund changes.

https://docs.stripe.com/api/events/object
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from async_refunds.emulator.state.webhooks import EVENT_TYPES, Delivery, Webhook

from .request import DEFAULT_VERSION
from .serialization import refund_object

if TYPE_CHECKING:
    from collections.abc import Collection

    from async_refunds.emulator.state.refunds import Cause, Refund
    from async_refunds.emulator.state.stripe_state import StripeState

    from .serialization import Json


def subscribe(
    state: StripeState, url: str, secret: str | None, events: Collection[str]
) -> Webhook:
    """Add a webhook endpoint; see `Emulator.webhook`."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError(f"{url!r} is no http or https URL")
    unknown = sorted(set(events) - set(EVENT_TYPES))
    if unknown:
        known = ", ".join(EVENT_TYPES)
        raise ValueError(f"no event {unknown[0]!r}; there are: {known}")
    webhook = Webhook(url, secret or state.refunds.new_id("whsec"), frozenset(events))
    state.webhooks.endpoints.append(webhook)
    state.refunds.on_change = partial(_publish_change, state)
    state.clock.on_advance = state.refunds.expire_all_due
    return webhook


def _publish_change(
    state: StripeState, before: Refund | None, after: Refund, cause: Cause
) -> None:
    shown = refund_object(after)
    data: Json = {"object": shown}
    types = ["refund.created"]
    if before is not None:
        was = refund_object(before)
        # As Stripe does: null is the previous value of a field that was absent.
        previous: Json = {
            name: was.get(name)
            for name in {**was, **shown}
            if was.get(name) != shown.get(name)
        }
        if not previous:
            return
        data["previous_attributes"] = previous
        types = ["refund.updated", "charge.refund.updated"]
        if "status" in previous and after.status == "failed":
            types.append("refund.failed")
    for event_type in types:
        _publish(state, event_type, after, data, cause)


def _publish(
    state: StripeState, event_type: str, refund: Refund, data: Json, cause: Cause
) -> None:
    subscribers = state.webhooks.subscribers(event_type)
    if not subscribers:
        return
    event_id = state.refunds.new_id("evt")
    event: Json = {
        "id": event_id,
        "object": "event",
        "api_version": DEFAULT_VERSION,
        "created": int(state.clock.time()),
        "data": data,
        "livemode": refund.partition.livemode,
        "pending_webhooks": len(subscribers),
        "request": {"id": cause.request_id, "idempotency_key": cause.key},
        "type": event_type,
    }
    if refund.partition.account is not None:
        event["account"] = refund.partition.account
    # Stripe indents the JSON: a receiver must check the bytes as they come.
    payload = msgspec.json.format(msgspec.json.encode(event))
    for webhook in subscribers:
        state.webhooks.publish(Delivery(webhook, event_id, event_type, payload))
