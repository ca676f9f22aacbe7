"""What the database of the demo says: how far it is, and who holds which account."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

if TYPE_CHECKING:
    import psycopg

_Connection: TypeAlias = "psycopg.AsyncConnection[tuple[Any, ...]]"

# The database has nothing but the demo's run.
_LOOK = """
SELECT l.account, l.owner,
    l.token IS NOT NULL AND l.until > clock_timestamp(),
    l.retry_at > clock_timestamp(),
    coalesce(extract(epoch FROM l.acquired_at), 0)::float8,
    count(*) FILTER (WHERE NOT i.settled), count(*) FILTER (WHERE i.settled),
    extract(epoch FROM statement_timestamp())::float8
FROM async_refunds.leases l JOIN async_refunds.items i USING (account)
GROUP BY l.scope, l.account ORDER BY l.account
"""


class AccountView(msgspec.Struct, frozen=True):
    """One account. Times are Unix seconds of the database's clock."""

    stripe_account: str
    owner: str | None
    """Which worker holds it, or ended without releasing it."""
    held: bool
    """Whether that is still so."""
    waits: bool
    """Whether what was left with a result is not asked for again yet."""
    acquired_at: float
    """When a worker took it last."""
    open: int
    """Refunds that are not settled."""
    settled: int


class FleetView(msgspec.Struct, frozen=True):
    """All accounts, at a moment."""

    accounts: list[AccountView]
    now: float = 0.0

    @property
    def settled(self) -> int:
        """How many refunds are settled."""
        return sum(each.settled for each in self.accounts)

    @property
    def open(self) -> int:
        """How many are not."""
        return sum(each.open for each in self.accounts)

    @property
    def stands_still(self) -> bool:
        """Whether workers wait before they ask again for all that is left."""
        left = [each for each in self.accounts if each.open]
        return bool(left) and all(each.waits and not each.held for each in left)

    def held(self) -> dict[str, list[AccountView]]:
        """Return the accounts that each worker holds, by its name."""
        found: defaultdict[str, list[AccountView]] = defaultdict(list)
        for each in self.accounts:
            if each.held and each.owner is not None:
                found[each.owner].append(each)
        return dict(sorted(found.items()))


def busiest(held: dict[str, list[AccountView]]) -> str:
    """Return the worker that holds most accounts, of one or more.

    Those with something left count first.
    """

    def weight(name: str) -> tuple[int, int]:
        accounts = held[name]
        return sum(each.open > 0 for each in accounts), len(accounts)

    return max(held, key=weight)


class Observer:
    """Looks at the demo's database, and changes nothing.

    Args:
        connection: To it, in autocommit mode.
    """

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def look(self) -> FleetView:
        """Return what is there now."""
        cursor = await self._connection.execute(_LOOK)
        rows = await cursor.fetchall()
        return FleetView([AccountView(*row) for *row, _ in rows], rows[0][-1])
