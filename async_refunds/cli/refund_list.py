"""The refunds to cancel, each once, kept on disk until all are checked."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Self

from async_refunds.results import CancelRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_ADD = "INSERT OR IGNORE INTO refunds (refund_id, account) VALUES (?, ?)"

_HAS = "SELECT 1 FROM refunds WHERE (refund_id, account) = (?, ?)"


class RefundList:
    """The refunds to cancel, each once, in the order in which they were added.

    They are kept in a temporary file, which SQLite removes. Close the list.

    Args:
        account: The connected account of those that name none.
    """

    def __init__(self, account: str | None = None) -> None:
        self.count = 0
        self.duplicates = 0
        """How often a refund was added that is in the list already."""
        self._account = account
        # https://www.sqlite.org/inmemorydb.html#temp_db
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute(
            "CREATE TABLE refunds (number INTEGER PRIMARY KEY, refund_id, account, "
            "UNIQUE (refund_id, account))"
        )
        self._db.execute("BEGIN")

    def add(self, request: CancelRequest) -> bool:
        """Add a refund, unless it is in the list; tell whether it was added.

        Raises:
            OSError: The disk is full.
        """
        account = request.stripe_account or self._account or ""
        try:
            added = self._db.execute(_ADD, (request.refund_id, account)).rowcount
        except sqlite3.Error as error:
            raise OSError(f"the temporary file: {error}") from error
        self.count += added
        self.duplicates += 1 - added
        return added > 0

    def __iter__(self) -> Iterator[CancelRequest]:
        rows = self._db.execute(
            "SELECT refund_id, account FROM refunds ORDER BY number"
        )
        for refund_id, account in rows:
            yield CancelRequest(refund_id, account or None)

    def has(self, refund_id: str, account: str | None) -> bool:
        """Tell whether it has a refund of an account, ``None`` for the key's own."""
        return self._db.execute(_HAS, (refund_id, account or "")).fetchone() is not None

    def accounts(self) -> list[str]:
        """Return the connected accounts of the refunds, in alphabetical order."""
        query = "SELECT DISTINCT account FROM refunds WHERE account != '' ORDER BY 1"
        return [account for (account,) in self._db.execute(query)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()
