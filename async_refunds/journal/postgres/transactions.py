"""Transactions of ours on a connection of somebody else's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Generator

    from psycopg import Connection

# What takes long is waited for, and what was told survives a crash of the server, also
# where a database or a role sets something else for its sessions.
_SETTINGS = """SELECT set_config('statement_timeout', '0', true),
    set_config('lock_timeout', '0', true), set_config('synchronous_commit',
        replace(current_setting('synchronous_commit'), 'off', 'on'), true)"""


@contextmanager
def read_committed(connection: Connection[Any]) -> Generator[None]:
    """Carry out a block in one transaction, each statement of which sees the newest.

    A database or a role may set another level for its sessions. There a statement that
    has waited for others does not see what they have changed, or fails. In a
    transaction that the caller has begun already, the caller's settings stay.

    Args:
        connection: A synchronous one. Nothing of it is changed for later: it may be
            one of a pooler's, which others get next.
    """
    begins_here = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if begins_here:
            connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.execute(_SETTINGS)
        yield
