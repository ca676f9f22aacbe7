"""What happened at the emulator: its own account, whatever clients believe."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

# https://docs.stripe.com/keys
_API_KEY = re.compile(r"([srp]k_(?:test|live|org)_)\w+", re.ASCII)


def hide_api_keys(text: str) -> str:
    """Return a text for people: a client may put its API key anywhere by mistake."""
    return _API_KEY.sub(r"\1***", text)


@dataclass(slots=True)
class ReceivedRequest:
    """One request and its answer; never the API key that authorizes it.

    Attributes:
        endpoint: ``cancel``, ``retrieve``, ``list``, ``expire`` or ``other``.
        params: Names and values of the query and the form, decoded, in order.
        received_at: Unix seconds on the emulator's clock.
        status: The status of the answer; None while there is no answer.
        fault: The fault that the request met, if any.
        replayed: Whether the answer had been saved under the idempotency key.
        milliseconds: How long the request took; None until it has ended.
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
    milliseconds: float | None = field(default=None, compare=False)

    def line(self) -> str:
        """Return the request as one printable line of a log."""
        parts = [self.method, self.path, "-" if self.status is None else self.status]
        if self.milliseconds is not None:
            parts.append(f"{self.milliseconds:.1f} ms")
        if self.idempotency_key is not None:
            parts.append(f"key={self.idempotency_key}")
        if self.fault is not None:
            parts.append(f"fault={self.fault}")
        if self.replayed:
            parts.append("replayed")
        # A client chooses the path and the key: no control character may pass.
        text = " ".join(map(str, parts)).encode("unicode_escape").decode()
        return hide_api_keys(text)


@dataclass(slots=True)
class Books:
    """Counts to hold against what a client reports.

    Attributes:
        cancellations: By refund id, how often a request turned its status into
            ``canceled``. Never more than once.
        requests: By endpoint, how many requests arrived.
        cancel_requests: By refund id, how many cancel requests arrived. Ids of
            refunds that do not exist are not counted.
        retrieve_requests: The same for retrieve requests.
        replays: How many answers had been saved under an idempotency key.
        faults: By name, how many requests met the fault.
        rate_limited: By reason, how many 429s were sent; ``lock_timeout`` counts
            those that carry no ``Stripe-Rate-Limited-Reason``.
    """

    cancellations: Counter[str] = field(default_factory=Counter[str])
    requests: Counter[str] = field(default_factory=Counter[str])
    cancel_requests: Counter[str] = field(default_factory=Counter[str])
    retrieve_requests: Counter[str] = field(default_factory=Counter[str])
    replays: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    rate_limited: Counter[str] = field(default_factory=Counter[str])
