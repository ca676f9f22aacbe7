"""A worker as one must not be: no lease, and a new key for each try.

It stands for any fault of that kind: the judge must see what it does. Run as
``python -m tests.chaos.careless_worker --base-url URL``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import psycopg

from async_refunds import RefundNotCancelableError, RefundsClient, RefundsError

_FIND = """
SELECT refund_id, account FROM async_refunds.items
WHERE NOT settled ORDER BY random() LIMIT 30
"""
_KEEP = """
UPDATE async_refunds.items SET settled = true, outcome = %s, idempotency_key = %s
WHERE refund_id = %s
"""


async def main(base_url: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with RefundsClient(os.environ["STRIPE_API_KEY"], base_url=base_url) as client:
        while not stopped.is_set():
            try:
                await _round(client)
            except psycopg.OperationalError:
                await asyncio.sleep(0.2)


async def _round(client: RefundsClient) -> None:
    async with await psycopg.AsyncConnection.connect(
        os.environ["ASYNC_REFUNDS_DATABASE"], autocommit=True
    ) as connection:
        rows = await (await connection.execute(_FIND)).fetchall()
        for kept in await asyncio.gather(*(_cancel(client, *row) for row in rows)):
            if kept is not None:
                await connection.execute(_KEEP, kept)
    await asyncio.sleep(0 if rows else 0.2)


async def _cancel(
    client: RefundsClient, refund_id: str, account: str
) -> tuple[str, str | None, str] | None:
    try:
        refund = await client.cancel(refund_id, stripe_account=account, timeout=3)
    except RefundNotCancelableError:
        return "already_canceled", None, refund_id
    except RefundsError:
        return None
    assert refund.last_response is not None
    return "canceled", refund.last_response.idempotency_key, refund_id


if __name__ == "__main__":
    asyncio.run(main(sys.argv[sys.argv.index("--base-url") + 1]))
