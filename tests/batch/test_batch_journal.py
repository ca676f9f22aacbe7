"""A batch with a journal: whatever ends it, it goes on where it was."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, aclosing
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest

from async_refunds import (
    AuthenticationError,
    CancelRequest,
    JournalError,
    OutcomeUnknownError,
    RefundNotCancelableError,
    RefundsClient,
    RetryPolicy,
    cancel_many,
)
from async_refunds.batch import Batch
from async_refunds.batch.scheduler import Scheduler
from async_refunds.cli.crash_recovery import kill_and_resume
from async_refunds.emulator import Emulator
from async_refunds.journal import JournalReader, MemoryJournal, Run, SqliteJournal
from tests.support.batches import KEY, asked, canceled_many, client, emulator
from tests.support.scripted import (
    CANCELED,
    RE,
    answer,
    refund_json,
    refusal,
    scripted,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from async_refunds import CancelResult
    from async_refunds.journal import Claim

FAST = 5000.0
ONCE = RetryPolicy(max_retries=0)
DAY = 24 * 3600.0

# The journal's thread is invisible to the loop whose time jumps.
real = pytest.mark.asyncio(loop_factories=["real"])


@real
async def test_run_ends_with_every_result_in_the_journal(tmp_path: Path) -> None:
    stripe = Emulator()
    ids = stripe.seed_refunds(300)
    gone = stripe.add_refund(status="succeeded")
    path = tmp_path / "run.sqlite3"
    async with client(stripe) as refunds:
        given = [*ids, gone, ids[0], "re_none"]
        results = await canceled_many(refunds, given, journal=path, rate=FAST)
    assert len(results) == 302
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208 - of a handful of files
    records = {record.refund_id: record for record in JournalReader(path).records()}
    assert records.keys() == results.keys()
    for refund_id, result in results.items():
        record = records[refund_id]
        assert record.outcome == result.outcome
        assert record.idempotency_key == result.idempotency_key
        assert record.attempts == len(result.attempts)
        assert record.request_id == result.request_id
        assert record.settled == (refund_id != "re_none")
    assert all(asked(stripe, each)[0] == records[each].idempotency_key for each in ids)
    assert KEY.encode() not in path.read_bytes()


@real
async def test_result_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    ids = stripe.seed_refunds(50)
    async with client(stripe) as refunds:
        async for result in cancel_many(refunds, ids, journal=path, rate=FAST):
            records = {each.refund_id: each for each in JournalReader(path).records()}
            assert records[result.refund_id].outcome == result.outcome


@real
async def test_run_that_goes_on_skips_what_is_settled(tmp_path: Path) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    ids = stripe.seed_refunds(40)
    async with client(stripe) as refunds:
        async with aclosing(
            cancel_many(refunds, ids, journal=path, concurrency=4, rate=FAST)
        ) as results:
            for _ in range(10):
                await anext(results)
        done = sum(stripe.books.cancellations.values())
        assert 10 <= done <= 20
        rest = await canceled_many(refunds, (), journal=path, rate=FAST)
        assert len(rest) == 40 - done
        assert await canceled_many(refunds, ids, journal=path, rate=FAST) == {}
    assert stripe.books.requests["cancel"] == 40


@real
async def test_stopped_run_leaves_nothing_unknown_that_was_not_sent(
    tmp_path: Path,
) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    ids = stripe.seed_refunds(200)
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, journal=path, concurrency=3, rate=FAST)
        async for _ in batch.results():
            batch.stop()
    outcomes = JournalReader(path).tally().outcomes
    assert outcomes.keys() == {"canceled", None}
    assert outcomes["canceled"] == sum(stripe.books.cancellations.values()) < 20


@real
async def test_run_goes_on_for_its_own_accounts_whatever_the_client_defaults_to(
    tmp_path: Path,
) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    own = stripe.add_refund()
    stripe.add_account("acct_other")
    async with stripe.serve() as base_url:
        run = Run(base_url=base_url, livemode=False)
        with SqliteJournal.open(path, run) as journal:
            journal.load([CancelRequest(own)])
        async with RefundsClient(
            KEY, base_url=base_url, stripe_account="acct_other"
        ) as refunds:
            results = await canceled_many(refunds, (), journal=path)
    assert results[own].outcome == "canceled"
    assert stripe.requests[0].stripe_account is None


@pytest.mark.usefixtures("one_call_each")
@real
async def test_what_was_unknown_is_asked_again_with_its_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stripe = Emulator()
    refund_id = stripe.add_refund()
    path = tmp_path / "run.sqlite3"
    async with client(stripe, retry=ONCE, attempt_timeout=0.2) as refunds:
        stripe.faults.script("reset_after", "stall")
        first = await canceled_many(refunds, [refund_id], journal=path)
        assert first[refund_id].outcome == "unknown"
        key = first[refund_id].idempotency_key
        told = f"; the next run asks again with idempotency_key={key!r}"
        assert str(first[refund_id].error).endswith(told)
        assert told in caplog.text
        assert "call cancel again" not in caplog.text
        second = await canceled_many(refunds, (), journal=path)
    assert second[refund_id].outcome == "canceled"
    refund = second[refund_id].refund
    assert refund is not None
    assert refund.last_response.idempotent_replayed
    assert len(set(asked(stripe, refund_id))) == 1
    (record,) = JournalReader(path).records()
    assert record.attempts == 3


@real
async def test_what_was_refused_for_its_key_is_asked_with_another_one(
    tmp_path: Path,
) -> None:
    stripe = Emulator()
    refund_id = stripe.add_refund()
    path = tmp_path / "run.sqlite3"
    stripe.expire_key(KEY)
    async with stripe.serve() as base_url:
        async with RefundsClient(KEY, base_url=base_url) as refunds:
            first = await canceled_many(refunds, [refund_id], journal=path)
        assert isinstance(first[refund_id].error, AuthenticationError)
        async with RefundsClient("sk_test_other", base_url=base_url) as refunds:
            second = await canceled_many(refunds, (), journal=path)
    assert second[refund_id].outcome == "canceled"
    keys = asked(stripe, refund_id)
    assert keys == [first[refund_id].idempotency_key, second[refund_id].idempotency_key]
    assert len(set(keys)) == 2


@pytest.mark.usefixtures("one_call_each")
@real
async def test_wrong_key_leaves_open_what_may_have_landed_before(
    tmp_path: Path,
) -> None:
    stripe = Emulator()
    ids = stripe.seed_refunds(5)
    path = tmp_path / "run.sqlite3"
    async with client(stripe, retry=ONCE, attempt_timeout=0.2) as refunds:
        stripe.faults.storm(1, names=["reset_after"])
        await canceled_many(refunds, ids, journal=path, rate=FAST)
        stripe.faults.clear()
        stripe.expire_key(KEY)
        results = await canceled_many(refunds, (), journal=path, concurrency=1)
    for refund_id, result in results.items():
        assert result.outcome == "unknown"
        assert result.idempotency_key in asked(stripe, refund_id)
    records = list(JournalReader(path).records())
    assert [record.outcome for record in records] == ["unknown"] * 5
    assert [stripe.books.cancellations[refund_id] for refund_id in ids] == [1] * 5


class Yesterday(MemoryJournal):
    """A journal whose items were asked for by a process that died long ago.

    Nobody knows with which credentials.
    """

    def __init__(self, age: float) -> None:
        super().__init__(clock=lambda: time.time() - age)
        self.rekeyed: list[str] = []

    def now(self) -> float:
        return time.time()

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        given = await super().claim(limits)
        return {
            account: [
                msgspec.structs.replace(claim, maybe_sent=True, same_credentials=False)
                for claim in claims
            ]
            for account, claims in given.items()
        }

    async def rekey(self, claim: Claim) -> Claim:
        self.rekeyed.append(claim.refund_id)
        return await super().rekey(claim)


async def test_key_that_stripe_may_have_forgotten_is_not_used_again() -> None:
    stripe = emulator()
    ids = {
        status: stripe.add_refund(status=status)
        for status in ("requires_action", "canceled", "succeeded", "pending")
    }
    journal = Yesterday(DAY)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids.values(), journal=journal)
    waiting = ids["requires_action"]
    assert results[waiting].outcome == "canceled"
    assert [each.method for each in results[waiting].attempts] == ["GET", "POST"]
    assert asked(stripe, waiting) == [results[waiting].idempotency_key]
    assert journal.rekeyed == [waiting]
    assert stripe.books.requests == {"cancel": 1, "retrieve": 4}
    assert results[ids["canceled"]].outcome == "canceled"
    for status in ("succeeded", "pending"):
        result = results[ids[status]]
        assert result.outcome == "not_cancelable"
        assert isinstance(result.error, RefundNotCancelableError)
        assert result.error.refund.status == status
        assert status in str(result.error)


async def test_refusal_of_a_fresh_key_leaves_nothing_unknown() -> None:
    waiting = answer(200, refund_json("requires_action"))
    no = refusal(400, code="resource_missing", param="id")
    async with scripted(no, reads=[waiting]) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE], journal=Yesterday(DAY))
        await refunds.close()
    # What the old key may have done was read before; the fresh one did nothing.
    assert results[RE].outcome == "failed"
    assert server.methods() == "GET POST"


async def test_key_of_today_is_used_again_without_a_read() -> None:
    stripe = emulator()
    refund_id = stripe.add_refund()
    async with client(stripe) as refunds:
        await canceled_many(refunds, [refund_id], journal=Yesterday(DAY / 2))
    assert stripe.books.requests == {"cancel": 1}


@pytest.mark.parametrize(
    ("status", "words"), [("a_later_word", "a_later_word"), (None, "without a status")]
)
async def test_old_key_stays_unknown_while_the_state_is_none_that_is_known(
    status: str | None, words: str
) -> None:
    read = answer(200, refund_json(status))
    async with scripted(reads=[read]) as server:
        refunds = server.client()
        results = await canceled_many(
            refunds, [RE], journal=Yesterday(DAY), patience=1e-9
        )
        await refunds.close()
    assert results[RE].outcome == "unknown"
    assert words in str(results[RE].error)
    assert server.methods() == "GET"


async def test_old_key_stays_unknown_while_the_refund_cannot_be_read() -> None:
    stripe = emulator()
    refund_id = stripe.add_refund()
    stripe.faults.storm(1, names=["503"])
    async with client(stripe) as refunds:
        results = await canceled_many(
            refunds, [refund_id], journal=Yesterday(DAY), patience=20
        )
    result = results[refund_id]
    assert result.outcome == "unknown"
    assert isinstance(result.error, OutcomeUnknownError)
    assert "could not be read" in str(result.error)
    assert stripe.books.requests.keys() == {"retrieve"}
    assert stripe.books.requests["retrieve"] > 4  # it was asked for again


@pytest.mark.parametrize("patience", [3, 1e-9])
async def test_old_keys_stay_unknown_while_the_reads_wait_for_an_outage(
    patience: float,
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(30)
    stripe.faults.storm(1, names=["503"])
    async with client(stripe) as refunds:
        results = await canceled_many(
            refunds, ids, journal=Yesterday(DAY), patience=patience, concurrency=30
        )
    assert {result.outcome for result in results.values()} == {"unknown"}
    assert any(not each.attempts for each in results.values())
    assert stripe.books.requests.keys() == {"retrieve"}


async def test_old_key_whose_read_has_no_time_stays_unknown() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(30)
    stripe.faults.storm(1, names=["503"])
    async with client(stripe) as refunds:
        results = await canceled_many(
            *(refunds, ids),
            journal=Yesterday(DAY),
            patience=20,
            concurrency=30,
            timeout=2.0,
        )
    assert {result.outcome for result in results.values()} == {"unknown"}
    errors = [str(result.error) for result in results.values()]
    assert any("no time left for the read" in error for error in errors)
    assert stripe.books.requests.keys() == {"retrieve"}


async def test_old_key_whose_read_gets_no_slot_stays_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As above, where the pace says so at once: a refusal that is not waited for."""

    async def none_is_free(*_: object) -> bool:
        return False

    monkeypatch.setattr(Scheduler, "wait_for_slot", none_is_free)
    stripe = emulator()
    refund_id = stripe.add_refund()
    async with client(stripe) as refunds:
        results = await canceled_many(
            refunds, [refund_id], journal=Yesterday(DAY), patience=5
        )
    assert results[refund_id].outcome == "unknown"
    assert "no time left for the read" in str(results[refund_id].error)
    assert not stripe.books.requests


async def test_refund_that_is_gone_is_unknown_if_it_may_have_been_asked_for() -> None:
    stripe = emulator()
    async with client(stripe) as refunds:
        results = await canceled_many(
            refunds, ["re_gone"], journal=Yesterday(DAY), patience=5
        )
    assert results["re_gone"].outcome == "unknown"


async def test_run_that_goes_on_without_a_network_says_so_at_once() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with RefundsClient(KEY, base_url="http://127.0.0.1:9") as refunds:
        results = await canceled_many(
            refunds,
            [f"re_{n}" for n in range(500)],
            journal=Yesterday(DAY / 2),
            patience=3600,
        )
    assert loop.time() - began < 60
    assert {result.outcome for result in results.values()} == {"unknown"}
    assert sum(bool(result.attempts) for result in results.values()) <= 50


async def tell(results: AsyncGenerator[CancelResult], told: set[str]) -> None:
    async for result in results:
        told.add(result.refund_id)


class Broken(MemoryJournal):
    """A journal whose disk is full after a while."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self.after = after
        self.kept: set[str] = set()

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        if len(self.kept) >= self.after:
            raise JournalError("the disk is full")
        self.kept |= {claim.refund_id for claim, _ in known}
        await super().settle(known)


async def test_error_of_the_journal_stops_the_sending_at_once() -> None:
    journal = Broken(after=100)
    told: set[str] = set()
    stripe = emulator()
    ids = stripe.seed_refunds(1000)
    stripe.faults.storm(1, names=["slow"])
    async with client(stripe) as refunds:
        results = cancel_many(refunds, ids, journal=journal, concurrency=10, rate=FAST)
        with pytest.raises(JournalError, match="the disk is full"):
            await tell(results, told)
        sent = stripe.books.requests["cancel"]
        await asyncio.sleep(60)
    assert told == journal.kept  # what is told is what is kept
    assert 100 <= len(told) < sent == stripe.books.requests["cancel"] <= 100 + 4 * 10


class Unwritable(Yesterday):
    """A journal whose disk is full when a fresh key is to be kept."""

    async def rekey(self, claim: Claim) -> Claim:
        raise JournalError(f"no room for the key of {claim.refund_id}")


async def test_key_that_cannot_be_kept_is_not_sent() -> None:
    told: set[str] = set()
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    async with client(stripe) as refunds:
        with pytest.raises(JournalError, match="no room for the key"):
            await tell(cancel_many(refunds, ids, journal=Unwritable(DAY)), told)
    assert stripe.books.requests.keys() == {"retrieve"}


class Returning(MemoryJournal):
    """A journal that tells what it gave out, and what it was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed: list[str] = []
        self.returned: list[str] = []

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        claims = await super().claim(limits)
        self.claimed += [each.refund_id for page in claims.values() for each in page]
        return claims

    async def give_back(self, claims: Sequence[Claim]) -> None:
        self.returned += [claim.refund_id for claim in claims]


async def test_what_a_closed_client_could_not_send_is_given_back() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(10)
    journal = Returning()
    async with client(stripe) as refunds:
        await refunds.close()
        with pytest.raises(RuntimeError, match="closed"):
            await canceled_many(refunds, ids, journal=journal)
    assert journal.claimed
    assert sorted(journal.returned) == sorted(journal.claimed)


async def test_what_may_have_landed_before_stays_unknown_with_a_closed_client() -> None:
    stripe = emulator()
    (refund_id,) = stripe.seed_refunds(1)
    told: set[str] = set()
    async with client(stripe) as refunds:
        await refunds.close()
        with pytest.raises(RuntimeError, match="closed"):
            await tell(
                cancel_many(refunds, [refund_id], journal=Yesterday(DAY / 2)), told
            )
    assert told == {refund_id}


class Closed(MemoryJournal):
    """A journal that takes no items."""

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        raise JournalError(f"no room for {len(requests)}")


async def test_items_that_cannot_be_kept_are_not_asked_for() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    async with client(stripe) as refunds:
        with pytest.raises(JournalError, match="no room for 3"):
            await anext(cancel_many(refunds, ids, journal=Closed()))
    assert not stripe.books.requests


async def test_error_of_the_journal_after_the_loop_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(20)
    stripe.faults.storm(1, names=["slow"])
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, journal=Broken(after=1), concurrency=5, rate=FAST)
        async with aclosing(batch.results()) as results:
            await anext(results)
    assert "the disk is full" in caplog.text


class Foreign(MemoryJournal):
    """A journal that fails as no journal should."""

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        raise OSError(f"{len(known)} lost")


async def test_journal_that_fails_in_its_own_way_ends_the_batch() -> None:
    stripe = emulator()
    async with client(stripe) as refunds:
        with pytest.raises(OSError, match="lost"):
            await canceled_many(refunds, stripe.seed_refunds(5), journal=Foreign())


async def test_first_of_two_errors_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    stripe = emulator()

    async def broken() -> AsyncIterator[str]:
        for refund_id in stripe.seed_refunds(3):
            yield refund_id
        raise LookupError("the database is gone")

    async with client(stripe) as refunds:
        with pytest.raises(LookupError):
            await canceled_many(refunds, broken(), journal=Foreign())
    assert "lost" in caplog.text


@real
@pytest.mark.parametrize("mode", ["path", "object"])
async def test_journal_of_another_server_is_refused(tmp_path: Path, mode: str) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    with SqliteJournal.open(path, Run("http://127.0.0.1:9", livemode=False)) as journal:
        journal.load([CancelRequest(stripe.add_refund())])
    async with client(stripe) as refunds, AsyncExitStack() as stack:
        given: Path | SqliteJournal = path
        if mode == "object":
            given = await stack.enter_async_context(SqliteJournal.open(path))
        with pytest.raises(JournalError, match=r"base URL|127"):
            await canceled_many(refunds, (), journal=given)
    assert not stripe.books.requests


async def test_key_that_was_sent_again_today_is_not_forgotten() -> None:
    stripe = emulator()
    refund_id = stripe.add_refund()
    journal = Yesterday(DAY)
    async with client(stripe, retry=ONCE, attempt_timeout=1) as refunds:
        # Read, keyed anew, sent: lost. Asked again, its answer is lost once more.
        stripe.faults.script("ok", "reset_before", "503", "reset_before", "503")
        results = await canceled_many(refunds, [refund_id], journal=journal)
    assert results[refund_id].outcome == "canceled"
    assert journal.rekeyed == [refund_id]
    assert len(set(asked(stripe, refund_id))) == 1


async def test_old_key_of_a_refund_without_a_status_stays_unknown() -> None:
    async with scripted(CANCELED, reads=[answer(200, refund_json(None))]) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE], journal=Yesterday(DAY), patience=5)
        await refunds.close()
    assert results[RE].outcome == "unknown"
    assert not server.cancel_keys


class Stuck(MemoryJournal):
    """A journal on a disk that does not answer."""

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        await asyncio.Event().wait()


async def test_batch_on_a_disk_that_hangs_can_be_cancelled() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    async with client(stripe) as refunds:
        # One after the other, so that some are known while the first is kept.
        batch = Batch(refunds, ids, journal=Stuck(), rate=5)
        task = asyncio.create_task(anext(batch.results()))
        for _ in range(1000):  # however time jumps, until all are known
            if batch.progress().requests == 3 and not batch.progress().under_way:
                break
            await asyncio.sleep(0.1)
        for _ in range(3):
            assert not task.done()
            task.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await task


@real
async def test_journal_of_the_callers_own_stays_open(tmp_path: Path) -> None:
    stripe = Emulator()
    first, second = stripe.seed_refunds(2)
    async with client(stripe) as refunds:
        run = Run(base_url=refunds.base_url, livemode=False)
        async with SqliteJournal.open(tmp_path / "run.sqlite3", run) as journal:
            for refund_id in (first, second):
                results = await canceled_many(refunds, [refund_id], journal=journal)
                assert results[refund_id].outcome == "canceled"
            assert journal.tally().outcomes["canceled"] == 2


@real
async def test_second_batch_on_a_journal_is_refused(tmp_path: Path) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    ids = stripe.seed_refunds(3)
    async with client(stripe) as refunds:
        first = cancel_many(refunds, ids, journal=path)
        # Left by `break`, as here, it goes on.
        await anext(first)
        with pytest.raises(JournalError, match=r"of this process: .*aclosing\("):
            await anext(cancel_many(refunds, ids, journal=path))
        await first.aclose()
        assert len(await canceled_many(refunds, ids, journal=path)) <= 2
    assert sum(stripe.books.cancellations.values()) == 3


@real
async def test_journal_of_another_mode_is_refused(tmp_path: Path) -> None:
    stripe = Emulator()
    path = tmp_path / "run.sqlite3"
    async with stripe.serve() as base_url:
        run = Run(base_url=base_url, livemode=True)
        with SqliteJournal.open(path, run) as journal:
            journal.load([CancelRequest("re_1")])
        async with RefundsClient(KEY, base_url=base_url) as refunds:
            with pytest.raises(JournalError, match="live"):
                await anext(cancel_many(refunds, ["re_1"], journal=path))
    assert not stripe.books.requests


FAULTS = [
    *("", "reset_after=0.2", "stall=0.2", "saved_500=0.2", "503=0.2", "cut_body=0.2"),
]


@real
@pytest.mark.parametrize("faults", FAULTS)
async def test_run_that_is_killed_again_and_again_accounts_for_every_refund(
    faults: str, tmp_path: Path
) -> None:
    stripe = Emulator()
    given = [
        CancelRequest(refund_id, account)
        for account in (None, "acct_1", "acct_2")
        for refund_id in stripe.seed_refunds(100, account=account)
    ]
    if faults:
        stripe.faults.load(faults)
    chance = Random(faults)  # noqa: S311 - no secrets
    found = await kill_and_resume(
        stripe,
        given,
        tmp_path,
        kill_after=[chance.randint(5, 60) for _ in range(3)],
        options=("--rate", "2000", "--timeout", "0.7"),
    )
    assert found.killed == 3
    assert found.canceled == found.canceled_exactly_once == 300
    assert found.unsettled == found.canceled_twice == 0
    assert found.refunds_with_two_keys == 0
    records = list(JournalReader(tmp_path / "run.sqlite3").records())
    assert [CancelRequest(each.refund_id, each.stripe_account) for each in records] == (
        given
    )
    assert {record.outcome for record in records} == {"canceled"}
    keys = {each.idempotency_key for each in stripe.requests if each.method == "POST"}
    assert len(keys) == 300


def no_key() -> str:
    raise OSError("the vault is away")


@real
async def test_mode_of_a_key_that_a_callable_gives_is_known_before_it_is_kept(
    tmp_path: Path,
) -> None:
    """A journal of a sandbox said live, and the next batch was refused."""
    stripe = Emulator()
    ids, path = stripe.seed_refunds(2), tmp_path / "run.sqlite3"
    async with (
        stripe.serve() as url,
        RefundsClient(lambda: KEY, base_url=url) as asking,
    ):
        for refund_id in ids:
            results = await canceled_many(asking, [refund_id], journal=path)
            assert results[refund_id].outcome == "canceled"
    assert JournalReader(path).run == Run(url, livemode=False)


@real
async def test_batch_without_a_key_begins_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite3"
    async with RefundsClient(no_key) as refunds:
        with pytest.raises(AuthenticationError, match="gave no key"):
            await canceled_many(refunds, [RE], journal=path)
    assert not path.exists()


@real
async def test_requests_of_calls_that_were_broken_off_are_counted(
    tmp_path: Path,
) -> None:
    """After a second Ctrl-C a report had none of them."""
    stripe = Emulator()
    ids, path = stripe.seed_refunds(5), tmp_path / "run.sqlite3"
    stripe.latency = 3600.0
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, journal=path, rate=FAST)

        async def consume() -> None:
            async with aclosing(batch.results()) as results:
                async for result in results:
                    assert result.outcome == "unknown"

        consuming = asyncio.create_task(consume())
        while len(stripe.requests) < len(ids):  # noqa: ASYNC110 - of the emulator
            await asyncio.sleep(0.01)
        batch.interrupt()
        await consuming
    tally = JournalReader(path).tally()
    assert (tally.requests, tally.uncounted) == (len(ids), False)
