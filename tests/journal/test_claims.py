"""First claims: one row for an account stands for the keys of all its items."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from async_refunds.errors import JournalError
from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.models import Refund
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.journal import Claim

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)
ACCOUNT = "acct_1"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


def requests(count: int, account: str | None = ACCOUNT) -> list[CancelRequest]:
    return [CancelRequest(f"re_{number}", account) for number in range(count)]


def canceled(claim: Claim) -> tuple[Claim, CancelResult]:
    return claim, CancelResult(
        refund_id=claim.refund_id,
        stripe_account=claim.stripe_account,
        outcome="canceled",
        idempotency_key=claim.idempotency_key,
    )


def killed(path: Path) -> Path:
    """Return what a process leaves that is killed now."""
    left = path.with_name("killed.sqlite3")
    shutil.copy(path, left)
    return left


def keys(claims: list[Claim]) -> list[str]:
    return [claim.idempotency_key for claim in claims]


async def test_killed_run_asks_again_with_the_keys_and_their_times(
    path: Path, clock: Clock
) -> None:
    async with SqliteJournal.open(path, RUN, clock=clock) as journal:
        await journal.add(requests(6))
        clock.now = 1010.0
        first = await claimed(journal, ACCOUNT, 2)
        clock.now = 1020.0
        second = await claimed(journal, ACCOUNT, 2)
        left = killed(path)
    clock.now = 2000.0
    async with SqliteJournal.open(left, clock=clock) as journal:
        assert journal.tally().outcomes == {"unknown": 4, None: 2}
        again = await claimed(journal, ACCOUNT, 6)
    assert keys(again[:4]) == keys(first + second)
    assert [claim.maybe_sent for claim in again] == [True] * 4 + [False] * 2
    assert [claim.key_created_at for claim in again] == [
        *(1010.0, 1010.0, 1020.0, 1020.0, 2000.0, 2000.0)
    ]
    assert [claim.key_unused_until for claim in again] == [1000.0] * 4 + [2000.0] * 2


async def test_key_has_the_time_of_its_own_claim_when_others_are_settled(
    path: Path, clock: Clock
) -> None:
    async with SqliteJournal.open(path, RUN, clock=clock) as journal:
        await journal.add(requests(8))
        for clock.now in (1010.0, 1020.0, 1030.0, 1040.0):
            claims = await claimed(journal, ACCOUNT, 2)
            settled = {1010.0: claims, 1030.0: claims[:1]}.get(clock.now, [])
            await journal.settle([canceled(claim) for claim in settled])
        await claimed(journal, None, 1)
        left = killed(path)
    clock.now = 2000.0
    async with SqliteJournal.open(left, clock=clock) as journal:
        again = await claimed(journal, ACCOUNT, 9)
    assert [(claim.number, claim.key_created_at) for claim in again] == [
        *((3, 1020.0), (4, 1020.0), (6, 1030.0), (7, 1040.0), (8, 1040.0))
    ]


async def test_reader_sees_the_keys_of_what_was_given_out(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([*requests(3), *requests(3, None), *requests(2, "acct_2")])
        claims = await claimed(journal, ACCOUNT, 2) + await claimed(journal, None, 1)
        reader = JournalReader(path)
        found = {
            (each.stripe_account, each.refund_id): (each.outcome, each.idempotency_key)
            for each in reader.records()
        }
        assert list(journal.records()) == list(reader.records())
    for claim in claims:
        known = found.pop((claim.stripe_account, claim.refund_id))
        assert known == ("unknown", claim.idempotency_key)
    assert set(found.values()) == {(None, None)}


async def test_next_batch_of_the_same_journal_gets_the_same_keys(
    path: Path, clock: Clock
) -> None:
    async with SqliteJournal.open(path, RUN, clock=clock) as journal:
        await journal.add(requests(5))
        journal.begin()
        first = await claimed(journal, ACCOUNT, 3)
        journal.end()
        journal.begin()
        clock.now = 1100.0
        again = await claimed(journal, ACCOUNT, 2)
        assert keys(again) == keys(first[:2])
        assert [claim.key_created_at for claim in again] == [1000.0] * 2
        left = killed(path)
        rest = await claimed(journal, ACCOUNT, 9)
        assert keys(rest[:1]) == keys(first[2:])
        assert [claim.maybe_sent for claim in rest] == [True, False, False]
        later = shutil.copy(path, path.with_name("later.sqlite3"))
    clock.now = 2000.0
    async with SqliteJournal.open(left, clock=clock) as journal:
        third = await claimed(journal, ACCOUNT, 9)
    assert keys(third[:3]) == keys(first)
    assert [claim.key_created_at for claim in third] == [
        *(1100.0, 1100.0, 1000.0, 2000.0, 2000.0)
    ]
    async with SqliteJournal.open(later, clock=clock) as journal:
        third = await claimed(journal, ACCOUNT, 9)
    assert keys(third) == keys(first + rest[1:])
    assert [claim.key_created_at for claim in third] == [1100.0] * 5


async def test_unsent_and_rekeyed_items_are_told_from_their_page(path: Path) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(4))
        claims = await claimed(journal, ACCOUNT, 4)
        await journal.give_back([claims[1]])
        second = await journal.rekey(claims[2])
        left = killed(path)
    async with SqliteJournal.open(left) as journal:
        again = await claimed(journal, ACCOUNT, 9)
    assert [claim.maybe_sent for claim in again] == [True, False, True, True]
    assert keys(again) == [
        *(claims[0].idempotency_key, claims[1].idempotency_key),
        *(second.idempotency_key, claims[3].idempotency_key),
    ]
    assert second.idempotency_key != claims[2].idempotency_key


async def test_many_accounts_are_claimed_at_once(path: Path) -> None:
    names = [f"acct_{number}" for number in range(100)]
    async with SqliteJournal.open(path, RUN) as journal:
        for name in names:
            await journal.add(requests(3, name))
        found = await journal.claim({name: 1 + n % 4 for n, name in enumerate(names)})
        left = killed(path)
    assert [len(found[name]) for name in names] == [1, 2, 3, 3] * 25
    assert all(
        claim.stripe_account == name and claim.refund_id == f"re_{place}"
        for name, claims in found.items()
        for place, claim in enumerate(claims)
    )
    async with SqliteJournal.open(left) as journal:
        again = await journal.claim(dict.fromkeys(names, 3))
    assert sum(claim.maybe_sent for claims in again.values() for claim in claims) == 225


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE claims SET pages = x'9192cd0bb8cb408f400000000000' WHERE id = 2",
        "UPDATE claims SET pages = 'text' WHERE id = 2",
        "UPDATE claims SET stripe_account = 'acct_2' WHERE id = 2",
        "UPDATE claims SET id = 7 WHERE id = 2",
        "DELETE FROM claims WHERE id = 2",
    ],
)
async def test_changed_claim_is_damage(path: Path, change: str) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add([*requests(3), *requests(3, None)])
        await claimed(journal, None, 1)
        await claimed(journal, ACCOUNT, 1)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(change)
    with pytest.raises(JournalError, match="is damaged"):
        SqliteJournal.open(path)


@pytest.mark.parametrize("facts", ["'text'", "x''", "7"])
async def test_facts_of_another_shape_are_damage(path: Path, facts: str) -> None:
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(f"UPDATE items SET facts = {facts}")  # noqa: S608 - as above
    with pytest.raises(JournalError, match=r"is damaged.*item 1 does not match"):
        SqliteJournal.open(path)


async def test_result_of_an_item_that_was_not_given_out_is_kept(path: Path) -> None:
    """As of a run whose journal was put back to an earlier copy."""
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(2))
        early = path.with_name("early.sqlite3")
        shutil.copy(path, early)
        claims = await claimed(journal, ACCOUNT, 1)
    async with SqliteJournal.open(early) as journal:
        await journal.settle([canceled(claims[0])])
        assert journal.tally().outcomes == {"canceled": 1, None: 1}
        (record, _) = journal.records()
    assert (record.outcome, record.idempotency_key) == ("canceled", keys(claims)[0])


async def test_address_in_one_word_of_an_answer_is_not_kept(path: Path) -> None:
    refund = Refund(
        *("re_0", "refund", 1, "jpy", 1_700_000_000),
        status="jane@customer.example",
        charge="ch_1",
        failure_balance_transaction="txn_" + "1" * 600,
    )
    async with SqliteJournal.open(path, RUN) as journal:
        await journal.add(requests(1))
        (claim,) = await claimed(journal, ACCOUNT, 1)
        known = msgspec.structs.replace(canceled(claim)[1], refund=refund)
        await journal.settle([(claim, known)])
        (record,) = journal.records()
    assert (record.status, record.charge) == ("[e-mail]", "ch_1")
    assert record.failure_balance_transaction == "txn_" + "1" * 496
