"""What a run holds of refunds that somebody is about to add; nothing is changed."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.errors import JournalError

from .transactions import read_committed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection

    from async_refunds.results import CancelRequest

_RUN = "SELECT run_id::text, scope, state FROM async_refunds.runs WHERE name = %s"
_HELD = """SELECT count(*), count(*) FILTER (WHERE NOT settled)
    FROM async_refunds.items WHERE run_id = %s::uuid"""
_THERE = """SELECT count(*) FROM unnest(%s::text[], %s::text[]) AS given (id, account)
    JOIN async_refunds.items i ON i.run_id = %s::uuid AND i.account = given.account
        AND i.refund_id = given.id"""
# Rows of one statement.
_PAGE = 20_000


class RunContents(msgspec.Struct, frozen=True, kw_only=True):
    """What a run holds before refunds are added."""

    state: str | None
    """``open`` or ``paused``; ``None`` if there is no such run."""
    total: int = 0
    open: int = 0
    """Those of them that are not settled."""
    there: int = 0
    """How many of the refunds that are given it holds."""


def require_run(connection: Connection[Any], name: str, scope: str) -> None:
    """Make sure that a run, if it is there, takes refunds of a scope.

    As the functions that add them do; but nobody is asked anything in vain.

    Args:
        connection: To the database.
        name: Of the run.
        scope: Tenant, address and mode of the refunds.

    Raises:
        JournalError: It is closed, or of another scope.
    """
    _find(connection, name, scope)


def run_contents(
    connection: Connection[Any],
    name: str,
    scope: str,
    requests: Iterable[CancelRequest],
) -> RunContents:
    """Return what a run holds, and how many of these refunds.

    Args:
        connection: To the database.
        name: Of the run.
        scope: As `require_run` has it.
        requests: What is to be added, each once.

    Raises:
        JournalError: It takes none of them.
    """
    with read_committed(connection):
        connection.execute("SET TRANSACTION READ ONLY")
        found = _find(connection, name, scope)
        if found is None:
            return RunContents(state=None)
        run_id, state = found
        ((total, open_),) = connection.execute(_HELD, [run_id]).fetchall()
        there, rows = 0, iter(requests)
        while page := list(islice(rows, _PAGE)):
            ids = [each.refund_id for each in page]
            accounts = [each.stripe_account or "" for each in page]
            given = [ids, accounts, run_id]
            ((count,),) = connection.execute(_THERE, given).fetchall()
            there += count
        return RunContents(state=state, total=total, open=open_, there=there)


def _find(connection: Connection[Any], name: str, scope: str) -> tuple[str, str] | None:
    """Return id and state of a run; ``None`` if it is to be made."""
    row = connection.execute(_RUN, [name]).fetchone()
    if row is None:
        return None
    run_id, its_scope, state = row
    if its_scope != scope:
        raise JournalError(
            f"the run {name!r} is on {its_scope!r}, and this one is on {scope!r}: give "
            "another name"
        )
    if state not in ("open", "paused"):
        more = ", and takes no more refunds" if state == "closing" else ""
        raise JournalError(f"the run {name!r} is {state}{more}")
    return run_id, state
