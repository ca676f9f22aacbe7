"""A stateful local Stripe for refunds: to try, to test against, to break on purpose.

It shares no code with the client: what both got wrong alike would never be seen.
"""

from .books import Books, ReceivedRequest
from .clock import Clock
from .emulator import Emulator
from .faults import FAULTS, Faults
from .limiter import Limits

__all__ = [
    "Books",
    "Clock",
    "Emulator",
    "FAULTS",
    "Faults",
    "Limits",
    "ReceivedRequest",
]
