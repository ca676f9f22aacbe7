"""What a service has to remember of its cancels: a table, in life."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_refunds import (
    IdempotencyError,
    OutcomeUnknownError,
    RefundNotCancelableError,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from async_refunds import RefundEvent


class Cancellations:
    """The cancels whose outcome is not known, by their idempotency keys."""

    def __init__(self) -> None:
        self._open: dict[str, _Cancellation] = {}

    def refund_of(self, key: str) -> str | None:
        """Return the refund that is to be asked for again; ``None`` if it is closed."""
        found = self._open.get(key)
        return None if found is None else found.refund_id

    @contextmanager
    def calling(self, key: str, refund_id: str) -> Generator[None]:
        """Keep a key for as long as it is not known what was done with it.

        It is written down before anything is sent: a process that ends in the midst, or
        a handler that is cancelled, leaves it open.

        Raises:
            IdempotencyError: The key is open for another refund. Nothing was sent.
        """
        ours = self._open.setdefault(key, _Cancellation(refund_id))
        if ours.refund_id != refund_id:
            raise IdempotencyError("this key is open for another refund")
        ours.calls += 1
        try:
            yield
        except OutcomeUnknownError:
            raise
        except RefundNotCancelableError:
            self._close(key, ours)
            raise
        except Exception:
            # This call canceled nothing. Another one with the same key may have.
            ours.calls -= 1
            if not ours.calls:
                self._close(key, ours)
            raise
        self._close(key, ours)

    def settle(self, event: RefundEvent) -> None:
        """Close what an event shows to be canceled.

        A key alone proves nothing: each account has its own, and events of before the
        cancel may come late. This service has one account, of which events name none.
        """
        key = event.idempotency_key or ""
        if (
            event.account is None
            and event.refund.status == "canceled"
            and event.refund.id == self.refund_of(key)
        ):
            del self._open[key]

    def _close(self, key: str, ours: _Cancellation) -> None:
        if self._open.get(key) is ours:  # the key may have been given again
            del self._open[key]


class _Cancellation:
    """A key that is open.

    Args:
        refund_id: What it cancels.
    """

    def __init__(self, refund_id: str) -> None:
        self.refund_id = refund_id
        self.calls = 0
        """Those that are under way, or whose outcome is unknown."""
