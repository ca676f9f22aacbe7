"""What the chaos reads of the fleet's database, by SQL of its own."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.postgres_cluster import SUPERUSER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.postgres_cluster import PostgresNode

DATABASE = "postgres"

_ITEMS = """
SELECT refund_id, account, settled, outcome, idempotency_key, generation, error
FROM async_refunds.items ORDER BY number
"""
_SETTLED = "SELECT count(*) FROM async_refunds.items WHERE settled"
_OPEN = "SELECT count(*) FROM async_refunds.items WHERE NOT settled"
_LEFT = """
SELECT to_jsonb(l) || jsonb_build_object('now', clock_timestamp(),
        'open', count(*), 'sent', count(*) FILTER (WHERE i.maybe_sent),
        'its own', count(*) FILTER (WHERE i.claimed_by = l.token))
    FROM async_refunds.items i JOIN async_refunds.leases l USING (account)
    WHERE NOT i.settled GROUP BY l.scope, l.account
"""
# Which row was written last shows in its hidden columns.
_PRINT = """
SELECT md5(string_agg(format('%s %s %s', ctid, xmin, items), ',' ORDER BY number))
FROM async_refunds.items
"""


RUN = "chaos"


async def migrate(node: PostgresNode) -> None:
    """Make the fleet's tables."""
    await _operate(node, "init")


async def retry(node: PostgresNode) -> None:
    """Let workers go on with what they left open."""
    await _operate(node, "retry", RUN, "--outcome", "failed,unknown")


async def _operate(node: PostgresNode, *words: str) -> None:
    """Do something to the fleet as an operator does."""
    address = f"host={node.folder} user={SUPERUSER} dbname={DATABASE}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "async_refunds", "fleet", *words),
        *("--quiet", "--database", address),
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
    if code:
        raise RuntimeError(f"fleet {words[0]} ended with {code}")


async def enqueue(
    node: PostgresNode, base_url: str, refunds: Iterable[tuple[str, str]]
) -> None:
    """Add refunds, as pairs of id and account, in a transaction of our own."""
    ids, accounts = zip(*refunds, strict=True)
    async with await node.connect(DATABASE) as connection, connection.transaction():
        made = "SELECT async_refunds.ensure_run(%s, %s, false)"
        await connection.execute(made, (RUN, base_url))
        added = "SELECT async_refunds.enqueue(%s, %s, %s)"
        await connection.execute(added, (RUN, list(ids), list(accounts)))


@dataclass(frozen=True)
class Item:
    """What the database says of one refund."""

    refund_id: str
    account: str
    settled: bool
    outcome: str | None
    key: str | None
    generation: int
    error: str | None = None


async def items(node: PostgresNode) -> list[Item]:
    """Return all items."""
    async with await node.connect(DATABASE) as connection:
        cursor = await connection.execute(_ITEMS)
        return [Item(*row) for row in await cursor.fetchall()]


async def settled(node: PostgresNode) -> int:
    """Return how many items are settled."""
    return int(await node.value(DATABASE, _SETTLED))


async def open_items(node: PostgresNode) -> int:
    """Return how many items are not settled."""
    return int(await node.value(DATABASE, _OPEN))


async def fingerprint(node: PostgresNode) -> str:
    """Return what changes whenever any item is written."""
    return str(await node.value(DATABASE, _PRINT))


async def left(node: PostgresNode) -> list[str]:
    """Return for people what is open, and who holds it."""
    async with await node.connect(DATABASE) as connection:
        cursor = await connection.execute(_LEFT)
        return [str(row[0]) for row in await cursor.fetchall()]
