"""What a batch may rely on of a run that is closed, wherever its journal is kept."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Protocol

import psycopg
import pytest

from async_refunds import RefundsClient, cancel_many
from async_refunds.emulator import Emulator
from async_refunds.errors import InvalidRequestError, JournalError
from async_refunds.journal import Run, RunClosedError, SqliteJournal
from async_refunds.journal.postgres import PostgresJournal, administration
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from async_refunds.journal import Claim, Journal, Record
    from async_refunds.results import CancelOutcome

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)
LONG_AGO = 25 * 3600.0
"""Seconds after which Stripe may have forgotten a key."""


class Kept(Protocol):
    """A run that is kept somewhere."""

    def opened(
        self, run: Run = RUN, *, ago: float = 0.0
    ) -> AbstractAsyncContextManager[Journal]:
        """Open its journal until the end of the block, perhaps so many seconds ago."""
        ...

    def close(self) -> None:
        """Close the run, as an operator does while nobody works."""
        ...


class InSqlite:
    """A run in a file."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        folder: Path = request.getfixturevalue("tmp_path")
        self._path = folder / "run.sqlite3"

    @asynccontextmanager
    async def opened(
        self, run: Run = RUN, *, ago: float = 0.0
    ) -> AsyncGenerator[Journal]:
        made = None if self._path.exists() else run
        async with SqliteJournal.open(
            self._path, made, clock=lambda: time.time() - ago
        ) as journal:
            yield journal

    def close(self) -> None:
        with SqliteJournal.open(self._path) as journal:
            journal.close_run()


class InPostgres:
    """A run in a database."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._address: str = request.getfixturevalue("postgres_database")

    @asynccontextmanager
    async def opened(
        self, run: Run = RUN, *, ago: float = 0.0
    ) -> AsyncGenerator[Journal]:
        async with await PostgresJournal.open(
            self._address, run, name="run"
        ) as journal:
            yield journal
        if ago:
            with closing(psycopg.connect(self._address, autocommit=True)) as database:
                database.execute(
                    """UPDATE async_refunds.items SET
                        claimed_at = claimed_at - make_interval(secs => %s)""",
                    [ago],
                )

    def close(self) -> None:
        with closing(psycopg.connect(self._address, autocommit=True)) as database:
            administration.close(database, "run")


KINDS: dict[str, Callable[[pytest.FixtureRequest], Kept]] = {
    "sqlite": InSqlite,
    "postgres": InPostgres,
}


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest) -> Kept:
    return KINDS[request.param](request)


def result(claim: Claim, outcome: CancelOutcome, error: str = "") -> CancelResult:
    refused = InvalidRequestError(error, status_code=404, attempts=())
    return CancelResult(
        refund_id=claim.refund_id,
        stripe_account=claim.stripe_account,
        outcome=outcome,
        error=refused if error else None,
        idempotency_key=claim.idempotency_key,
        settled=outcome not in ("failed", "unknown"),
    )


async def begin(kept: Kept) -> None:
    """Have one canceled, one refused, two perhaps sent, two never sent; close it."""
    async with kept.opened() as journal:
        names = ("canceled", "refused", "unknown", "in_flight", "given_back", "new")
        await journal.add([CancelRequest(f"re_{name}") for name in names])
        canceled, refused, unknown, _, given_back = await claimed(journal, None, 5)
        await journal.settle(
            [
                (canceled, result(canceled, "canceled")),
                (refused, result(refused, "failed", "no such refund")),
                (unknown, result(unknown, "unknown")),
            ]
        )
        await journal.give_back([given_back])
    await asyncio.to_thread(kept.close)


def known(journal: Journal) -> dict[str, Record]:
    return {each.refund_id: each for each in journal.records()}


async def test_what_was_never_sent_is_failed_and_what_perhaps_was_is_not(
    kept: Kept,
) -> None:
    await begin(kept)
    async with kept.opened() as journal:
        told = known(journal)
        assert journal.tally().open == 2
    assert {
        name: (each.outcome, each.settled, each.error) for name, each in told.items()
    } == {
        "re_canceled": ("canceled", True, None),
        "re_refused": ("failed", True, "no such refund; then its run was closed"),
        "re_unknown": ("unknown", False, None),
        "re_in_flight": ("unknown", False, None),
        "re_given_back": (
            *("failed", True),
            "re_given_back was not canceled: its run was closed",
        ),
        "re_new": ("failed", True, "re_new was not canceled: its run was closed"),
    }


async def test_only_what_was_perhaps_sent_is_given_out_and_a_no_is_its_end(
    kept: Kept,
) -> None:
    await begin(kept)
    async with kept.opened() as journal:
        before = known(journal)
        assert await journal.accounts() == [None]
        journal.begin()
        first, second = await claimed(journal, None, 9)
        assert {first.refund_id, second.refund_id} == {"re_unknown", "re_in_flight"}
        for claim in (first, second):
            assert claim.maybe_sent
            assert claim.idempotency_key == before[claim.refund_id].idempotency_key
        await journal.settle(
            [
                (first, result(first, "failed", "no such refund")),
                (second, result(second, "unknown")),
            ]
        )
        journal.end()
        told = known(journal)
        assert journal.tally().open == 1
    assert told[first.refund_id].settled
    assert told[first.refund_id].outcome == "failed"
    assert told[first.refund_id].error == "no such refund; then its run was closed"
    assert (told[second.refund_id].outcome, told[second.refund_id].settled) == (
        "unknown",
        False,
    )
    async with kept.opened() as journal:
        (again,) = await claimed(journal, None, 9)
        assert again.refund_id == second.refund_id
        assert again.idempotency_key == second.idempotency_key


async def test_closed_run_makes_no_new_key(kept: Kept) -> None:
    await begin(kept)
    async with kept.opened() as journal:
        before = known(journal)
        claims = await claimed(journal, None, 9)
        assert len(claims) == 2
        for claim in claims:
            with pytest.raises(RunClosedError):
                await journal.rekey(claim)
        await journal.give_back(claims)
        assert known(journal) == before


async def test_closed_run_takes_no_more_refunds(kept: Kept) -> None:
    await begin(kept)
    async with kept.opened() as journal:
        before = known(journal)
        with pytest.raises(JournalError, match="takes no more refunds"):
            await journal.add([CancelRequest("re_more")])
    async with kept.opened() as journal:
        assert known(journal) == before


async def test_closing_twice_changes_nothing(kept: Kept) -> None:
    await begin(kept)
    async with kept.opened() as journal:
        before = known(journal)
    await asyncio.to_thread(kept.close)
    async with kept.opened() as journal:
        assert known(journal) == before


async def test_refund_of_a_closed_run_gets_no_new_key_once_its_own_is_too_old(
    kept: Kept,
) -> None:
    """It waits still, so it was not canceled; a new key would cancel it."""
    stripe = Emulator()
    waits, canceled = stripe.seed_refunds(2)
    async with (
        stripe.serve() as url,
        RefundsClient("sk_test_1", base_url=url) as client,
    ):
        run = Run(url, livemode=False)
        async with kept.opened(run, ago=LONG_AGO) as journal:
            await journal.add([CancelRequest(waits), CancelRequest(canceled)])
            journal.begin()
            assert len(await claimed(journal, None, 2)) == 2
        async with RefundsClient("sk_test_1", base_url=url) as before:
            await before.cancel(canceled)
        await asyncio.to_thread(kept.close)
        async with kept.opened(run) as journal:
            told = {
                each.refund_id: each
                async for each in cancel_many(client, (), journal=journal)
            }
            settled = known(journal)
            assert journal.tally().open == 0
    assert (told[waits].outcome, told[canceled].outcome) == ("failed", "canceled")
    assert "still in requires_action" in str(told[waits].error)
    assert waits not in stripe.books.cancellations
    assert stripe.books.requests["cancel"] == 1
    assert (settled[waits].outcome, settled[waits].settled) == ("failed", True)
    assert (settled[waits].error or "").endswith("; then its run was closed")
