"""A journal whose run is closed: nothing more is sent but what was perhaps sent."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from async_refunds import RefundsClient, cancel_many
from async_refunds.emulator import Emulator
from async_refunds.errors import InvalidRequestError, JournalError
from async_refunds.journal import (
    Claim,
    JournalReader,
    Record,
    Run,
    RunClosedError,
    SqliteJournal,
)
from async_refunds.journal.sqlite import bulk
from async_refunds.results import CancelOutcome, CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from pathlib import Path


real = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False, options={"rate": 20})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def records(path: Path) -> dict[str, Record]:
    return {record.refund_id: record for record in JournalReader(path).records()}


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


async def journal_of_each_kind(path: Path) -> None:
    """Make a journal of one canceled, one refused, two perhaps sent, two never sent."""
    async with SqliteJournal.open(path, RUN) as journal:
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


@real
async def test_what_was_never_sent_is_failed_and_what_perhaps_was_is_not(
    path: Path,
) -> None:
    await journal_of_each_kind(path)
    with SqliteJournal.open(path) as journal:
        assert not journal.run_closed
        assert journal.close_run() == 3
        assert journal.run_closed
        tally = journal.tally()
    assert (tally.open, tally.total) == (2, 6)
    assert tally.outcomes == {"canceled": 1, "failed": 3, "unknown": 2}
    reader = JournalReader(path)
    assert reader.run_closed
    assert reader.run == RUN
    assert reader.tally() == tally
    told = records(path)
    assert {name: (each.outcome, each.settled) for name, each in told.items()} == {
        "re_canceled": ("canceled", True),
        "re_refused": ("failed", True),
        "re_unknown": ("unknown", False),
        "re_in_flight": ("unknown", False),
        "re_given_back": ("failed", True),
        "re_new": ("failed", True),
    }
    assert told["re_new"].error == "re_new was not canceled: its run was closed"
    assert told["re_refused"].error == "no such refund; then its run was closed"
    assert told["re_new"].known_at is not None
    assert told["re_unknown"].error is None


@real
async def test_only_what_was_perhaps_sent_is_given_out_and_with_its_key(
    path: Path,
) -> None:
    await journal_of_each_kind(path)
    before = records(path)
    with SqliteJournal.open(path) as journal:
        journal.close_run()
    async with SqliteJournal.open(path) as journal:
        assert await journal.accounts() == [None]
        claims = await claimed(journal, None, 9)
        assert [claim.refund_id for claim in claims] == ["re_unknown", "re_in_flight"]
        assert all(claim.maybe_sent for claim in claims)
        assert [claim.idempotency_key for claim in claims] == [
            before[claim.refund_id].idempotency_key for claim in claims
        ]
        first, second = claims
        await journal.settle(
            [
                (first, result(first, "failed", "no such refund")),
                (second, result(second, "unknown")),
            ]
        )
        assert journal.tally().open == 1
    told = records(path)
    # A definite no is the end: nothing is asked for again with another key.
    assert told["re_unknown"].settled
    assert told["re_unknown"].error == "no such refund; then its run was closed"
    assert not told["re_in_flight"].settled
    async with SqliteJournal.open(path) as journal:
        assert [each.refund_id for each in await claimed(journal, None, 9)] == [
            "re_in_flight"
        ]


@real
async def test_closed_run_makes_no_new_key(path: Path) -> None:
    await journal_of_each_kind(path)
    with SqliteJournal.open(path) as journal:
        journal.close_run()
    before = records(path)
    async with SqliteJournal.open(path) as journal:
        claims = await claimed(journal, None, 9)
        for claim in claims:
            with pytest.raises(RunClosedError):
                await journal.rekey(claim)
        await journal.give_back(claims)
    assert records(path) == before


@real
async def test_closed_run_takes_no_more_refunds(path: Path) -> None:
    await journal_of_each_kind(path)
    with SqliteJournal.open(path) as journal:
        journal.close_run()
    before = records(path)
    with pytest.raises(JournalError) as refused:
        SqliteJournal.open(path, RUN)
    assert str(refused.value) == (
        f"the run of the journal {str(path)!r} is closed, and takes no more refunds: "
        "give another path; resume it for 2 that were perhaps sent"
    )
    with SqliteJournal.open(path) as journal, pytest.raises(JournalError, match="more"):
        journal.load([CancelRequest("re_more")])
    async with SqliteJournal.open(path) as journal:
        with pytest.raises(JournalError, match="takes no more refunds"):
            await journal.add([CancelRequest("re_more")])
    assert records(path) == before


@real
async def test_closing_twice_changes_nothing(path: Path) -> None:
    await journal_of_each_kind(path)
    with SqliteJournal.open(path) as journal:
        journal.close_run()
        before = records(path)
        assert journal.close_run() == 0
    with SqliteJournal.open(path) as journal:
        assert journal.close_run() == 0
    assert records(path) == before


@real
async def test_run_without_open_refunds_and_one_without_any_are_closed_too(
    path: Path, tmp_path: Path
) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([CancelRequest("re_1")])
        (claim,) = await claimed(journal, None, 1)
        await journal.settle([(claim, result(claim, "canceled"))])
        assert journal.close_run() == 0
    assert JournalReader(path).run_closed
    empty = tmp_path / "empty.sqlite3"
    with SqliteJournal.open(empty, RUN) as journal:
        assert journal.close_run() == 0
        assert journal.run_closed
    assert JournalReader(empty).run_closed


@real
async def test_journal_in_use_is_not_closed(path: Path) -> None:
    await journal_of_each_kind(path)
    async with SqliteJournal.open(path) as journal:
        journal.begin()
        with pytest.raises(JournalError, match="another batch uses this journal"):
            journal.close_run()
        journal.end()
        with pytest.raises(JournalError, match="is in use by another batch"):
            SqliteJournal.open(path)
        assert not journal.run_closed


@real
async def test_many_refunds_of_several_accounts_are_closed(path: Path) -> None:
    accounts = (None, "acct_1", "acct_2")
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(
            [
                CancelRequest(f"re_{number}", account)
                for number in range(1100)
                for account in accounts
            ]
        )
        await journal.claim(dict.fromkeys(accounts, 5))
        assert journal.close_run() == 3285
    assert JournalReader(path).tally().outcomes == {"failed": 3285, "unknown": 15}
    with SqliteJournal.open(path) as journal:  # which holds each row against the sums
        assert journal.tally().open == 15


def test_run_is_closed_at_once_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the middle leaves the journal as it was."""
    asyncio.run(journal_of_each_kind(path))
    before = records(path)
    child = os.fork()
    if not child:

        def kill(
            db: sqlite3.Connection, head: str, rows: list[tuple[object]], tail: str = ""
        ) -> None:
            bulk.write_rows(db, head, rows, tail)
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            monkeypatch.setattr("async_refunds.journal.sqlite.items.write_rows", kill)
            SqliteJournal.open(path).close_run()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not JournalReader(path).run_closed
    assert records(path) == before
    with SqliteJournal.open(path) as journal:
        assert journal.close_run() == 3


@real
async def test_what_cannot_be_written_closes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal_of_each_kind(path)
    before = records(path)
    monkeypatch.setattr("async_refunds.journal.sqlite.file._LOCK_WAIT", 0.0)
    with SqliteJournal.open(path) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalError, match="locked by another program"):
                journal.close_run()
        assert not journal.run_closed
        with pytest.raises(JournalError, match="locked by another program"):
            journal.close_run()
    assert not JournalReader(path).run_closed
    assert records(path) == before


@real
async def test_refund_of_a_closed_run_gets_no_new_key_once_its_own_is_too_old(
    path: Path,
) -> None:
    """It waits still, so it was not canceled; a new key would cancel it."""
    stripe = Emulator()
    ids = stripe.seed_refunds(2)
    long_ago = time.time() - 25 * 3600
    async with (
        stripe.serve() as url,
        RefundsClient("sk_test_1", base_url=url) as client,
    ):
        run = Run(url, livemode=False)
        async with SqliteJournal.open(path, run, clock=lambda: long_ago) as journal:
            await journal.add([CancelRequest(each) for each in ids])
            journal.begin()
            await claimed(journal, None, 2)
        async with RefundsClient("sk_test_1", base_url=url) as before:
            await before.cancel(ids[1])
        with SqliteJournal.open(path) as journal:
            assert journal.close_run() == 0
        async with SqliteJournal.open(path) as journal:
            told = {
                each.refund_id: each
                async for each in cancel_many(client, (), journal=journal)
            }
    assert [told[each].outcome for each in ids] == ["failed", "canceled"]
    assert "still in requires_action" in str(told[ids[0]].error)
    assert ids[0] not in stripe.books.cancellations
    kept = records(path)
    assert [(kept[each].outcome, kept[each].settled) for each in ids] == [
        ("failed", True),
        ("canceled", True),
    ]
    assert JournalReader(path).tally().open == 0
