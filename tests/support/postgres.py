"""Fixtures: a database of a real PostgreSQL server for each test that asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .postgres_server import PostgresServer, running_server

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def postgres_server() -> Generator[PostgresServer]:
    """The server of this process, started when the first test asks for it."""
    with running_server() as server:
        yield server


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Generator[str]:
    """The address of a database of this test's own, with our tables."""
    with postgres_server.database() as address:
        yield address


@pytest.fixture
def postgres_empty_database(postgres_server: PostgresServer) -> Generator[str]:
    """The same, without tables."""
    with postgres_server.database(migrated=False) as address:
        yield address
