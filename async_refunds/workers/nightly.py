"""`sweep`: enqueue the refunds that wait for the customer since long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from async_refunds.client import load_key
from async_refunds.journal.postgres.connection import Database

if TYPE_CHECKING:
    from collections.abc import Iterable

    from async_refunds.client import RefundsClient
    from async_refunds.journal.postgres.connection import Connection

_DAY = 86_400.0
_WAITING = "requires_action"
_CHUNK = 1000  # ids in one transaction
_RUN = "SELECT async_refunds.ensure_run(%s, %s, %s, %s)"
_ENQUEUE = "SELECT async_refunds.enqueue(%s, %s::text[], %s::text[])"


async def sweep(
    database: str,
    refunds: RefundsClient,
    *,
    run: str,
    older_than: float = 30 * _DAY,
    newer_than: float = 180 * _DAY,
    accounts: Iterable[str | None] = (None,),
    tenant: str = "default",
) -> int:
    """Enqueue the refunds that have been in ``requires_action`` for long.

    Reads the whole list of refunds, a hundred per request, since Stripe cannot list by
    status. What is in the run already is not added again.

    Args:
        database: As libpq has it.
        refunds: The client.
        run: The name of the run; it is made if there is none.
        older_than: Seconds since they were created.
        newer_than: How far back to look: a refund waits 45 days, and again if the bank
            returns the money.
        accounts: The connected accounts to look through, ``None`` for the key's own.
        tenant: Whose runs these are.

    Returns:
        How many were added.

    Raises:
        RefundsError: A page could not be read; what was found before is enqueued. Or
            the client's callable gave no key.
        JournalError: The tables are of another release.
        psycopg.Error: The database failed.
    """
    await load_key(refunds)  # the run keeps the mode
    now = time.time()
    first, end = (int(max(0.0, now - age)) for age in (newer_than, older_than))
    connection = await Database(database).connect()
    try:
        mode = (refunds.base_url, refunds.livemode, tenant)
        await connection.execute(_RUN, (run, *mode))
        added = 0
        for account in accounts:
            found: list[str] = []
            async for refund in refunds.list(
                created={"gte": first, "lt": end},
                stripe_account=account,
            ):
                # Also where a proxy in between passes over the query of the list.
                if refund.status == _WAITING and first <= refund.created < end:
                    found.append(refund.id)
                if len(found) == _CHUNK:
                    added += await _enqueue(connection, run, found, account)
                    found.clear()
            added += await _enqueue(connection, run, found, account)
        return added
    finally:
        await connection.close()


async def _enqueue(
    connection: Connection, run: str, ids: list[str], account: str | None
) -> int:
    cursor = await connection.execute(_ENQUEUE, (run, ids, [account or ""] * len(ids)))
    ((added,),) = await cursor.fetchall()
    return int(added)
