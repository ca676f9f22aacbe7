"""What the tests of a fleet's journal share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fleets import Fleet

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture
def fleet(postgres_database: str) -> Generator[Fleet]:
    """A database with our tables."""
    made = Fleet(postgres_database)
    yield made
    made.close()
