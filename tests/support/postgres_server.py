"""A PostgreSQL server for the tests of one process, with a database for each.

``ASYNC_REFUNDS_TEST_DATABASE`` points them at another server: the address of a database
whose user may create others.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from async_refunds.cli.embedded_postgres import embedded_server
from async_refunds.journal.postgres.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Generator

# What a test may have left open.
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}"
# The tables but `meta`; the sequence begins again.
_EMPTY = """TRUNCATE async_refunds.items, async_refunds.leases, async_refunds.runs,
        async_refunds.timelines;
    ALTER SEQUENCE async_refunds.item_numbers RESTART;
    SELECT async_refunds.note_timeline()"""
# What no test changes and leaves behind unseen: tables, columns, functions, versions.
_STRUCTURE = """SELECT md5(string_agg(part, ' ' ORDER BY part)) FROM (
    SELECT concat(oid, relname) FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT concat(attrelid, attname) FROM pg_attribute
        WHERE attrelid >= 16384 AND attnum > 0
    UNION ALL SELECT concat(proname, md5(prosrc)) FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT concat(tgrelid, tgname) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT meta::text FROM async_refunds.meta
) AS parts (part)"""


class PostgresServer:
    """A server on which tests make databases, each a copy of one with our tables.

    Args:
        address: Of its database ``postgres``, as libpq has it.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._names = (f"test_{os.getpid()}_{number}" for number in range(1_000_000))
        self._template: str | None = None
        self._made_as = ""  # the template's structure
        self._clean: list[str] = []  # used before, and as new again

    @contextmanager
    def database(
        self, *, migrated: bool = True, encoding: str | None = None
    ) -> Generator[str]:
        """Give the address of an empty database until the end of the block.

        Args:
            migrated: With our tables.
            encoding: Of one without tables, if another one than the server's.
        """
        if not migrated:
            name = self._create(None, encoding)
            try:
                yield self.address_of(name)
            finally:
                self._drop(name)
            return
        name = self._clean.pop() if self._clean else self._create(self._made_template())
        try:
            yield self.address_of(name)
        finally:
            self._put_back(name)

    def _made_template(self) -> str:
        if self._template is None:
            self._template = self._create(None)
            with psycopg.connect(self.address_of(self._template)) as connection:
                migrate(connection)
                self._made_as = _structure(connection)
        return self._template

    def _put_back(self, name: str) -> None:
        """Empty a database, which takes a tenth of the time that a new one does."""
        self._execute(sql.SQL(_TERMINATE).format(name))
        with psycopg.connect(self.address_of(name), autocommit=True) as connection:
            as_made = _structure(connection) == self._made_as
            if as_made:
                connection.execute(_EMPTY)
        if as_made:
            self._clean.append(name)
        else:
            self._drop(name)

    def close(self) -> None:
        """Drop what is left."""
        for name in self._clean:
            self._drop(name)
        if self._template is not None:
            self._drop(self._template)

    def address_of(self, name: str) -> str:
        """Return the address of a database."""
        return make_conninfo(self._address, dbname=name)

    def _create(self, template: str | None, encoding: str | None = None) -> str:
        name = next(self._names)
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        if encoding is not None:
            statement += sql.SQL(" ENCODING {} LOCALE 'C'").format(encoding)
        self._execute(statement)
        return name

    def _drop(self, name: str) -> None:
        # Also if a test has left a connection open.
        self._execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(statement)


def _structure(connection: psycopg.Connection[Any]) -> str:
    try:
        ((found,),) = connection.execute(_STRUCTURE).fetchall()
    except psycopg.errors.UndefinedTable:
        return ""
    return str(found)


@contextmanager
def running_server(**settings: str) -> Generator[PostgresServer]:
    """Give the server that the environment names, or start one until the block ends.

    Args:
        settings: Of the one that is started.
    """
    if given := os.environ.get("ASYNC_REFUNDS_TEST_DATABASE"):
        server = PostgresServer(given)
        yield server
        server.close()
        return
    # What autovacuum does depends on time.
    with embedded_server(**{"autovacuum": "off", **settings}) as address:
        yield PostgresServer(address)
