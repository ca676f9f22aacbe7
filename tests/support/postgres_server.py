"""A PostgreSQL server for the tests of one process, with a database for each.

``ASYNC_REFUNDS_TEST_DATABASE`` points them at another server: the address of a database
whose user may create others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from async_refunds.journal.postgres.schema import migrate

from .postgres_cluster import SUPERUSER, as_system_user, binary, server_folder

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_STARTS_WITHIN = 20.0  # seconds
# Small, and without regard for a power cut. What autovacuum does depends on time.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "listen_addresses": "",
}


class PostgresServer:
    """A server on which tests make databases, each a copy of one with our tables.

    Args:
        address: Of its database ``postgres``, as libpq has it.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._names = (f"test_{os.getpid()}_{number}" for number in range(1_000_000))
        self._template: str | None = None

    @contextmanager
    def database(self, *, migrated: bool = True) -> Generator[str]:
        """Give the address of a new database until the end of the block."""
        if migrated and self._template is None:
            self._template = self._create(None)
            with psycopg.connect(self.address_of(self._template)) as connection:
                migrate(connection)
        name = self._create(self._template if migrated else None)
        try:
            yield self.address_of(name)
        finally:
            self._drop(name)

    def close(self) -> None:
        """Drop what is left."""
        if self._template is not None:
            self._drop(self._template)

    def address_of(self, name: str) -> str:
        """Return the address of a database."""
        return make_conninfo(self._address, dbname=name)

    def _create(self, template: str | None) -> str:
        name = next(self._names)
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template or "template0")
            )
        )
        return name

    def _drop(self, name: str) -> None:
        # Also if a test has left a connection open.
        self._execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(statement)


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
    with server_folder() as folder, _started(folder, settings):
        yield PostgresServer(_address(folder))


@contextmanager
def _started(folder: Path, more: dict[str, str]) -> Generator[None]:
    system_user: Any = as_system_user()
    data = str(folder / "data")
    subprocess.run(  # noqa: S603 - our own
        [
            *(binary("initdb"), "-D", data, "-U", SUPERUSER, "--auth=trust"),
            *("--no-sync", "--encoding=utf8", "--locale=C"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        **system_user,
    )
    settings = {**_SETTINGS, "unix_socket_directories": str(folder), **more}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own
            [
                *(binary("postgres"), "-D", data),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it is not interrupted with the tests, but by us
            **system_user,
        )
    try:
        _wait_for(process, folder)
        yield
    finally:
        # At once (https://www.postgresql.org/docs/current/server-shutdown.html): nobody
        # needs its data any more.
        process.send_signal(signal.SIGQUIT)
        process.wait()


def _wait_for(process: subprocess.Popen[Any], folder: Path) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while process.poll() is None and time.monotonic() < until:
        with suppress(psycopg.OperationalError):
            psycopg.connect(_address(folder)).close()
            return
        time.sleep(0.02)
    raise RuntimeError((folder / "log").read_text()[-2000:])


def _address(folder: Path) -> str:
    return make_conninfo(host=str(folder), user=SUPERUSER, dbname="postgres")
