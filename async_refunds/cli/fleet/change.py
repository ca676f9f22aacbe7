"""A change of the database, and what is certain of it when a command ends early."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import psycopg
import typer

from async_refunds.cli.exit_codes import NOT_ALL
from async_refunds.cli.output import OutputLostError, interruptible, print_error
from async_refunds.journal.postgres.transactions import read_committed

if TYPE_CHECKING:
    from collections.abc import Generator

Connection: TypeAlias = "psycopg.Connection[tuple[object, ...]]"


class Change:
    """What a command changes, and what may be said of it at each moment.

    A commit without an answer may have taken effect: a server that waits for a standby
    has committed already, also when Ctrl-C or a lost network ends the wait.

    Args:
        undone: What is said until the commit begins.
        in_doubt: What is said from then on, until the server has answered.
    """

    def __init__(self, undone: str, in_doubt: str) -> None:
        self.said = undone
        """What is certain now."""
        self._undone, self._in_doubt = undone, in_doubt

    @contextmanager
    def transaction(self, connection: Connection) -> Generator[None]:
        """Change something in one transaction, which is committed after the block."""
        try:
            with read_committed(connection):
                yield
                self.said = self._in_doubt
        except psycopg.Error:
            # A server that answers a commit with an error has made nothing of it.
            if not connection.closed:
                self.said = self._undone
            raise

    def done(self, said: str) -> None:
        """Note that the server has answered: it is committed.

        Args:
            said: What is certain from now on.
        """
        self.said = said

    @contextmanager
    def told(self) -> Generator[None]:
        """End the command with what is certain when Ctrl-C or stdout ends the block."""
        try:
            with interruptible(lambda: self.said):
                yield
        except OutputLostError as error:
            print_error(f"{error}: {self.said}")
            raise typer.Exit(NOT_ALL) from None
