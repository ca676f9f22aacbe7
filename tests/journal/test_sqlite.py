"""What a journal remembers: items, keys and results, from one process to the next."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from async_refunds.errors import (
    AuthenticationError,
    InvalidRequestError,
    JournalError,
    OutcomeUnknownError,
)
from async_refunds.journal import (
    Claim,
    Journal,
    JournalReader,
    Record,
    Run,
    SqliteJournal,
    Tally,
)
from async_refunds.journal.sqlite import writer
from async_refunds.models import Attempt, Refund
from async_refunds.results import CancelOutcome, CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

real = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False, options={"rate": 20, "by": "x"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def requests(
    *numbers: int, account: str | None = None, prefix: str = "re"
) -> list[CancelRequest]:
    return [CancelRequest(f"{prefix}_{number}", account) for number in numbers]


def result(
    claim: Claim, outcome: CancelOutcome = "canceled", **details: object
) -> CancelResult:
    plain = CancelResult(
        refund_id=claim.refund_id,
        stripe_account=claim.stripe_account,
        outcome=outcome,
        idempotency_key=claim.idempotency_key,
        settled=outcome not in ("failed", "unknown"),
    )
    return msgspec.structs.replace(plain, **details)


def attempt(request_id: str | None) -> Attempt:
    return Attempt(1, "POST", "/v1", 200, None, request_id, seconds=0.1, slept=0.0)


def records(path: Path) -> list[Record]:
    return list(JournalReader(path).records())


def ids(claims: list[Claim]) -> list[str]:
    return [claim.refund_id for claim in claims]


@contextmanager
def held(path: Path) -> Generator[None]:
    """Hold up the thread before its next commit."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def started(*tasks: asyncio.Task[Any]) -> None:
    """Let the tasks run up to where they wait for the thread."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def test_it_is_a_journal(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as opened:
        journal: Journal = opened
        assert list(journal.records()) == []


# ------------------------------------------------------------------- items


@real
async def test_items_come_by_account_in_input_order(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1, 2, account="acct_b"))
        await journal.add([*requests(3, 4), *requests(5, account="acct_a")])
        assert await journal.accounts() == [None, "acct_a", "acct_b"]
        first = await claimed(journal, None, 1)
        assert [(each.number, each.refund_id) for each in first] == [(3, "re_3")]
        assert first[0].stripe_account is None
        assert ids(await claimed(journal, "acct_b", 5)) == ["re_1", "re_2"]
        assert ids(await claimed(journal, None, 5)) == ["re_4"]
        assert await claimed(journal, None, 5) == []
        assert await claimed(journal, "acct_without_items", 5) == []
        await journal.add(requests(6))
        assert ids(await claimed(journal, None, 5)) == ["re_6"]


@real
async def test_item_is_there_once_for_each_account(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([*requests(1, 1), *requests(1, account="acct_1")])
        await journal.add([*requests(1), *requests(1, 1, account="acct_1")])
        await journal.add(requests(1, account=""))  # not the same as no account
        found = [(each.refund_id, each.stripe_account) for each in records(path)]
        assert found == [("re_1", None), ("re_1", "acct_1"), ("re_1", "")]
        assert await journal.accounts() == [None, "", "acct_1"]


@real
async def test_account_is_listed_while_it_has_open_items(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        assert await journal.accounts() == []
        await journal.add([*requests(1), *requests(2, account="acct_1")])
        for account in (None, "acct_1"):
            (claim,) = await claimed(journal, account, 5)
            assert account in await journal.accounts()
            await journal.settle([(claim, result(claim))])
            assert account not in await journal.accounts()


@real
async def test_claims_have_a_limit(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
            await claimed(journal, None, 0)


@pytest.mark.parametrize(
    ("request_", "kind", "text"),
    [
        (CancelRequest(5), TypeError, "refund_id must be a str, not int"),  # type: ignore[arg-type] # the point # pyright: ignore[reportArgumentType]
        (CancelRequest("re_1", b"x"), TypeError, "stripe_account must be a str"),  # type: ignore[arg-type] # the point # pyright: ignore[reportArgumentType]
        (CancelRequest("re_\ud800"), ValueError, "surrogates not allowed"),
    ],
)
@real
async def test_item_that_is_no_text_is_refused_and_leaves_the_others_alone(
    path: Path, request_: CancelRequest, kind: type[Exception], text: str
) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        with pytest.raises(kind, match=text):
            await journal.add([*requests(1), request_])
        with pytest.raises(kind, match=text):
            journal.load([*requests(2), request_])
        await journal.add(requests(3))
        assert [each.refund_id for each in records(path)] == ["re_3"]


@real
async def test_any_text_is_an_id(path: Path) -> None:
    odd = ["", "\0", "re_\0a", "ré_\U0001f600", "';--", "x" * 100_000]
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([CancelRequest(each) for each in odd * 2])
        assert ids(await claimed(journal, None, 99)) == odd
    assert [each.refund_id for each in records(path)] == odd


# -------------------------------------------------------------------- keys


@real
async def test_key_is_kept_before_it_is_given_out(path: Path) -> None:
    async with SqliteJournal.open(path, RUN, clock=lambda: 12.5) as journal:
        await journal.add(requests(1, 2, 3))
        claims = await claimed(journal, None, 2)
        keys = [claim.idempotency_key for claim in claims]
        assert claims == [
            Claim(number, f"re_{number}", None, key, 12.5, False, 12.5)  # noqa: FBT003 - a struct's fields
            for number, key in enumerate(keys, 1)
        ]
        assert [each.idempotency_key for each in records(path)] == [*keys, None]


@real
async def test_keys_are_each_another(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(*range(100)))
        keys = {each.idempotency_key for each in await claimed(journal, None, 100)}
    assert len(keys) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


@real
async def test_fresh_key_takes_the_place_of_the_old_one(path: Path) -> None:
    now = 1.0
    async with SqliteJournal.open(path, RUN, clock=lambda: now) as journal:
        await journal.add(requests(1))
        (old,) = await claimed(journal, None, 1)
        now = 2.0
        new = await journal.rekey(old)
        assert new.idempotency_key != old.idempotency_key
        assert (new.number, new.refund_id, new.key_created_at, new.maybe_sent) == (
            *(1, "re_1", 2.0),
            False,
        )
        assert records(path)[0].idempotency_key == new.idempotency_key
    async with SqliteJournal.open(path, clock=lambda: 3.0) as journal:
        (again,) = await claimed(journal, None, 1)
        # When a key of a run was first sent is not kept, only when the run began.
        assert again == msgspec.structs.replace(
            new, maybe_sent=True, key_unused_until=1.0
        )
        newer = await journal.rekey(again)
        assert newer.idempotency_key not in {old.idempotency_key, new.idempotency_key}
        assert (newer.key_created_at, newer.maybe_sent) == (3.0, False)


@real
@pytest.mark.parametrize("credentials", ["a", "b"])
async def test_credentials_of_a_killed_run_are_kept(
    path: Path, credentials: str
) -> None:
    run = msgspec.structs.replace(RUN, options={"rate": 20})
    async with SqliteJournal.open(path, run) as journal:
        journal.begin("a")
        await journal.add(requests(1))
        await claimed(journal, None, 1)
    async with SqliteJournal.open(path) as journal:
        assert journal.run == run, "its options are its own"
        journal.begin(credentials)
        (claim,) = await claimed(journal, None, 1)
    assert claim.maybe_sent
    assert claim.same_credentials is (credentials == "a")


@real
async def test_settled_item_gets_no_key(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
        (claim,) = await claimed(journal, None, 1)
        await journal.settle([(claim, result(claim))])
        with pytest.raises(JournalError, match="item 1 is settled"):
            await journal.rekey(claim)
    assert records(path)[0].idempotency_key == claim.idempotency_key


REFUSED = AuthenticationError("Invalid API Key provided: sk_test_abcdef", attempts=())
LOST = OutcomeUnknownError("lost", refund=None)


@pytest.mark.parametrize(
    ("outcome", "details", "asked_again"),
    [
        pytest.param("unknown", {"error": LOST}, True, id="unknown"),
        pytest.param("failed", {"error": REFUSED}, False, id="refused"),
        pytest.param(
            "failed", {"error": REFUSED, "idempotency_key": None}, False, id="unsent"
        ),
    ],
)
@real
async def test_key_lives_as_long_as_its_request_may_land(
    path: Path, outcome: CancelOutcome, details: dict[str, Any], *, asked_again: bool
) -> None:
    async with SqliteJournal.open(path, RUN, clock=lambda: 1.0) as journal:
        await journal.add(requests(1))
        (claim,) = await claimed(journal, None, 1)
        await journal.settle([(claim, result(claim, outcome, **details))])
        assert await claimed(journal, None, 1) == []  # not twice by one object
    async with SqliteJournal.open(path, clock=lambda: 2.0) as journal:
        (again,) = await claimed(journal, None, 1)
    assert again.maybe_sent == asked_again
    assert (again.idempotency_key == claim.idempotency_key) == asked_again
    assert again.key_created_at == (1.0 if asked_again else 2.0)


@real
async def test_key_without_a_result_is_asked_for_again(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1, 2))
        claims = await claimed(journal, None, 1)
    async with SqliteJournal.open(path) as journal:
        again = await claimed(journal, None, 2)
        assert [each.maybe_sent for each in again] == [True, False]
        assert again[0].idempotency_key == claims[0].idempotency_key
    # Nothing was asked in the third process: what the first one sent may still land.
    async with SqliteJournal.open(path) as journal:
        (claim,) = await claimed(journal, None, 1)
        unsent = result(claim, "failed", error=REFUSED, idempotency_key=None)
        await journal.settle([(claim, unsent)])
    async with SqliteJournal.open(path) as journal:
        (claim,) = await claimed(journal, None, 1)
    assert claim.maybe_sent
    assert claim.idempotency_key == claims[0].idempotency_key


@real
async def test_refused_item_that_is_under_way_again_may_be_canceled(
    path: Path,
) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
        (claim,) = await claimed(journal, None, 1)
        await journal.settle([(claim, result(claim, "failed", error=REFUSED))])
        assert [each.outcome for each in records(path)] == ["failed"]
    async with SqliteJournal.open(path) as journal:
        (claim,) = await claimed(journal, None, 1)
        # Killed here, it may have been sent with its second key.
        assert [each.outcome for each in records(path)] == ["unknown"]
        assert journal.tally().outcomes == {"unknown": 1}
        await journal.give_back([claim])
        assert [each.outcome for each in records(path)] == ["failed"]
        assert journal.tally().outcomes == {"failed": 1}


@real
async def test_item_that_another_program_changed_is_damage(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1, 2))
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE items SET refund_id = 're_7' WHERE number = 2")
        with pytest.raises(JournalError, match=r"is damaged.*item 2 does not match"):
            await claimed(journal, None, 2)


@real
async def test_item_that_is_not_there_is_damage(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        unknown = Claim(7, "re_7", None, "key", 1.0, maybe_sent=False)
        with pytest.raises(JournalError, match=r"is damaged.*item 7 is missing"):
            await journal.settle([(unknown, result(unknown))])


# ----------------------------------------------------------------- results


@real
async def test_result_is_kept_whole(path: Path) -> None:
    refund = Refund(
        *("re_1", "refund", 105600, "jpy", 1700000000),
        status="succeeded",
        charge="ch_1",
        payment_intent={"id": "pi_1", "object": "payment_intent"},
        failure_balance_transaction="txn_1",
    )
    error = InvalidRequestError("no, said a@b.example to sk_live_abcdef " + "x" * 900)
    async with SqliteJournal.open(path, RUN, clock=lambda: 9.5) as journal:
        await journal.add(requests(1, 2))
        claims = await claimed(journal, None, 2)
        await journal.settle(
            [
                (
                    claims[0],
                    result(
                        claims[0],
                        "not_cancelable",
                        refund=refund,
                        error=error,
                        attempts=(attempt("req_1"), attempt("req_2"), attempt(None)),
                        seconds=1.5,
                    ),
                )
            ]
        )
    first, second = records(path)
    assert first.error is not None
    assert first.error.startswith("no, said [e-mail] to sk_live_*** xxx")
    assert first.error.endswith("xxx...")
    assert len(first.error) == 500
    assert first == Record(
        number=1,
        refund_id="re_1",
        stripe_account=None,
        outcome="not_cancelable",
        status="succeeded",
        idempotency_key=claims[0].idempotency_key,
        attempts=3,
        request_id="req_2",
        error=first.error,
        seconds=1.5,
        settled=True,
        amount=105600,
        currency="jpy",
        created=1700000000,
        charge="ch_1",
        payment_intent="pi_1",
        failure_balance_transaction="txn_1",
        known_at=9.5,
    )
    assert second == Record(
        number=2,
        refund_id="re_2",
        stripe_account=None,
        outcome="unknown",
        status=None,
        idempotency_key=claims[1].idempotency_key,
        attempts=0,
        request_id=None,
        error=None,
        seconds=None,
        settled=False,
    )
    assert type(first.settled) is bool


@real
async def test_results_of_all_processes_make_one(path: Path) -> None:
    refund = Refund("re_1", "refund", 1, "jpy", 1, status="requires_action")
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
        (claim,) = await claimed(journal, None, 1)
        lost = result(
            claim,
            "unknown",
            refund=refund,
            error=OutcomeUnknownError("half a pair: \ud800", refund=None),
            attempts=(attempt("req_1"), attempt(None)),
        )
        await journal.settle([(claim, lost)])
    (found,) = records(path)
    assert (found.outcome, found.settled) == ("unknown", False)
    assert found.error == "half a pair: ?"
    async with SqliteJournal.open(path) as journal:
        (claim,) = await claimed(journal, None, 1)
        await journal.settle(
            [(claim, result(claim, idempotency_key="given", attempts=(attempt(None),)))]
        )
        await journal.settle([(claim, result(claim, "unknown", error=LOST))])
    (found,) = records(path)
    assert (found.outcome, found.settled, found.error) == ("canceled", True, None)
    assert (found.attempts, found.request_id) == (3, "req_1")
    assert (found.status, found.idempotency_key) == ("requires_action", "given")
    async with SqliteJournal.open(path) as journal:
        assert await claimed(journal, None, 1) == []


@real
async def test_what_is_given_back_was_never_asked(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1, 2, 3))
        first, second, third = await claimed(journal, None, 3)
        await journal.settle([(third, result(third))])
        await journal.give_back([second, third])
    assert [record.outcome for record in records(path)] == ["unknown", None, "canceled"]
    async with SqliteJournal.open(path) as journal:
        again = await claimed(journal, None, 3)
        assert [claim.maybe_sent for claim in again] == [True, False]
        assert again[0].idempotency_key == first.idempotency_key
        await journal.give_back(again)  # and what may have landed stays so
    assert [record.outcome for record in records(path)] == ["unknown", None, "canceled"]


@real
async def test_tally_has_the_requests_the_refusals_and_the_time_at_work(
    path: Path,
) -> None:
    limited = msgspec.structs.replace(attempt("req_1"), status=429)
    now = 100.0
    async with SqliteJournal.open(path, RUN, clock=lambda: now) as journal:
        journal.load(requests(1, 2))
        now = 200.0  # nothing is at work yet
        journal.begin()
        first, second = await claimed(journal, None, 2)
        now = 205.5
        for claim, attempts in ((first, (limited, attempt("req_2"))), (second, ())):
            await journal.settle([(claim, result(claim, attempts=attempts))])
        tally = journal.tally()
    assert (tally.requests, tally.rate_limited, tally.seconds) == (2, 1, 5.5)
    async with SqliteJournal.open(path, clock=lambda: now) as journal:
        now = 300.0
        await journal.add(requests(3))
        now = 301.0
        await journal.add(requests(4))
        now = 300.5  # a clock may be set back
        await journal.add(requests(5))
        assert journal.tally().seconds == 6.5
    assert JournalReader(path).tally().requests == 2


@real
async def test_requests_that_nobody_has_told_of_are_known_to_be_missing(
    path: Path,
) -> None:
    """Of those that are under way, and for ever of a process that was killed."""
    run = msgspec.structs.replace(RUN, options={"rate": 20})
    async with SqliteJournal.open(path, run) as journal:
        journal.begin()
        await journal.add(requests(1, 2, 3))
        assert not journal.tally().uncounted
        first, second, _ = await claimed(journal, None, 3)
        assert JournalReader(path).tally().uncounted
        lost = result(first, "unknown", error=LOST, attempts=(attempt(None),))
        await journal.settle([(first, lost)])
        await journal.give_back([second])
        assert journal.tally().uncounted
    async with SqliteJournal.open(path) as journal:  # it was killed with the third
        assert journal.run == run, "its options are its own"
        assert journal.tally().uncounted
        journal.begin()
        again = await claimed(journal, None, 3)
        await journal.settle([(each, result(each)) for each in again])
        assert (journal.tally().open, journal.tally().uncounted) == (0, True)
    assert JournalReader(path).tally().uncounted


@real
async def test_requests_of_a_run_that_came_to_its_end_are_all_counted(
    path: Path,
) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        journal.begin()
        await journal.add(requests(1, 2))
        (claim,) = await claimed(journal, None, 1)
        await journal.settle([(claim, result(claim, "unknown", error=LOST))])
    async with SqliteJournal.open(path) as journal:
        journal.begin()
        for claim in await claimed(journal, None, 2):
            claim = await journal.rekey(claim)  # noqa: PLW2901 - in its place
            await journal.settle([(claim, result(claim))])
        assert not journal.tally().uncounted
    assert not JournalReader(path).tally().uncounted


@real
async def test_attempt_without_a_connection_is_no_request(path: Path) -> None:
    unsent = msgspec.structs.replace(attempt(None), failure="refused", sent=False)
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
        (claim,) = await claimed(journal, None, 1)
        both = result(claim, attempts=(unsent, attempt("req_1")))
        assert both.requests == 1
        await journal.settle([(claim, both)])
        assert journal.tally().requests == 1
    assert records(path)[0].attempts == 1


@real
async def test_tally_counts_by_outcome_and_what_is_open(path: Path) -> None:
    async with SqliteJournal.open(path, RUN, clock=lambda: 1.0) as journal:
        assert journal.tally() == Tally(0, Counter())
        await journal.add(requests(*range(6)))
        claims = await claimed(journal, None, 5)
        await journal.settle([(claims[0], result(claims[0]))])
        await journal.settle([(claims[1], result(claims[1], "already_canceled"))])
        await journal.settle([(claims[2], result(claims[2], "failed", error=REFUSED))])
        error = InvalidRequestError("no")
        refused = result(claims[3], "failed", error=error, settled=True)
        await journal.settle([(claims[3], refused)])
        counted: Counter[CancelOutcome | None] = Counter(
            # One is claimed and without a result, one was never asked.
            {"canceled": 1, "already_canceled": 1, "failed": 2, "unknown": 1, None: 1}
        )
        assert journal.tally() == Tally(3, counted, uncounted=True)
        assert JournalReader(path).tally() == journal.tally()
        assert journal.tally().total == 6


# -------------------------------------------------------------------- loads


def test_load_tells_how_many_are_new(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        assert journal.load(iter(requests(1, 2, 2, 3))) == 3
        assert journal.load(requests(3, 4)) == 1
        assert journal.load([]) == 0
        assert journal.tally().open == 4
        assert path.with_name("run.sqlite3-wal").stat().st_size == 0
    assert [each.number for each in records(path)] == [1, 2, 3, 4]


def test_load_of_nothing_is_a_run(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        assert journal.load([]) == 0
    with SqliteJournal.open(path) as journal:
        assert journal.run == RUN


class OfTheCaller(Exception):  # noqa: N818 - any exception, not one of ours
    pass


@pytest.mark.parametrize(
    "kind", [OfTheCaller, KeyboardInterrupt, sqlite3.OperationalError, JournalError]
)
def test_load_that_is_cut_short_leaves_nothing(
    path: Path, kind: type[BaseException]
) -> None:
    def cut() -> Generator[CancelRequest]:
        yield from requests(*range(5000))
        assert journal.tally().open == kept  # of what is kept
        raise kind("of the caller")

    kept = 0
    with SqliteJournal.open(path, RUN) as journal:
        with pytest.raises(kind, match="of the caller"):
            journal.load(cut())
        assert journal.tally() == Tally(0, Counter())
    with pytest.raises(JournalError, match="holds no run"):
        SqliteJournal.open(path)
    with SqliteJournal.open(path, RUN) as journal:
        kept = journal.load(requests(1))
        with pytest.raises(kind):
            journal.load(cut())
        assert journal.tally().open == 1


def test_load_within_a_load_is_refused(path: Path) -> None:
    def nested() -> Generator[CancelRequest]:
        yield from requests(1)
        journal.load(requests(2))

    with SqliteJournal.open(path, RUN) as journal:
        with pytest.raises(JournalError, match="within a transaction"):
            journal.load(nested())
        with pytest.raises(JournalError, match="within a transaction"):
            journal.tally()


# -------------------------------------------------------- one commit for many


class Gate:
    """A clock at which the journal's thread waits while the gate is closed."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.opened.set()

    def close(self) -> None:
        self.opened.clear()
        self.reached.clear()

    def __call__(self) -> float:
        self.reached.set()
        assert self.opened.wait(60)
        return 1.0


def commits(path: Path) -> int:
    with closing(sqlite3.connect(path)) as other:
        ((count,),) = other.execute("SELECT commits FROM run")
    found: int = count
    return found


@real
async def test_all_that_wait_share_a_commit(path: Path) -> None:
    gate = Gate()
    async with SqliteJournal.open(path, RUN, clock=gate) as journal:
        journal.load(requests(*range(500)))
        claims = await claimed(journal, None, 499)
        before = commits(path)
        gate.close()
        last = asyncio.create_task(claimed(journal, None, 1))
        await asyncio.to_thread(gate.reached.wait)
        tasks = [
            asyncio.create_task(journal.settle([(claim, result(claim))]))
            for claim in claims
        ]
        await started(*tasks)
        gate.opened.set()
        await asyncio.gather(*tasks)
        assert commits(path) - before == 2  # that of the claim, and one for the rest
        assert ids(await last) == ["re_499"]
        assert journal.tally().open == 1


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what nobody waits for wait, as long as it takes."""
    monkeypatch.setattr(writer, "_BUSY", 3600.0)
    monkeypatch.setattr(writer, "_GATHER", 3600.0)


@real
@pytest.mark.usefixtures("patient")
async def test_claim_goes_with_the_next_results(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        journal.load(requests(1, 2, 3))
        one, two = await claimed(journal, None, 2)
        await journal.settle([(one, result(one))])
        before = commits(path)
        claiming = asyncio.create_task(claimed(journal, None, 1))
        await started(claiming)
        for _ in range(20):
            await asyncio.to_thread(int)  # the journal's thread runs meanwhile
        await journal.settle([(two, result(two))])  # which waits for nothing
        assert ids(await claiming) == ["re_3"]
        assert commits(path) - before == 1


@real
@pytest.mark.usefixtures("patient")
async def test_what_waits_for_results_is_kept_at_the_end(path: Path) -> None:
    journal = SqliteJournal.open(path, RUN)
    await journal.add(requests(1))
    (claim,) = await claimed(journal, None, 1)
    await journal.settle([(claim, result(claim))])
    adding = asyncio.create_task(journal.add(requests(2)))
    await started(adding)
    await journal.close()
    await adding
    assert [each.refund_id for each in records(path)] == ["re_1", "re_2"]


@real
async def test_call_that_waits_behind_an_error_fails_too(path: Path) -> None:
    gate = Gate()
    broken: list[Exception] = []

    def clock() -> float:
        gate()
        for error in broken:
            raise error
        return 1.0

    async with SqliteJournal.open(path, RUN, clock=clock) as journal:
        journal.load(requests(1))
        gate.close()
        broken.append(ZeroDivisionError("no time"))
        first = asyncio.create_task(claimed(journal, None, 1))
        await asyncio.to_thread(gate.reached.wait)
        second = asyncio.create_task(journal.add(requests(2)))
        await started(first, second)
        gate.opened.set()
        for task in (first, second):
            with pytest.raises(JournalError, match="no time"):
                await task
    assert [each.refund_id for each in records(path)] == ["re_1"]


@real
async def test_cancelled_call_leaves_the_others_alone(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1, 2))
        with held(path):
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(claimed(journal, None, 1)),
                asyncio.create_task(journal.add(requests(3))),
                asyncio.create_task(claimed(journal, None, 1)),
            ]
            await started(*tasks)
            tasks[0].cancel()
            tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in answers[:2]] == [asyncio.CancelledError] * 2
        assert ids(await tasks[2]) == ["re_2"]
        assert ids(await claimed(journal, None, 5)) == ["re_3"]


@real
async def test_error_reaches_every_caller_and_keeps_nothing(path: Path) -> None:
    journal = SqliteJournal.open(path, RUN)
    await journal.add(requests(1))
    (claim,) = await claimed(journal, None, 1)
    await journal.settle([(claim, result(claim))])
    with held(path):
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(journal.add(requests(1, 1))),
            asyncio.create_task(journal.add(requests(2))),
            asyncio.create_task(journal.rekey(claim)),
            asyncio.create_task(journal.add(requests(3))),
        ]
        await started(*tasks)
        tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [each for each in answers if isinstance(each, JournalError)]
    assert len(failed) >= 2
    assert len({id(each) for each in failed}) == len(failed)
    for call in (
        journal.add(requests(4)),
        claimed(journal, None, 1),
        journal.accounts(),
        journal.settle([(claim, result(claim))]),
    ):
        with pytest.raises(JournalError, match="item 1 is settled"):
            await call
    for now in (journal.tally, lambda: journal.load(requests(5))):
        with pytest.raises(JournalError, match="item 1 is settled"):
            now()
    await journal.close()
    assert [each.refund_id for each in records(path)] == ["re_1"]


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
@real
async def test_failing_clock_is_an_error_of_the_journal(
    path: Path, kind: type[BaseException]
) -> None:
    broken: list[BaseException] = []

    def clock() -> float:
        for error in broken:
            raise error
        return 1.0

    async with SqliteJournal.open(path, RUN, clock=clock) as journal:
        await journal.add(requests(1))
        broken.append(kind("stopped"))
        with pytest.raises(JournalError, match=r"cannot be used.*stopped"):
            await claimed(journal, None, 1)
    assert records(path)[0].idempotency_key is None


# -------------------------------------------------------------------- ends


def left(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


@real
async def test_one_file_is_left_at_the_end(path: Path) -> None:
    journal = SqliteJournal.open(path, RUN)
    await journal.add(requests(1))
    assert left(path) == [f"run.sqlite3{end}" for end in ("", "-lock", "-shm", "-wal")]
    await asyncio.gather(journal.close(), journal.close())
    assert left(path) == ["run.sqlite3"]
    await journal.close()
    journal.close_now()
    with pytest.raises(JournalError, match="is closed"):
        await journal.add(requests(2))
    with pytest.raises(JournalError, match="is closed"):
        journal.load(requests(2))
    with pytest.raises(JournalError, match="is closed"):
        journal.tally()


@real
async def test_what_is_queued_is_kept_at_the_end(path: Path) -> None:
    journal = SqliteJournal.open(path, RUN)
    with held(path):
        task = asyncio.create_task(journal.add(requests(1)))
        await started(task)
        closing = asyncio.create_task(journal.close())
        await started(closing)
        with pytest.raises(JournalError, match="is closed"):
            await journal.add(requests(2))
        with pytest.raises(JournalError, match="is closed"):
            await claimed(journal, None, 1)
    await asyncio.gather(task, closing)
    assert [each.refund_id for each in records(path)] == ["re_1"]
    assert left(path) == ["run.sqlite3"]


def test_refusal_at_the_end_spoils_nothing(path: Path) -> None:
    """A call that comes too late does not stop what was begun before it."""
    journal = SqliteJournal.open(path, RUN)
    ending = threading.Thread(target=journal.close_now)

    def late() -> Generator[CancelRequest]:
        yield from requests(1)
        ending.start()
        while "closed" not in refusal():  # by then the other thread is at it
            pass
        yield from requests(2)

    def refusal() -> str:
        try:
            return str(journal.tally())
        except JournalError as error:
            return error.message

    assert journal.load(late()) == 2
    ending.join(60)
    assert left(path) == ["run.sqlite3"]
    # In no WAL mode any more (https://www.sqlite.org/fileformat.html, offset 18).
    assert path.read_bytes()[18] == 1


@real
async def test_cancelled_close_goes_on(path: Path) -> None:
    journal = SqliteJournal.open(path, RUN)
    with held(path):
        task = asyncio.create_task(journal.add(requests(1)))
        await started(task)
        closing = asyncio.create_task(journal.close())
        await started(closing)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    await task
    journal.close_now()
    assert left(path) == ["run.sqlite3"]


async def test_write_that_hangs_is_given_up(path: Path) -> None:
    """On a disk that does not answer. The time that jumps here is not the thread's."""
    gate = Gate()
    journal = SqliteJournal.open(path, RUN, clock=gate)
    gate.close()
    for call in (journal.add(requests(1)), journal.close(), journal.close()):
        with pytest.raises(JournalError, match="has not ended in 60 seconds"):
            await call
    with pytest.raises(JournalError, match="has not ended in 60 seconds"):
        await journal.add(requests(2))
    gate.opened.set()
    journal.close_now()
    assert left(path) == ["run.sqlite3"]


def test_loop_may_end_first(path: Path) -> None:
    journal = SqliteJournal.open(path, RUN)
    with held(path), asyncio.Runner() as runner:

        async def leave() -> asyncio.Task[None]:
            task = asyncio.create_task(journal.add(requests(1)))
            await started(task)
            return task

        runner.run(leave())
    journal.close_now()
    assert [each.refund_id for each in records(path)] == ["re_1"]
    assert left(path) == ["run.sqlite3"]


def test_journal_goes_from_loop_to_loop(path: Path) -> None:
    with SqliteJournal.open(path, RUN) as journal:
        for number in range(3):
            asyncio.run(journal.add(requests(number)))
        assert journal.tally().open == 3


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if "journal" in each.name]


@real
async def test_thread_without_work_ends_and_comes_back(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
        for thread in threads():
            thread.join(60)
        assert threads() == []
        await journal.add(requests(2))
        assert journal.tally().open == 2


@real
async def test_no_thread_to_be_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    journal = SqliteJournal.open(path, RUN)
    journal.load(requests(1))
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(JournalError, match="can't start new thread"):
        await journal.add(requests(2))
    monkeypatch.undo()
    with pytest.raises(JournalError, match="can't start new thread"):
        await journal.add(requests(2))
    monkeypatch.setattr(threading.Thread, "start", start)
    await journal.close()
    assert "run.sqlite3-lock" not in left(path)
    assert [each.refund_id for each in records(path)] == ["re_1"]
