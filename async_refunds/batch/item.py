"""One refund of a batch while a worker or the scheduler has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_refunds.call import Call
    from async_refunds.journal import Claim
    from async_refunds.models import Attempt
    from async_refunds.results import CancelResult


class Item:
    """A claim under way, and what its calls have met so far.

    Args:
        claim: What the journal gave out.
        began_at: On the event loop's clock, when its first call may begin.
    """

    __slots__ = (
        "attempts",
        "began_at",
        "call",
        "calls",
        "claim",
        "known",
        "maybe_sent",
    )

    def __init__(self, claim: Claim, began_at: float) -> None:
        self.claim = claim
        self.began_at = began_at
        self.attempts: tuple[Attempt, ...] = ()
        """Of all its calls, oldest first."""
        self.calls = 0
        """How many calls were begun."""
        self.maybe_sent = claim.maybe_sent
        """Whether a request with the claim's key may have landed."""
        self.call: Call | None = None
        """The one that began, and has not come to its conclusion."""
        self.known: CancelResult | None = None
        """Its result if no call follows the last one."""

    @property
    def may_have_canceled(self) -> bool:
        """Whether a request with the claim's key may have landed, also just now."""
        return self.maybe_sent or (
            self.call is not None and self.call.may_have_canceled
        )
