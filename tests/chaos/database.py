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
_WRITTEN = """
SELECT number, ctid::text, xmin::text FROM async_refunds.items
WHERE claimed_by = ANY (%s::uuid[])
"""
# Who won and gave back which account when, noted by the database itself.
_WATCH = """
CREATE TABLE public.lease_log (account text, owner text, token uuid,
    at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION public.log_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.lease_log VALUES (NEW.account, NEW.owner, NEW.token);
    RETURN NULL;
END $$;
CREATE TRIGGER log_lease AFTER UPDATE OF token ON async_refunds.leases FOR EACH ROW
    WHEN (NEW.token IS DISTINCT FROM OLD.token) EXECUTE FUNCTION public.log_lease();
"""
# The tokens with which a worker held accounts that others have won after it.
_LOST = """
WITH last AS (SELECT DISTINCT ON (account) account, owner FROM lease_log
    WHERE token IS NOT NULL ORDER BY account, at DESC)
SELECT log.account, log.token::text FROM lease_log log JOIN last USING (account)
WHERE log.owner = %(worker)s AND last.owner <> %(worker)s
"""
_HELD = """
SELECT account FROM (SELECT DISTINCT ON (account) account, owner FROM lease_log
    WHERE at <= to_timestamp(%s) ORDER BY account, at DESC) last WHERE owner = %s
"""
_WON = """
SELECT account, extract(epoch FROM min(at))::float8 FROM lease_log
WHERE owner = %s AND token IS NOT NULL AND at > to_timestamp(%s) GROUP BY account
"""


RUN = "chaos"


async def migrate(node: PostgresNode) -> None:
    """Make the fleet's tables, and note from now on who holds what."""
    await _operate(node, "init")
    await node.execute(DATABASE, _WATCH)


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


@dataclass(frozen=True)
class Lost:
    """What a worker held when it was frozen, and others have won since."""

    accounts: frozenset[str]
    """All that it ever held and others have now: it may send for none of them."""
    at_freeze: int
    """How many of them it held when it was frozen."""
    tokens: tuple[str, ...]
    """With which it held them: it may write nothing with any."""


async def lost(node: PostgresNode, worker: str, frozen_at: float) -> Lost:
    """Return what a worker that is frozen has lost, by name and Unix seconds."""
    async with await node.connect(DATABASE) as connection:
        cursor = await connection.execute(_LOST, {"worker": worker})
        rows = await cursor.fetchall()
        held = await (await connection.execute(_HELD, [frozen_at, worker])).fetchall()
    accounts = frozenset(account for account, _ in rows)
    at_freeze = sum(account in accounts for (account,) in held)
    return Lost(accounts, at_freeze, tuple(token for _, token in rows))


async def written(node: PostgresNode, tokens: Iterable[str]) -> set[tuple[object, ...]]:
    """Return the versions of rows that holders with these tokens wrote last."""
    async with await node.connect(DATABASE) as connection:
        cursor = await connection.execute(_WRITTEN, [list(tokens)])
        return set(await cursor.fetchall())


async def won_since(node: PostgresNode, worker: str, at: float) -> dict[str, float]:
    """Return the accounts that a worker has won since then, and when, in Unix time."""
    async with await node.connect(DATABASE) as connection:
        cursor = await connection.execute(_WON, [worker, at])
        return dict(await cursor.fetchall())


async def left(node: PostgresNode) -> list[str]:
    """Return for people what is open, and who holds it."""
    async with await node.connect(DATABASE) as connection:
        cursor = await connection.execute(_LEFT)
        return [str(row[0]) for row in await cursor.fetchall()]
