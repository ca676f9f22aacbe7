"""What happened at the emulator: its own account, apart from what clients think."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ReceivedRequest:
    """One request as it arrived, and what became of it; never its API key.

    Attributes:
        endpoint: ``cancel``, ``retrieve``, ``list``, ``expire`` or ``other``.
        params: Names and values of the query and the form, decoded, in order.
        received_at: Unix seconds on the emulator's clock.
        status: What was answered; None if no answer was begun.
        fault: The fault the request met, if any.
        replayed: Whether the answer was one saved under the key.
    """

    method: str
    path: str
    endpoint: str
    params: tuple[tuple[str, str], ...]
    idempotency_key: str | None
    stripe_account: str | None
    request_id: str
    received_at: float
    status: int | None = None
    fault: str | None = None
    replayed: bool = False


@dataclass(slots=True)
class Books:
    """Counts of everything that can be counted wrongly elsewhere.

    Attributes:
        cancellations: By refund, how often a cancel was executed: how often its
            status went over to ``canceled`` on a request. Never more than one.
        requests: By endpoint, how many were received.
        cancel_requests: By refund held here, how often its cancel was asked for.
        retrieve_requests: By refund held here, how often it was asked for.
        replays: How many answers came from under a key.
        faults: By name, how often a fault was met.
        rate_limited: By reason, how many 429s were answered; ``lock_timeout`` for
            those with no reason in their headers.
    """

    cancellations: Counter[str] = field(default_factory=Counter[str])
    requests: Counter[str] = field(default_factory=Counter[str])
    cancel_requests: Counter[str] = field(default_factory=Counter[str])
    retrieve_requests: Counter[str] = field(default_factory=Counter[str])
    replays: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    rate_limited: Counter[str] = field(default_factory=Counter[str])
