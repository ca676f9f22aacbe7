"""All that the emulator remembers between two requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .books import Books
from .idempotency import IdempotencyKeys
from .keys import Keys

if TYPE_CHECKING:
    from .clock import Clock
    from .limiter import Limiter
    from .refunds import Ledger


class State:
    """Refunds, keys of both kinds, limits, and the books.

    Args:
        clock: Tells the time.
        ledger: Holds the refunds.
        limiter: Lets requests in.
    """

    def __init__(self, *, clock: Clock, ledger: Ledger, limiter: Limiter) -> None:
        self.clock = clock
        self.ledger = ledger
        self.limiter = limiter
        self.idempotency = IdempotencyKeys()
        self.keys = Keys()
        self.books = Books()
