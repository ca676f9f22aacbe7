"""All that the emulator remembers between two requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .books import Books
from .idempotency import IdempotencyKeys
from .keys import Keys

if TYPE_CHECKING:
    from .clock import Clock
    from .ledger import Ledger
    from .limiter import Limiter
    from .timing import Timing


class State:
    """Refunds, keys of both kinds, limits, and the books.

    Args:
        clock: Tells the time.
        ledger: Holds the refunds.
        limiter: Lets requests in.
        timing: How long things take.
    """

    def __init__(
        self, *, clock: Clock, ledger: Ledger, limiter: Limiter, timing: Timing
    ) -> None:
        self.clock = clock
        self.ledger = ledger
        self.limiter = limiter
        self.timing = timing
        self.idempotency = IdempotencyKeys()
        self.keys = Keys()
        self.books = Books()
