"""All that the emulator remembers between two requests."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING

from .books import Books, ReceivedRequest
from .clock import Clock, Seconds
from .faults import Faults
from .idempotency import IdempotencyKeys
from .limits import Limiter, Limits
from .store import RefundStore
from .webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable

# How many requests are remembered.
REMEMBERED_REQUESTS = 1000


class StripeState:
    """Refunds, keys of both kinds, limits, faults, time, and the books.

    See `Emulator` for the arguments.

    Attributes:
        expired_keys: API keys that are no longer accepted. Any other key of the
            right form is.
        restricted_keys: By API key, the endpoints that it may use.
        on_request: Called with each request once it has ended.
    """

    latency = Seconds()
    lock_wait = Seconds()

    def __init__(
        self,
        *,
        seed: int,
        clock: Callable[[], float],
        limits: Limits | None,
        latency: float,
        lock_wait: float,
    ) -> None:
        # Ids and faults have generators of their own: adding a refund does not
        # change a storm.
        ids = Random(seed)  # noqa: S311  # ids and storms are no secrets
        # Counted up from here: drawing a number for each request costs more.
        self._request_number = ids.getrandbits(52)
        self.clock = Clock(clock)
        self.faults = Faults(Random(seed))  # noqa: S311  # the same
        self.refunds = RefundStore(ids, self.clock)
        self.idempotency = IdempotencyKeys()
        self.limiter = Limiter(limits)
        self.latency = latency
        self.lock_wait = lock_wait
        self.expired_keys: set[str] = set()
        self.restricted_keys: dict[str, frozenset[str]] = {}
        self.webhooks = Webhooks()
        self.books = Books()
        self.on_request: Callable[[ReceivedRequest], None] | None = None
        self.requests: deque[ReceivedRequest] = deque(maxlen=REMEMBERED_REQUESTS)

    def new_request_id(self) -> str:
        """Return a new id such as ``req_...``."""
        self._request_number += 1
        return f"req_{self._request_number:014x}"
