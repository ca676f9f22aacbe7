"""What is not needed any more is forgotten, and ends without a word."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import psycopg

from async_refunds.journal.postgres import Database
from async_refunds.journal.postgres.administration import prune
from async_refunds.journal.postgres.connection import Link
from async_refunds.journal.postgres.given_out import GivenOut
from async_refunds.journal.postgres.leases import Lease
from tests.support.fleets import until

from .test_outages import no_work

if TYPE_CHECKING:
    import pytest

    from async_refunds.journal.postgres import Leases
    from tests.support.fleets import Fleet


def test_loop_that_ends_while_the_database_is_away_ends_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def leave() -> None:
        working = asyncio.create_task(Link(Database("host=/nowhere")).repeat(no_work))
        await until(lambda: "trying again" in caplog.text)
        del working

    asyncio.run(leave())
    assert "never retrieved" not in caplog.text


def test_accounts_that_are_not_held_any_more_are_forgotten_once_they_are_many() -> None:
    class Held:
        accounts = ("acct_0",)

        def get(self, account: str | None) -> Lease | None:
            return leases[0] if account == "acct_0" else None

    given_out = GivenOut()
    leases = [Lease(f"acct_{number}", "token", None, 0) for number in range(103)]
    for lease in leases[:102]:
        given_out.cursor(lease)["run"] = 7
    given_out.forget_all_but(cast("Leases", Held()))
    assert given_out.cursor(leases[1]) == {"run": 7}, "a few are kept"
    given_out.cursor(leases[102])["run"] = 7
    given_out.forget_all_but(cast("Leases", Held()))
    assert given_out.cursor(leases[0]) == {"run": 7}
    assert given_out.cursor(leases[1]) == {}


def test_results_are_pruned_also_without_a_word_of_it(fleet: Fleet) -> None:
    fleet.add(["re_1", "re_2"])
    fleet.do("UPDATE async_refunds.items SET settled = true, known_at = '-infinity'")
    with psycopg.connect(fleet.address, autocommit=True) as connection:
        assert prune(connection, 0.0) == 2
        assert prune(connection, 0.0) == 0
