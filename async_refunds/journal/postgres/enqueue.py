"""Hand refunds over to a fleet, in a transaction of the caller's."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from async_refunds.protocol import validation
from async_refunds.results import CancelRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator

# Of one statement: a megabyte in the client, a tenth of a second in the database.
_CHUNK = 10_000
# With a name for each value, as drivers write them differently.
_ENSURE_RUN = """SELECT CAST(async_refunds.ensure_run({run}, {base_url}, {livemode},
    {tenant}, priority => {priority}) AS text)"""
# Ids as one text: drivers take long to encode an array. None of them has a comma.
_ENQUEUE = """SELECT async_refunds.enqueue({run},
    string_to_array(CAST({ids} AS text), ','),
    string_to_array(CAST({accounts} AS text), ','))"""
_STRIPE = "https://api.stripe.com"


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


async def ensure_run(
    connection: AsyncpgConnection | AsyncExecutor,
    run: str,
    *,
    livemode: bool,
    base_url: str = _STRIPE,
    tenant: str = "default",
    priority: int = 0,
) -> None:
    """Make a run, unless there is one of this name: what `enqueue` adds refunds to.

    It happens in the caller's transaction. A run that is there stays as it is.

    Args:
        connection: As `enqueue` has it. With others execute ``SELECT
            async_refunds.ensure_run(run, base_url, livemode)``, which does the same.
        run: Its name.
        livemode: ``True`` for live mode, where real money moves; else test mode.
            Workers with a key of this mode take its refunds, no others.
        base_url: Where the API is, the same as the workers have.
        tenant: Whose key it needs.
        priority: Of several runs the smallest number of an account goes first.

    Raises:
        TypeError: ``run`` is no ``str``.
        ValueError: ``base_url`` cannot be the address of an API, or ``run`` is empty or
            has an API key in it.
        Exception: The driver's: the run is there in another mode, at another address,
            or of another tenant.
    """
    origin = validation.base_url(base_url, plain_http=not livemode)
    await _send(
        connection,
        _ENSURE_RUN,
        run=validation.run_name(run),
        base_url=origin,
        livemode=livemode,
        tenant=tenant,
        priority=priority,
    )


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
        run: Its name. `ensure_run` makes it before, or ``async-refunds fleet enqueue``.
        stripe_account: The connected account of those that name none; ``None`` is the
            key's own.

    Returns:
        How many were not there before.

    Raises:
        TypeError: Something that is no id.
        ValueError: One that cannot be the id of a refund, or of an account.
        Exception: The driver's: there is no such run, or it is closing or closed.
    """
    added = 0
    for ids, accounts in _chunks(requests, stripe_account):
        added += await _send(connection, _ENQUEUE, run=run, ids=ids, accounts=accounts)
    return added


async def _send(
    connection: Any,  # noqa: ANN401 - any driver's
    query: str,
    **values: object,
) -> Any:  # noqa: ANN401 - as the function has it
    """Carry out a function with a driver, and return its value."""
    if hasattr(connection, "fetchval"):  # asyncpg
        numbers = {name: f"${place}" for place, name in enumerate(values, 1)}
        return await connection.fetchval(query.format(**numbers), *values.values())
    classes = type(connection).__mro__
    if any(each.__module__.startswith("sqlalchemy.") for each in classes):
        # Only whoever gave a connection of it has it.
        from sqlalchemy import text  # noqa: PLC0415

        statement = text(query.format(**{name: f":{name}" for name in values}))
        return (await connection.execute(statement, values)).scalar_one()
    marks = query.format(**{name: f"%({name})s" for name in values})
    # One that is prepared would be left in a pooler's session, for whoever is next.
    cursor = await connection.execute(marks.encode(), values, prepare=False)
    return (await cursor.fetchone())[0]


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
