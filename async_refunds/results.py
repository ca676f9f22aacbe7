"""What a batch takes, and what it reports about each refund."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from .models import Attempt, Refund  # noqa: TC001 - `help` evaluates the annotations

CancelOutcome: TypeAlias = Literal[
    "canceled", "already_canceled", "not_cancelable", "failed", "unknown"
]
"""What became of a refund in a batch.

- ``canceled``: by this batch.
- ``already_canceled``: by somebody else, as far as can be proven.
- ``not_cancelable``: its state forbids it; the result has the refund.
- ``failed``: this batch canceled nothing; the result has the error.
- ``unknown``: it may be canceled. Call again with the result's idempotency key.
"""

CANCELED: frozenset[CancelOutcome] = frozenset({"canceled", "already_canceled"})
"""The outcomes that leave the refund canceled."""


class CancelRequest(msgspec.Struct, frozen=True, gc=False):
    """One refund that a batch is to cancel."""

    refund_id: str
    """``re_...`` or ``pyr_...``."""
    stripe_account: str | None = None
    """The connected account, in place of the client's."""


class CancelResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one refund of a batch."""

    refund_id: str
    stripe_account: str | None
    """The connected account, the client's if the request named none."""
    outcome: CancelOutcome
    refund: Refund | None = None
    """As last seen, or ``None`` if no answer had it."""
    error: Exception | None = None
    """What `RefundsClient.cancel` would raise: one of ours, or a `ValueError` or
    `TypeError` for an id that cannot be one."""
    idempotency_key: str | None = None
    """``None`` if nothing was sent."""
    attempts: tuple[Attempt, ...] = ()
    """Every request for it, sent or not, oldest first."""
    seconds: float = 0.0
    """From when its first request might be sent to when its outcome was known."""
    settled: bool = True
    """Whether another request would change nothing.

    Open is what is unknown, and what failed for a reason that passes or can be fixed:
    the key, its permissions, the limits, the network. A refund that is not found is
    open too: another account's key does not find it either."""

    @property
    def requests(self) -> int:
        """Requests sent for it. An attempt without a connection is none."""
        return sum(attempt.sent for attempt in self.attempts)

    @property
    def request_id(self) -> str | None:
        """Stripe's name for the last exchange that has one, ``req_...``."""
        named = (each.request_id for each in reversed(self.attempts))
        return next((name for name in named if name is not None), None)
