"""What a batch is given, and what it tells of each refund."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from .errors import (
    InvalidRequestError,
    RefundNotCancelableError,
    RefundNotFoundError,
)
from .models import Attempt, Refund  # noqa: TC001 - `help` evaluates the annotations

CancelOutcome: TypeAlias = Literal[
    "canceled", "already_canceled", "not_cancelable", "failed", "unknown"
]
"""What became of a refund in a batch.

- ``canceled``: by this batch.
- ``already_canceled``: before this batch asked.
- ``not_cancelable``: its state forbids it; the result has the refund.
- ``failed``: this batch canceled nothing; the result has the error.
- ``unknown``: it may be canceled. Ask again with the result's idempotency key.
"""

CANCELED: frozenset[CancelOutcome] = frozenset({"canceled", "already_canceled"})
"""The outcomes that leave the refund as it was asked for."""


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
    """The connected account it was asked of, the client's if the request named none."""
    outcome: CancelOutcome
    refund: Refund | None = None
    """As last seen, or ``None`` if no answer held it."""
    error: Exception | None = None
    """What `RefundsClient.cancel` raised: one of ours, or a `ValueError` or `TypeError`
    for an id that cannot be one."""
    idempotency_key: str | None = None
    """``None`` if nothing was asked."""
    attempts: tuple[Attempt, ...] = ()
    """Every request for it, oldest first."""
    seconds: float = 0.0
    """From when its first request might go out to when it was known."""

    @property
    def request_id(self) -> str | None:
        """Stripe's name for the last exchange that has one, ``req_...``."""
        named = (each.request_id for each in reversed(self.attempts))
        return next((name for name in named if name is not None), None)

    @property
    def settled(self) -> bool:
        """Whether to ask again would change nothing.

        Open is what is unknown, and what failed for a reason that passes or can be
        mended: the key, its permissions, the limits, the network. A refund that is not
        found is open too: another account's key does not find it either.
        """
        if self.outcome == "failed":
            final = (InvalidRequestError, ValueError, TypeError)
            return (
                isinstance(self.error, final)
                and not isinstance(self.error, RefundNotFoundError)
                and not is_unexplained(self.error)
            )
        return self.outcome != "unknown"


def is_unexplained(error: Exception) -> bool:
    """Tell whether an error is the refusal of a refund's state that no read explained.

    Stripe gives it no code and no parameter, and its text misleads: the refund may be
    canceled already.
    """
    return (
        isinstance(error, InvalidRequestError)
        and not isinstance(error, RefundNotCancelableError)
        and error.status_code == 400  # noqa: PLR2004 - Bad Request
        and error.code is None
        and error.param is None
    )
