"""What a service has to remember of its cancels: a table, in life."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_refunds import OutcomeUnknownError, RefundNotCancelableError

if TYPE_CHECKING:
    from collections.abc import Generator


class Cancellations:
    """The cancels whose outcome is not known, by their idempotency keys."""

    def __init__(self) -> None:
        self._refund_ids: dict[str, str] = {}

    def refund_of(self, key: str) -> str | None:
        """Return the refund that is to be asked for again; ``None`` if it is closed."""
        return self._refund_ids.get(key)

    @contextmanager
    def calling(self, key: str, refund_id: str) -> Generator[None]:
        """Keep a key for as long as it is not known what was done with it.

        It is written down before anything is sent: a process that ends in the midst, or
        a handler that is cancelled, leaves it open.
        """
        was_open = key in self._refund_ids
        self._refund_ids[key] = refund_id
        try:
            yield
        except OutcomeUnknownError:
            raise
        except RefundNotCancelableError:
            self.close(key)
            raise
        except Exception:
            # This call canceled nothing. An earlier one with the same key may have.
            if not was_open:
                self.close(key)
            raise
        self.close(key)

    def close(self, key: str | None) -> None:
        """Note that it is known: by an answer, or by a webhook with the key."""
        if key is not None:
            self._refund_ids.pop(key, None)
