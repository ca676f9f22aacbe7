"""Hand refunds over to a fleet, in a transaction of the caller's."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from async_refunds.protocol import validation
from async_refunds.results import CancelRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

# Of one statement: a megabyte in the client, a tenth of a second in the database.
_CHUNK = 10_000
# Ids as one text: drivers take long to encode an array. None of them has a comma.
_FUNCTION = """SELECT async_refunds.enqueue({}, string_to_array(CAST({} AS text), ','),
    string_to_array(CAST({} AS text), ','))"""


class AsyncpgConnection(Protocol):
    """A connection of asyncpg, also one of its pool."""

    def fetchval(self, query: str, /, *args: Any) -> Awaitable[Any]:  # noqa: ANN401 - any values
        """Return the only value that a query finds."""
        ...


class AsyncExecutor(Protocol):
    """A connection or cursor of psycopg, or connection or session of SQLAlchemy."""

    def execute(self, statement: Any, parameters: Any, /) -> Awaitable[Any]:  # noqa: ANN401 - as each has it
        """Carry out a statement."""
        ...


async def enqueue(
    connection: AsyncpgConnection | AsyncExecutor,
    requests: Iterable[str | CancelRequest],
    *,
    run: str,
    stripe_account: str | None = None,
) -> int:
    """Add refunds to a run. They are worked on once the caller's transaction commits.

    A refund of an account that is in the run already is not added again.

    Args:
        connection: An asynchronous one of psycopg, asyncpg or SQLAlchemy, also a cursor
            or a session. With others execute ``SELECT async_refunds.enqueue(run, ids,
            accounts)``, which does the same.
        requests: The refunds. Read as they are sent, 10,000 at a time; with a
            connection in autocommit each of these is a transaction of its own.
        run: Its name. It is there already.
        stripe_account: The connected account of those that name none; ``None`` is the
            key's own.

    Returns:
        How many were not there before.

    Raises:
        TypeError: Something that is no id.
        ValueError: One that cannot be the id of a refund, or of an account.
        Exception: The driver's: there is no such run, or it is closed.
    """
    added = 0
    send = _sender(connection)
    for ids, accounts in _chunks(requests, stripe_account):
        added += await send(run, ids, accounts)
    return added


def _sender(
    connection: Any,  # noqa: ANN401 - any driver's
) -> Callable[[str, str, str | None], Awaitable[int]]:
    """Return what carries out the function with a driver."""
    if hasattr(connection, "fetchval"):
        return partial(connection.fetchval, _FUNCTION.format("$1", "$2", "$3"))
    classes = type(connection).__mro__
    if any(each.__module__.startswith("sqlalchemy.") for each in classes):
        return partial(_send_by_sqlalchemy, connection)
    return partial(_send_by_psycopg, connection)


async def _send_by_sqlalchemy(
    connection: AsyncExecutor, run: str, ids: str, accounts: str | None
) -> int:
    # Only whoever gave a connection of it has it.
    from sqlalchemy import text  # noqa: PLC0415

    values = {"run": run, "ids": ids, "accounts": accounts}
    statement = text(_FUNCTION.format(":run", ":ids", ":accounts"))
    added: int = (await connection.execute(statement, values)).scalar_one()
    return added


async def _send_by_psycopg(
    connection: AsyncExecutor, run: str, ids: str, accounts: str | None
) -> int:
    statement = _FUNCTION.format("%s", "%s", "%s")
    cursor = await connection.execute(statement.encode(), (run, ids, accounts))
    added: int = (await cursor.fetchone())[0]
    return added


def _chunks(
    requests: Iterable[str | CancelRequest], stripe_account: str | None
) -> Iterator[tuple[str, str | None]]:
    """Yield the ids of refunds and the account of each, by commas.

    No accounts if all are the key's own: the text of one of these would be empty.
    """
    if stripe_account is not None:
        stripe_account = validation.account_id(stripe_account)
    given = iter(requests)
    while chunk := list(islice(given, _CHUNK)):
        ids: list[str] = []
        accounts: list[str] = []
        for request in chunk:
            account = stripe_account
            if isinstance(request, CancelRequest):
                if request.stripe_account is not None:
                    account = validation.account_id(request.stripe_account)
                request = request.refund_id  # noqa: PLW2901 - its id counts
            ids.append(validation.refund_id(request))
            accounts.append(account or "")
        yield ",".join(ids), ",".join(accounts) if any(accounts) else None
