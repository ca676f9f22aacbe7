"""Why nothing more of an account is canceled for now, and until when.

Two kinds of evidence close an account: its key is refused for several refunds, or the
service that all accounts ask has only failed for longer than patience lasts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from async_refunds.protocol.classification import (
    Classification,
    Outcome,
    Proof,
    is_from_stripe,
)
from async_refunds.protocol.requests import Cause, Response, TransportFailure

if TYPE_CHECKING:
    from async_refunds.protocol.requests import Reply

    from .endpoint import Outage

# Refunds for which the key or its permissions are refused in a row, with no other
# answer between, before the account is closed. One may concern the refund alone; after
# several every further request is wasted.
_EVIDENCE = 3

# Seconds after which a service that never answered counts as unreachable. A restart of
# what stands before Stripe is over by then.
_SILENCE = 5.0

_NOBODY: frozenset[str] = frozenset()  # one for all: each takes 216 bytes


class Closing:
    """Whether an account is closed, and the evidence against its key so far."""

    __slots__ = ("_refused", "reply", "until")

    def __init__(self) -> None:
        self.reply: Classification[Any] | None = None
        """What closed it; ``None`` while it is open."""
        self.until = math.inf
        """On the event loop's clock, when it may open again."""
        self._refused = _NOBODY  # since a cancel was not

    def close(self, reply: Classification[Any], until: float) -> None:
        """Note why it is closed, and until when."""
        self.reply, self.until = reply, until

    def reopen(self) -> None:
        """Note that it is open."""
        self.reply, self.until = None, math.inf

    def condemns_key(
        self,
        refund_id: str,
        reply: Response,
        classification: Classification[Any],
        *,
        cancel: bool,
    ) -> bool:
        """Note what a reply says of the key; tell whether it is no good by now.

        A key may be good for cancels and not for reads. Only Stripe can refuse it: a
        page of a proxy says nothing about keys.
        """
        if refuses_key(reply, cancel=cancel) and (
            classification.outcome is Outcome.REFUSED
        ):
            if classification.proof is Proof.NONE or not is_from_stripe(
                reply, classification.envelope
            ):
                return False
            self._refused |= {refund_id}
            return len(self._refused) >= _EVIDENCE
        if cancel and not classification.limit and _is_word(classification):
            self._refused = _NOBODY
        return False


class ServiceMonitor:
    """What all accounts of a batch ask, and how long it may only fail.

    Args:
        address: Of the service.
        patience: Seconds after which one that only fails is asked no more.
    """

    __slots__ = ("_address", "_patience", "has_answered")

    def __init__(self, address: str, patience: float) -> None:
        self._address = address
        self._patience = patience
        self.has_answered = False
        """Whether an answer to any request ever came."""

    def judge(
        self, outage: Outage, reply: Reply, now: float
    ) -> tuple[Classification[Any], float] | None:
        """Return with what to close an account, and until when, if it is to be.

        What waits would be tried at the slow pace of an outage, one after the other,
        and end the same. Once as much time has passed again, the next refund is tried
        as the first one was: the input may be a stream that never ends.

        Args:
            outage: The failures of the account's cancels.
            reply: The last one of them.
            now: The event loop's time.
        """
        answered = self.has_answered or outage.reached
        seconds = longest_outage(self._patience, answered=answered)
        if not outage.lasts(seconds, now):
            return None
        what = "could not be reached" if not outage.reached else "failed"
        last = (
            reply.detail
            if isinstance(reply, TransportFailure)
            else f"HTTP status {reply.status}"
        )
        text = f"{self._address} {what} for {now - outage.since:.0f} s: {last}"
        failure = TransportFailure(Cause.REFUSED, text, sent=False)
        return Classification(failure, Outcome.NOT_SENT, retry=False), now + seconds


def longest_outage(patience: float, *, answered: bool) -> float:
    """Return for how many seconds a service may only fail before it is asked no more.

    Args:
        patience: That with one that has answered.
        answered: Whether it ever has. If not, there is no network, or the address is
            not the right one.
    """
    return patience if answered else min(patience, _SILENCE)


def refuses_key(reply: Response, *, cancel: bool) -> bool:
    """Tell whether a reply refuses the key, or what it was used for."""
    return reply.status == 401 or (cancel and reply.status == 403)  # noqa: PLR2004 - Unauthorized, Forbidden


def _is_word(classification: Classification[Any]) -> bool:
    """Tell whether Stripe itself decided about the request."""
    return classification.outcome is Outcome.DONE or (
        classification.outcome is Outcome.REFUSED
        and classification.proof is not Proof.NONE
    )
