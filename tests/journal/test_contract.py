"""What a batch may rely on, wherever its journal is kept: each test runs on each kind.

A journal of another kind takes part by a maker in `JOURNALS`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio

from async_refunds.errors import JournalError
from async_refunds.journal import (
    Claim,
    Journal,
    MemoryJournal,
    Run,
    SqliteJournal,
    open_journal,
    require_target,
)
from async_refunds.journal.postgres import PostgresJournal
from async_refunds.results import CancelOutcome, CancelRequest, CancelResult
from tests.support.journals import claimed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

RUN = Run("https://api.stripe.com", livemode=False)


async def in_memory(_: pytest.FixtureRequest) -> Journal:
    return MemoryJournal()


async def in_sqlite(request: pytest.FixtureRequest) -> Journal:
    folder: Path = request.getfixturevalue("tmp_path")
    return SqliteJournal.open(folder / "run.sqlite3", RUN)


async def in_postgres(request: pytest.FixtureRequest) -> Journal:
    database: str = request.getfixturevalue("postgres_database")
    return await PostgresJournal.open(database, RUN, name="run")


JOURNALS: dict[str, Callable[[pytest.FixtureRequest], Awaitable[Journal]]] = {
    "memory": in_memory,
    "sqlite": in_sqlite,
    "postgres": in_postgres,
}


@pytest_asyncio.fixture(params=JOURNALS, loop_scope="function")
async def journal(request: pytest.FixtureRequest) -> AsyncGenerator[Journal]:
    made = await JOURNALS[request.param](request)
    yield made
    await made.close()


def items(*numbers: int, account: str | None = None) -> list[CancelRequest]:
    return [CancelRequest(f"re_{number}", account) for number in numbers]


def ids(claims: list[Claim]) -> list[str]:
    return [claim.refund_id for claim in claims]


def result(claim: Claim, outcome: CancelOutcome = "canceled") -> CancelResult:
    return CancelResult(
        refund_id=claim.refund_id,
        stripe_account=claim.stripe_account,
        outcome=outcome,
        idempotency_key=claim.idempotency_key,
    )


async def test_items_of_an_account_come_in_input_order(journal: Journal) -> None:
    await journal.add(items(3, 1))
    await journal.add([*items(2, account="acct_1"), *items(4)])
    assert set(await journal.accounts()) == {None, "acct_1"}
    first = await claimed(journal, None, 2)
    assert ids(first) == ["re_3", "re_1"]
    assert [claim.number for claim in first] == [1, 2]
    (other,) = await claimed(journal, "acct_1", 5)
    assert (other.refund_id, other.stripe_account) == ("re_2", "acct_1")
    assert ids(await claimed(journal, None, 5)) == ["re_4"]
    assert await claimed(journal, None, 5) == []
    assert await claimed(journal, "acct_without_items", 5) == []


async def test_item_is_there_once_for_each_account(journal: Journal) -> None:
    await journal.add([*items(1, 1), *items(1, account="acct_1")])
    await journal.add([*items(1, 2), *items(1, account="acct_1")])
    assert ids(await claimed(journal, None, 9)) == ["re_1", "re_2"]
    assert ids(await claimed(journal, "acct_1", 9)) == ["re_1"]


async def test_nothing_is_missing_once_each_item_has_a_result(journal: Journal) -> None:
    journal.begin()
    await journal.accounts()
    await journal.add([*items(1, 2), *items(3, account="acct_1")])
    for account in (None, "acct_1"):
        for claim in await claimed(journal, account, 9):
            outcome: CancelOutcome = "failed" if claim.number == 1 else "canceled"
            await journal.settle([(claim, result(claim, outcome))])
    assert await journal.explain_missing(stopped=False) is None
    journal.end()


async def test_account_is_listed_while_it_has_items_to_claim(journal: Journal) -> None:
    assert await journal.accounts() == []
    await journal.add([*items(1), *items(2, account="acct_1")])
    (claim,) = await claimed(journal, "acct_1", 1)
    await journal.settle([(claim, result(claim))])
    assert await journal.accounts() == [None]


async def test_claim_of_nothing_is_refused(journal: Journal) -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        await claimed(journal, None, 0)


async def test_every_item_has_a_key_of_its_own(journal: Journal) -> None:
    await journal.add(items(*range(50)))
    claims = await claimed(journal, None, 50)
    assert len({claim.idempotency_key for claim in claims}) == 50
    assert not any(claim.maybe_sent for claim in claims)
    new = await journal.rekey(claims[0])
    assert (new.number, new.refund_id) == (claims[0].number, claims[0].refund_id)
    assert new.idempotency_key not in {claim.idempotency_key for claim in claims}
    assert not new.maybe_sent


async def test_next_batch_gets_what_was_under_way_with_its_key(
    journal: Journal,
) -> None:
    journal.begin()
    await journal.add(items(1, 2, 3, 4))
    first, second, third = await claimed(journal, None, 3)
    second = await journal.rekey(second)
    await journal.settle([(third, result(third))])
    journal.end()
    journal.begin()
    again = await claimed(journal, None, 9)
    assert ids(again) == ["re_1", "re_2", "re_4"]
    assert [claim.maybe_sent for claim in again] == [True, True, False]
    assert again[0].idempotency_key == first.idempotency_key
    assert again[1].idempotency_key == second.idempotency_key
    assert again[0].key_created_at == first.key_created_at
    journal.end()


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        (["a"], "same"),
        ([""], "perhaps others"),
        (["a", "a", "a"], "same"),
        (["a", "b"], "perhaps others"),
        (["a", "b", "a"], "perhaps others"),
        (["a", ""], "perhaps others"),
        (["", "a"], "perhaps others"),
    ],
)
async def test_claim_tells_whether_all_was_sent_with_the_same_credentials(
    journal: Journal, batches: list[str], told: str
) -> None:
    """What one account does not have may be another's, which was asked before."""
    await journal.add(items(1))
    given: list[Claim] = []
    for credentials in batches:
        journal.begin(credentials)
        given += await claimed(journal, None, 1)
        journal.end()
    claim = given[-1]
    assert claim.maybe_sent is (len(batches) > 1)
    assert claim.same_credentials is (told == "same")


async def test_credentials_before_a_new_key_do_not_matter(journal: Journal) -> None:
    await journal.add(items(1))
    journal.begin("a")
    (claim,) = await claimed(journal, None, 1)
    journal.end()
    journal.begin("b")
    (claim,) = await claimed(journal, None, 1)
    claim = await journal.rekey(claim)
    assert claim.same_credentials
    journal.end()
    journal.begin("")
    (claim,) = await claimed(journal, None, 1)
    claim = await journal.rekey(claim)
    assert not claim.same_credentials


async def test_credentials_of_what_was_settled_do_not_matter(journal: Journal) -> None:
    await journal.add(items(1, 2))
    journal.begin("a")
    (first,) = await claimed(journal, None, 1)
    await journal.settle([(first, result(first))])
    journal.end()
    given: list[Claim] = []
    for _ in range(2):
        journal.begin("b")
        given += await claimed(journal, None, 1)
        journal.end()
    second = given[-1]
    assert second.maybe_sent
    assert second.same_credentials


async def test_what_was_given_back_was_never_sent(journal: Journal) -> None:
    journal.begin()
    await journal.add(items(1, 2))
    claims = await claimed(journal, None, 2)
    await journal.give_back(claims[1:])
    assert [record.outcome for record in journal.records()] == ["unknown", None]
    assert await claimed(journal, None, 2) == []
    journal.end()
    journal.begin()
    first, second = await claimed(journal, None, 2)
    assert (first.maybe_sent, second.maybe_sent) == (True, False)
    await journal.give_back([first, second])
    journal.end()
    journal.begin()
    again = await claimed(journal, None, 2)
    assert [claim.maybe_sent for claim in again] == [True, False]
    assert again[0].idempotency_key == first.idempotency_key


async def test_next_batch_asks_again_for_what_was_handed_over(journal: Journal) -> None:
    journal.begin()
    await journal.add(items(1, 2))
    first, second = await claimed(journal, None, 2)
    await journal.settle([(second, result(second))])
    left = msgspec.structs.replace(result(first, "unknown"), settled=False)
    await journal.hand_over([(first, left)])
    journal.end()
    journal.begin()
    await journal.add(items(1))
    (again,) = await claimed(journal, None, 2)
    assert again.refund_id == "re_1"
    assert again.maybe_sent
    assert again.idempotency_key == first.idempotency_key
    journal.end()


async def test_second_batch_on_one_journal_is_refused(journal: Journal) -> None:
    journal.end()
    journal.begin()
    with pytest.raises(JournalError, match="another batch uses this journal"):
        journal.begin()
    await journal.add(items(1))
    assert ids(await claimed(journal, None, 1)) == ["re_1"]
    journal.end()
    journal.begin()


async def test_settled_item_is_counted_and_not_claimed_again(journal: Journal) -> None:
    await journal.add(items(1, 2, 3))
    claims = await claimed(journal, None, 2)
    await journal.settle([(claims[0], result(claims[0], "not_cancelable"))])
    await journal.settle([(claims[0], result(claims[0]))])  # and stays as it is
    tally = journal.tally()
    assert tally.open == 2
    assert tally.outcomes == {"not_cancelable": 1, "unknown": 1, None: 1}
    assert tally.total == 3
    left = [record for record in journal.records() if not record.settled]
    assert [(record.refund_id, record.idempotency_key) for record in left] == [
        ("re_2", claims[1].idempotency_key),
        ("re_3", None),
    ]


async def test_tasks_use_it_side_by_side(journal: Journal) -> None:
    async def work(account: str) -> set[str]:
        await journal.add(items(*range(30), account=account))
        claims = [
            claim
            for page in await asyncio.gather(
                *(claimed(journal, account, 5) for _ in range(6))
            )
            for claim in page
        ]
        await asyncio.gather(
            *(journal.settle([(claim, result(claim))]) for claim in claims)
        )
        return {claim.idempotency_key for claim in claims}

    found = await asyncio.gather(*(work(f"acct_{number}") for number in range(5)))
    assert len({key for keys in found for key in keys}) == 150
    assert journal.tally().open == 0


async def test_memory_takes_more_when_there_is_room() -> None:
    journal = MemoryJournal(window=2)
    adding = asyncio.create_task(journal.add(items(1, 2, 3)))
    await asyncio.sleep(0)
    assert not adding.done()
    (claim,) = await claimed(journal, None, 1)
    await journal.settle([(claim, result(claim))])
    await adding
    assert ids(await claimed(journal, None, 5)) == ["re_2", "re_3"]


async def test_path_is_opened_as_a_journal_of_the_run(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "run.sqlite3", RUN)
    assert journal.run == RUN
    await journal.close()


async def test_it_can_be_closed_twice(journal: Journal) -> None:
    await journal.close()


async def test_journal_of_another_target_is_refused(journal: Journal) -> None:
    require_target(journal.run, RUN)
    other = Run(RUN.base_url, livemode=True)
    if journal.run is None:  # of no particular client
        require_target(journal.run, other)
    else:
        with pytest.raises(JournalError, match=r"holds a run on https://api\.stripe"):
            require_target(journal.run, other)
