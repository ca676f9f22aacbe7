"""Webhook endpoints, and the events that wait to be sent to them.

https://docs.stripe.com/webhooks
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# The events of refunds that an endpoint can receive. Stripe advises to listen to
# ``refund.updated`` in place of ``charge.refund.updated``, which it sends besides.
# https://docs.stripe.com/api/events/types
EVENT_TYPES = (
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.refund.updated",
)
DEFAULT_EVENT_TYPES = EVENT_TYPES[:3]


@dataclass(slots=True)
class WebhookAttempt:
    """One attempt to deliver an event.

    Attributes:
        event_id: The ``id`` of the event.
        event_type: Its ``type``.
        status: The status that the endpoint answered; None if it did not answer.
    """

    event_id: str
    event_type: str
    status: int | None


@dataclass(slots=True, eq=False)
class Webhook:
    """An endpoint that receives events.

    Attributes:
        url: Where the events are posted.
        secret: The key of the signatures.
        events: The types of events that are sent.
        attempts: What became of the deliveries, oldest first.
    """

    url: str
    secret: str = field(repr=False)
    events: frozenset[str]
    attempts: list[WebhookAttempt] = field(default_factory=list[WebhookAttempt])


class Delivery(NamedTuple):
    """An event on its way to one endpoint."""

    webhook: Webhook
    event_id: str
    event_type: str
    payload: bytes


class Webhooks:
    """The endpoints, and the deliveries that have not begun."""

    def __init__(self) -> None:
        self.endpoints: list[Webhook] = []
        self._waiting: deque[Delivery] = deque()
        self._wake: Callable[[], None] | None = None

    def subscribers(self, event_type: str) -> list[Webhook]:
        """Return the endpoints that receive events of this type."""
        return [each for each in self.endpoints if event_type in each.events]

    def publish(self, delivery: Delivery) -> None:
        """Queue a delivery, from any thread."""
        self._waiting.append(delivery)
        if self._wake is not None:
            self._wake()

    def take(self) -> list[Delivery]:
        """Return the deliveries that wait, which then wait no longer."""
        taken: list[Delivery] = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def connect_sender(self, wake: Callable[[], None] | None) -> None:
        """Set the function to call when a delivery waits (None: nothing sends)."""
        self._wake = wake
        if wake is not None and self._waiting:
            wake()
