"""What a worker makes sure of before it begins: a database, and a key."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg

from async_refunds import telemetry
from async_refunds.client import load_key
from async_refunds.errors import APITimeoutError, AuthenticationError, JournalError
from async_refunds.journal.postgres.connection import (
    TRANSIENT,
    answering_within,
    describe,
    is_refusal,
)
from async_refunds.journal.postgres.outage import WAITING
from async_refunds.journal.postgres.schema import (
    HISTORY_QUERY,
    RIGHTS_QUERY,
    history_warning,
    require_rights,
)

if TYPE_CHECKING:
    from async_refunds.client import RefundsClient
    from async_refunds.journal.postgres.connection import Database

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between attempts to connect
_PATIENCE = 5.0  # seconds for an answer
_ASK_AGAIN = 5.0  # seconds until a callable that gave no key is called again


async def wait_for_database(database: Database, stop: asyncio.Event) -> bool:
    """Wait until the database answers, and warn if it hides its history.

    Args:
        database: Where the tables are.
        stop: Ends the wait.

    Returns:
        Whether it has answered; else the worker is to stop.

    Raises:
        JournalError: What does not pass: a wrong password, a missing database, a right
            that its role lacks, tables of another release.
    """
    stopping = asyncio.create_task(stop.wait())
    pause = _FIRST_PAUSE
    try:
        while not stop.is_set():
            checking = asyncio.create_task(_check(database))
            try:
                await asyncio.wait(
                    [checking, stopping], return_when=asyncio.FIRST_COMPLETED
                )
                if not checking.done():
                    return False
                checking.result()
            except TRANSIENT as error:
                what = describe(error)
                if is_refusal(error):
                    raise JournalError(
                        f"cannot connect to the database: {what}"
                    ) from None
                database.outage.away(stop, WAITING, what)
            except psycopg.Error as error:
                raise JournalError(f"the database refuses: {describe(error)}") from None
            else:
                database.outage.back(stop)
                return True
            finally:
                # It may be connecting over a network that carries nothing.
                checking.cancel()
                await asyncio.gather(checking, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        stopping.cancel()
    return False


async def wait_for_key(refunds: RefundsClient, stop: asyncio.Event) -> bool:
    """Wait until the client's callable gives a key, which tells the mode of the runs.

    Args:
        refunds: The client; with a key of its own there is nothing to wait for.
        stop: Ends the wait.

    Returns:
        Whether there is a key; else the worker is to stop.
    """
    stopping = asyncio.create_task(stop.wait())
    told = ""
    try:
        while not stop.is_set():
            loading = asyncio.create_task(load_key(refunds))
            try:
                await asyncio.wait(
                    [loading, stopping], return_when=asyncio.FIRST_COMPLETED
                )
                if not loading.done():
                    return False
                loading.result()
            except (AuthenticationError, APITimeoutError) as error:
                if told != str(error):
                    told = str(error)
                    telemetry.log(logging.WARNING, "%s; trying again", error)
            else:
                return True
            finally:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            await asyncio.wait([stopping], timeout=_ASK_AGAIN)
    finally:
        stopping.cancel()
    return False


async def _check(database: Database) -> None:
    """Connect once, look at the role's rights, and warn of a hidden history."""
    connection = await database.connect(patience=_PATIENCE)
    try:
        with answering_within(_PATIENCE, connection):
            cursor = await connection.execute(RIGHTS_QUERY)
            require_rights(await cursor.fetchone())
            cursor = await connection.execute(HISTORY_QUERY)
            warning = history_warning(await cursor.fetchone())
    finally:
        await connection.close()
    if warning is not None:
        telemetry.log(logging.WARNING, "%s", warning)
