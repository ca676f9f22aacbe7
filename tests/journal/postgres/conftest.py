"""What the tests of a fleet's journal share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fleets import SCOPE, Fleet

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture
def fleet(postgres_database: str) -> Generator[Fleet]:
    """A database with our tables."""
    made = Fleet(postgres_database)
    yield made
    made.close()


@pytest.fixture(params=["few", "many"])
def both_ways(fleet: Fleet, request: pytest.FixtureRequest) -> None:
    """Have free accounts without work beside, so many that work is looked for first."""
    if request.param == "many":
        fleet.do(
            """INSERT INTO async_refunds.leases (scope, account)
                SELECT %s, 'acct_settled_' || n FROM generate_series(1, 1001) n""",
            SCOPE,
        )
