"""A stateful local Stripe for refunds: to try, to test against, to break on purpose.

It shares no code with the client: a mistake that both make would never be seen.
"""

from .emulator import Emulator
from .state.books import Books, ReceivedRequest
from .state.clock import Clock
from .state.faults import FAULTS, Faults
from .state.limits import Limits
from .state.webhooks import Webhook, WebhookAttempt

__all__ = [
    "Books",
    "Clock",
    "Emulator",
    "FAULTS",
    "Faults",
    "Limits",
    "ReceivedRequest",
    "Webhook",
    "WebhookAttempt",
]
