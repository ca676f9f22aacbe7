"""Which items are open, and which of them come next: read by index, never all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from .bulk import in_bulks, repeated
from .rows import ITEM_COLUMNS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

# As one value, which takes one step. The index of open items has them by account and
# number. IS finds NULL too.
_NEXT = """SELECT json_group_array(
        json_array(number, refund_id, settled, hex(facts), crc))
    FROM (SELECT number, refund_id, settled, facts, crc FROM items
        WHERE stripe_account IS ? AND settled = 0 AND number > ? AND failed_at = 0
        ORDER BY number LIMIT ?)"""
NextItem: TypeAlias = "tuple[int, str, int, str, int]"
"""Number, refund id, whether it is settled, facts in hexadecimal, checksum."""
_decode_next = msgspec.json.Decoder(list[tuple[int, str, int, str, int]]).decode
# Those that were asked for and failed, but in this batch.
_NEXT_FAILED = f"""SELECT {ITEM_COLUMNS} FROM items
    WHERE stripe_account IS ? AND settled = 0 AND number > ?
    AND failed_at > 0 AND failed_at NOT BETWEEN ? AND ?
    ORDER BY number LIMIT ?"""  # noqa: S608 - our own names
_OWN = """SELECT EXISTS (SELECT 1 FROM items
    WHERE stripe_account IS NULL AND settled = 0)"""
# From account to account by the index, not over each of their items.
_ACCOUNTS = """WITH RECURSIVE names (name) AS (
    SELECT min(stripe_account) FROM items WHERE settled = 0
    UNION ALL
    SELECT (SELECT min(stripe_account) FROM items
            WHERE settled = 0 AND stripe_account > name)
        FROM names WHERE name IS NOT NULL)
    SELECT name FROM names WHERE name IS NOT NULL"""


class OpenItems:
    """Goes through the open items of each account, oldest first.

    Args:
        now: Unix seconds, when the batch begins.
    """

    def __init__(self, now: float) -> None:
        # The last number given, by account, and of those that had failed before.
        self._last: dict[str | None, int] = {}
        self._last_failed: dict[str | None, int] = {}
        self._began_at = now

    def begin(self, now: float) -> None:
        """Begin again with the oldest items."""
        self._last.clear()
        self._last_failed.clear()
        self._began_at = now

    def next(
        self, db: sqlite3.Connection, limits: Mapping[str | None, int]
    ) -> Iterator[tuple[str | None, int, list[NextItem]]]:
        """Yield accounts with their limits and next open items, but those that failed.

        Args:
            db: With the tables.
            limits: How many items of each account are wanted.
        """
        for part in in_bulks(list(limits.items())):
            wanted = [
                value
                for account, limit in part
                for value in (account, self._last.get(account, 0), limit)
            ]
            (found,) = db.execute(repeated(_NEXT, len(part)), wanted)
            for (account, limit), encoded in zip(part, found, strict=True):
                rows = _decode_next(encoded)
                if rows:
                    self._last[account] = rows[-1][0]
                yield account, limit, rows

    def next_failed(
        self, db: sqlite3.Connection, account: str | None, limit: int, now: float
    ) -> list[tuple[Any, ...]]:
        """Return the next rows of an account that failed before this batch."""
        last = self._last_failed.get(account, 0)
        values = (account, last, self._began_at, now, limit)
        rows = db.execute(_NEXT_FAILED, values).fetchall()
        if rows:
            self._last_failed[account] = rows[-1][0]
        return rows


def open_accounts(db: sqlite3.Connection) -> list[str | None]:
    """Return the accounts that have open items."""
    ((own,),) = db.execute(_OWN)
    named = [name for (name,) in db.execute(_ACCOUNTS)]
    return [None, *named] if own else named
