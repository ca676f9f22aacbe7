"""`cancel_many` over PostgreSQL tells each refund, or says which it could not."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from async_refunds import Batch, RefundsClient
from async_refunds.emulator import Emulator
from async_refunds.errors import JournalError
from async_refunds.journal import Run
from async_refunds.journal.postgres import PostgresJournal, administration
from async_refunds.journal.postgres.given_out import GivenOut
from async_refunds.results import CancelRequest
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from async_refunds import CancelResult
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


class Alone:
    """The only process that works on a run."""

    def __init__(
        self, fleet: Fleet, stripe: Emulator, refunds: RefundsClient, url: str
    ) -> None:
        self.fleet, self.stripe, self.refunds = fleet, stripe, refunds
        self.run = Run(url, livemode=False)
        self.fleet.do("SELECT async_refunds.ensure_run('run', %s, false)", url)
        self.results: dict[str, CancelResult] = {}

    def enqueue(self, ids: Sequence[str]) -> None:
        """Add refunds as another process does."""
        self.fleet.do("SELECT async_refunds.enqueue('run', %s)", list(ids))

    def administer(self, change: Callable[[psycopg.Connection], object]) -> None:
        """Do what an operator does."""
        with psycopg.connect(self.fleet.address, autocommit=True) as connection:
            change(connection)

    async def open(self) -> PostgresJournal:
        """Open the journal of the run."""
        return await PostgresJournal.open(self.fleet.address, self.run, name="run")

    async def cancel(
        self,
        ids: Sequence[str],
        journal: PostgresJournal | None = None,
        on_result: Callable[[Batch], object] = lambda _: None,
    ) -> None:
        """Run a batch, and keep what it tells."""
        async with (
            await self.open() if journal is None else nullcontext(journal) as used
        ):
            batch = Batch(self.refunds, ids, journal=used, concurrency=1)
            async with aclosing(batch.results()) as results:
                async for each in results:
                    self.results[each.refund_id] = each
                    on_result(batch)


@asynccontextmanager
async def working_alone(fleet: Fleet) -> AsyncGenerator[Alone]:
    stripe = Emulator()
    async with (
        stripe.serve() as url,
        RefundsClient("sk_test_1", base_url=url) as refunds,
    ):
        yield Alone(fleet, stripe, refunds, url)


async def test_each_refund_of_the_run_is_told_and_nothing_is_missing(
    fleet: Fleet,
) -> None:
    """Also those that were there, and those that fail, and in a second batch."""
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(3)
        alone.enqueue(ids[:1])
        await alone.cancel([*ids[1:], "re_none"])
        outcomes = {each: result.outcome for each, result in alone.results.items()}
        assert outcomes == {**dict.fromkeys(ids, "canceled"), "re_none": "failed"}
        alone.results.clear()
        await alone.cancel(ids)
        assert list(alone.results) == ["re_none"]


async def test_next_batch_on_the_same_journal_misses_nothing_of_the_one_before(
    fleet: Fleet,
) -> None:
    async with working_alone(fleet) as alone, await alone.open() as journal:
        ids = alone.stripe.seed_refunds(2)
        await alone.cancel(ids[:1], journal)
        await alone.cancel(ids[1:], journal)
        assert list(alone.results) == ids


async def test_paused_run_is_told(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone:
        alone.administer(
            lambda connection: administration.set_state(connection, "run", "paused")
        )
        with pytest.raises(
            JournalError, match=r"2 refunds have no result here \(the run is paused\)"
        ):
            await alone.cancel(alone.stripe.seed_refunds(2))
        assert alone.results == {}


async def test_run_that_is_paused_in_mid_run_is_told(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(30)

        def pause(_: Batch) -> None:
            alone.administer(
                lambda connection: administration.set_state(connection, "run", "paused")
            )

        with pytest.raises(JournalError) as caught:
            await alone.cancel(ids, on_result=pause)
        missing = len(ids) - len(alone.results)
        assert 0 < missing < len(ids)
        assert f"{missing} refunds have no result here (the run is paused)" == str(
            caught.value
        )


async def test_run_that_is_closed_in_mid_run_is_told(fleet: Fleet) -> None:
    """What was never sent was settled by whoever closed it."""
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(30)

        def close(batch: Batch) -> None:
            if not batch.progress().under_way:
                alone.administer(
                    lambda connection: administration.close(connection, "run")
                )

        with pytest.raises(JournalError) as caught:
            await alone.cancel(ids, on_result=close)
        missing = len(ids) - len(alone.results)
        assert 0 < missing < len(ids)
        assert f"{missing} refunds have no result here" in str(caught.value)
        assert "settled by another process" in str(caught.value)


@pytest.mark.parametrize("tables", [("runs",), ("runs", "items")])
async def test_run_that_is_deleted_in_mid_run_is_told(
    fleet: Fleet, tables: tuple[str, ...]
) -> None:
    """By hand: no command of ours does that."""
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(30)
        alone.enqueue(ids)

        def delete(_: Batch) -> None:
            for each in tables:
                fleet.do(f"DELETE FROM async_refunds.{each}")  # noqa: S608 - ours

        with pytest.raises(JournalError, match=r"^the run was deleted from the"):
            await alone.cancel((), on_result=delete)
        assert 0 < len(alone.results) < len(ids)


async def test_nothing_is_added_to_a_run_that_was_deleted(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone, await alone.open() as journal:
        fleet.do("DELETE FROM async_refunds.runs")
        with pytest.raises(JournalError, match=r"^the run was deleted from the"):
            await journal.add([CancelRequest("re_1")])


async def test_refund_whose_run_is_deleted_while_it_is_claimed_is_not_given_out(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working_alone(fleet) as alone, await alone.open() as journal:
        await journal.add([CancelRequest("re_1")])
        learn = GivenOut.learn_runs

        def deleted(self: GivenOut, rows: object) -> None:
            """What is read of a run that was deleted since the claim."""
            del rows
            learn(self, [])
            fleet.do("DELETE FROM async_refunds.runs")

        monkeypatch.setattr(GivenOut, "learn_runs", deleted)
        assert await claimed(journal, None, 1) == []


async def test_dead_refund_is_told(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(2)
        alone.enqueue(ids)
        fleet.do(
            "UPDATE async_refunds.items SET dead = true, maybe_sent = true "
            "WHERE refund_id = %s",
            ids[0],
        )
        with pytest.raises(
            JournalError,
            match=r"1 refund has no result here \(1 dead: see `async-",
        ):
            await alone.cancel(())
        assert list(alone.results) == ids[1:]


async def test_refund_that_dies_with_this_claim_is_told(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(1)
        alone.enqueue(ids)
        fleet.do("UPDATE async_refunds.items SET claims = 8, maybe_sent = true")
        with pytest.raises(JournalError, match="1 dead"):
            await alone.cancel(())
        assert alone.results == {}


async def test_refund_that_may_have_no_new_key_yet_is_told(fleet: Fleet) -> None:
    """It failed, and requests of a process that was killed may be under way."""
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(2)
        alone.enqueue(ids)
        fleet.do(
            "UPDATE async_refunds.items SET outcome = 'failed', attempts = 1, "
            "generation = 1, known_at = now() WHERE refund_id = %s",
            ids[0],
        )
        fleet.do(
            "UPDATE async_refunds.leases "
            "SET token = %s, until = now() - interval '1 s'",
            str(uuid4()),
        )
        with pytest.raises(JournalError, match="1 cannot be claimed now: begin again"):
            await alone.cancel(())
        assert list(alone.results) == ids[1:]


async def test_account_that_another_process_has_taken_over_is_told(
    fleet: Fleet,
) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(30)

        def take_over(_: Batch) -> None:
            fleet.do("UPDATE async_refunds.leases SET token = %s", str(uuid4()))

        with pytest.raises(JournalError, match="has taken over the key's own account"):
            await alone.cancel(ids, on_result=take_over)
        assert len(alone.results) < len(ids)


async def test_account_that_is_lost_after_all_of_it_was_told_is_not_missed(
    fleet: Fleet,
) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(2)
        others = alone.stripe.seed_refunds(2, account="acct_B")
        for each in ids:
            alone.enqueue([each])
        fleet.do("SELECT async_refunds.enqueue('run', %s, %s)", others, ["acct_B"] * 2)

        def lose(batch: Batch) -> None:
            if len(alone.results) == 4:
                assert not batch.progress().under_way
                fleet.do("UPDATE async_refunds.leases SET token = %s", str(uuid4()))

        journal = await alone.open()
        async with journal:
            await alone.cancel((), journal, lose)
            await journal.leases.renew()
            assert journal.leases.accounts == []
            assert await journal.explain_missing(stopped=False) is None
        assert sorted(alone.results) == sorted(ids + others)


async def test_only_accounts_of_which_something_is_missing_are_named(
    fleet: Fleet,
) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(1)
        fleet.do(
            "SELECT async_refunds.enqueue('run', %s, %s)",
            alone.stripe.seed_refunds(20, account="acct_B"),
            ["acct_B"] * 20,
        )

        def lose_both(_: Batch) -> None:
            if ids[0] in alone.results:
                fleet.do("UPDATE async_refunds.leases SET token = %s", str(uuid4()))

        with pytest.raises(JournalError) as caught:
            await alone.cancel(ids, on_result=lose_both)
        assert "another process has taken over acct_B: the journal tells" in str(
            caught.value
        )
        assert f"{21 - len(alone.results)} refunds have no" in str(caught.value)


async def test_what_others_add_after_the_input_has_ended_is_not_missed(
    fleet: Fleet,
) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(2)
        await alone.cancel(
            ids[:1],
            on_result=lambda _: fleet.do(
                "SELECT async_refunds.enqueue('run', %s, %s)", ids[1:], ["acct_other"]
            ),
        )
        assert list(alone.results) == ids[:1]


async def test_database_that_came_back_without_what_was_added_is_told(
    fleet: Fleet,
) -> None:
    """A standby may not have got the last commits; what it lacks cannot be counted."""
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(2)

        def fail_over(_: Batch) -> None:
            fleet.do(
                "CREATE OR REPLACE FUNCTION async_refunds.timeline() RETURNS text "
                "LANGUAGE sql AS $$ SELECT 'another' $$"
            )

        with pytest.raises(JournalError, match="came back without its last commits"):
            await alone.cancel(ids, on_result=fail_over)
        assert sorted(alone.results) == sorted(ids)


async def test_batch_that_is_stopped_misses_nothing(fleet: Fleet) -> None:
    """The caller knows that not all was begun; an account that is lost is told."""
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(30)
        await alone.cancel(ids, on_result=lambda batch: batch.stop())
        assert len(alone.results) < len(ids)

        def lose_and_stop(batch: Batch) -> None:
            fleet.do("UPDATE async_refunds.leases SET token = %s", str(uuid4()))
            batch.stop()

        with pytest.raises(JournalError, match="has taken over"):
            await alone.cancel(ids, on_result=lose_and_stop)


async def test_refund_that_was_given_back_has_no_result(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone, await alone.open() as journal:
        journal.begin()
        await journal.accounts()
        await journal.add([CancelRequest("re_1")])
        await journal.give_back(await claimed(journal, None, 1))
        missing = await journal.explain_missing(stopped=False)
        assert missing is not None
        assert missing.startswith("1 refund has no result here")
        journal.end()


async def test_end_that_cannot_be_read_is_told(fleet: Fleet) -> None:
    async with working_alone(fleet) as alone:
        ids = alone.stripe.seed_refunds(1)

        def break_it(_: Batch) -> None:
            fleet.do("ALTER TABLE async_refunds.items RENAME COLUMN dead TO was_dead")

        with pytest.raises(JournalError, match="whether each refund has a result"):
            await alone.cancel(ids, on_result=break_it)
        assert list(alone.results) == ids
