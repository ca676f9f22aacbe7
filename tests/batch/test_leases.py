"""A batch whose accounts come and go: leases are won, lost and handed over."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from async_refunds import JournalError, RetryPolicy, cancel_many
from async_refunds.batch.account_queue import AccountQueue
from async_refunds.emulator import Limits
from async_refunds.results import CancelRequest
from tests.support.batches import KEY, asked, canceled_many, client, emulator
from tests.support.leased import LeasedJournal, long_batch
from tests.support.scripted import CANCELED, RE, answer, refund_json, refusal, scripted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds.emulator import Emulator
    from async_refunds.models import Attempt
    from tests.support.leased import LongBatch

A, B = "acct_A", "acct_B"
ONCE = RetryPolicy(max_retries=0)
PATIENT = 50_000.0
SLOW = RetryPolicy(initial_delay=6000.0, max_delay=6000.0, deadline=PATIENT)
"""Between two attempts lies more than a test sees."""
WAITING = answer(body=refund_json("requires_action"))


@asynccontextmanager
async def fleet(
    stripe: Emulator,
    *,
    retry: RetryPolicy | None = None,
    **options: Any,  # noqa: ANN401 - of the execution
) -> AsyncGenerator[LongBatch]:
    async with (
        client(stripe, retry=retry or RetryPolicy()) as refunds,
        long_batch(refunds, **options) as batch,
    ):
        yield batch


def seeded(stripe: Emulator, count: int, account: str | None) -> list[str]:
    return stripe.seed_refunds(count, account=account)


async def test_account_comes_is_canceled_and_goes() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 30, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        await batch.until_idle()
        assert batch.idle == [A]
        assert batch.outcomes == dict.fromkeys(ids, "canceled")
        # It comes again.
        more = seeded(stripe, 3, A)
        await batch.journal.enqueue(more, A)
        batch.execution.open_account(A)
        await batch.until_idle(2)
        assert batch.outcomes == dict.fromkeys(ids + more, "canceled")
    assert batch.idle == [A, A]


async def test_account_with_nothing_to_do_is_idle_at_once() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        batch.open(A)
        await batch.until_idle()
        assert not stripe.requests


async def test_idle_account_has_every_result_in_the_journal() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 30, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        batch.journal.answering.clear()
        await asyncio.sleep(5.0)
        assert not batch.idle
        batch.journal.answering.set()
        await batch.until_idle()
        assert len(batch.journal.settled) == 30


async def test_more_of_an_account_that_is_at_work_is_canceled_with_it() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        first, more = seeded(stripe, 5, A), seeded(stripe, 5, A)
        await batch.journal.enqueue(first, A)
        batch.open(A)
        await batch.until_told(1)
        await batch.journal.enqueue(more, A)
        batch.execution.open_account(A)
        await batch.until_told(10)
        await batch.until_idle()
        assert batch.idle == [A]


async def test_lost_account_ends_quietly_and_the_others_go_on() -> None:
    stripe = emulator()
    stripe.latency = 0.5
    async with fleet(stripe) as batch:
        lost, others = seeded(stripe, 100, A), seeded(stripe, 100, B)
        await batch.journal.enqueue(lost, A)
        await batch.journal.enqueue(others, B)
        batch.open(A)
        batch.open(B)
        await batch.until_told(20)
        batch.journal.take_away(A)
        batch.journal.notice(A)
        told = len(batch.results)
        await asyncio.sleep(0.1)
        sent = len(asked_of(stripe, lost))  # also what was on its way
        await batch.until_idle()
        assert batch.idle == [B]
        assert len(asked_of(stripe, lost)) == sent, "nothing more is sent for it"
        later = {result.refund_id for result in batch.results[told:]}
        assert later <= set(others), "nothing is told of it any more"
        assert set(others) <= batch.outcomes.keys()
    # What was told was kept.
    assert {each.refund_id for each in batch.journal.settled} == batch.outcomes.keys()


def asked_of(stripe: Emulator, ids: list[str]) -> list[str | None]:
    return [key for each in ids for key in asked(stripe, each)]


async def test_lease_that_is_found_lost_at_a_claim_drops_the_account() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 50, A)
        await batch.journal.enqueue(ids, A)
        batch.execution.drop_account(A)  # which it does not know
        batch.execution.open_account(A)  # though somebody else has won it
        await asyncio.sleep(10.0)
        assert not stripe.requests
        assert not batch.idle
        batch.open(A)
        await batch.until_idle()
        assert batch.outcomes == dict.fromkeys(ids, "canceled")


async def test_lease_that_is_found_lost_at_a_result_drops_the_account() -> None:
    stripe = emulator()
    stripe.latency = 1.0
    async with fleet(stripe) as batch:
        lost, others = seeded(stripe, 20, A), seeded(stripe, 20, B)
        await batch.journal.enqueue(lost, A)
        await batch.journal.enqueue(others, B)
        batch.open(A)
        batch.open(B)
        await asyncio.sleep(0.5)
        batch.journal.take_away(A)  # unnoticed: all of it is under way, or unsent
        await batch.until_idle()
        assert batch.idle == [B]
        assert batch.outcomes == dict.fromkeys(others, "canceled")
        assert {each.refund_id for each in batch.journal.settled} == set(others)
        # Won again, each is asked for with the key that it had.
        batch.open(A)
        await batch.until_idle(2)
        assert batch.outcomes == dict.fromkeys(others + lost, "canceled")
        assert all(len(set(asked(stripe, each))) == 1 for each in lost)


async def test_nothing_is_sent_without_a_permit_and_it_goes_on_with_one() -> None:
    """The database is away for longer than the lease lasts, and for all patience."""
    stripe = emulator()
    async with fleet(stripe, patience=10.0) as batch:
        ids = seeded(stripe, 60, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        await batch.until_told(5)
        batch.journal.silent.add(A)
        batch.journal.answering.clear()
        await asyncio.sleep(2.0)
        sent = len(stripe.requests)
        await asyncio.sleep(300.0)
        assert len(stripe.requests) == sent
        batch.journal.silent.clear()
        batch.journal.answering.set()
        await batch.until_idle()
        assert batch.outcomes == dict.fromkeys(ids, "canceled")
        assert stripe.books.requests["cancel"] == 60


async def test_item_between_two_attempts_waits_for_the_permit() -> None:
    stripe = emulator()
    async with fleet(stripe, patience=10.0) as batch:
        stripe.faults.script(*["reset_after"] * 3)
        ids = seeded(stripe, 3, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        while len(stripe.requests) < 3:  # noqa: ASYNC110 - of the emulator
            await asyncio.sleep(0.001)
        batch.journal.silent.add(A)
        await asyncio.sleep(300.0)
        assert len(stripe.requests) == 3
        assert not batch.results
        batch.journal.silent.clear()
        await batch.until_idle()
        assert batch.outcomes == dict.fromkeys(ids, "canceled")
    assert max(stripe.books.cancellations.values()) == 1


async def test_permit_that_ends_on_the_way_to_the_connection_costs_nothing() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 3, A)
        await batch.journal.enqueue(ids, A)
        # Given when the item's turn comes, refused when there is a connection.
        batch.journal.answers.extend([lambda: True, lambda: False])
        batch.open(A)
        await batch.until_idle()
        assert batch.outcomes == dict.fromkeys(ids, "canceled")
        assert not batch.journal.answers
        assert len(batch.journal.claimed) == 3, "none is claimed twice"
        assert not any(each.attempts[0].failure for each in batch.results)


@pytest.mark.parametrize("end", ["drain", "drop"])
async def test_permit_that_ends_with_its_account(end: str) -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        await batch.journal.enqueue(seeded(stripe, 1, A), A)

        def refuse() -> bool:
            if end == "drop":
                batch.journal.take_away(A)
                batch.execution.drop_account(A)
            else:
                batch.execution.drain_account(A)
            return False

        batch.journal.answers.extend([lambda: True, refuse])
        batch.open(A)
        await asyncio.sleep(10.0)
        assert not stripe.requests
        assert not batch.results
        given_back = [claim.refund_id for claim in batch.journal.given_back]
        assert given_back == ([] if end == "drop" else batch.journal.claimed)
        assert batch.idle == ([] if end == "drop" else [A])


async def test_drained_item_that_may_not_be_asked_again_is_left_to_the_next() -> None:
    async with (
        scripted("reset", reads=[WAITING]) as server,
        server.client() as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue([RE], A)
        batch.open(A)
        await server.received_at_least(1)
        batch.journal.silent.add(A)
        batch.execution.drain_account(A)
        await batch.until_idle()
        assert server.methods() == "POST"
        assert not batch.results
        assert not batch.journal.given_back, "it may have been sent"
        server.cancels[:] = [CANCELED]
        batch.journal.silent.clear()
        batch.open(A)
        await batch.until_told(1)
        assert batch.outcomes == {RE: "canceled"}
        assert len(set(server.cancel_keys)) == 1


async def test_account_that_has_more_when_it_is_told_idle_goes_on() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 3, A)
        await batch.journal.enqueue(ids, A)
        batch.more = True
        batch.open(A)
        await batch.until_idle(2)
        assert batch.outcomes == dict.fromkeys(ids, "canceled")


async def test_stopped_without_a_permit_gives_back_what_was_not_sent() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 10, A)
        await batch.journal.enqueue(ids, A)
        batch.journal.silent.add(A)
        batch.open(A)
        await asyncio.sleep(3.0)
    assert not stripe.requests
    assert not batch.results
    assert {claim.refund_id for claim in batch.journal.given_back} == set(
        batch.journal.claimed
    )


async def test_stopped_without_a_permit_tells_what_it_knows_of_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        scripted("reset", reads=[WAITING]) as server,
        server.client() as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue(["re_1"], A)
        batch.open(A)
        await server.received_at_least(1)
        batch.journal.silent.add(A)
        await asyncio.sleep(60.0)
    assert server.methods() == "POST"
    assert batch.outcomes == {"re_1": "unknown"}
    assert "; a worker asks again with idempotency_key=" in caplog.text
    assert "call cancel again" not in caplog.text


async def test_call_under_way_ends_without_another_request_when_it_is_dropped() -> None:
    async with (
        scripted("stall") as server,
        server.client(attempt_timeout=5.0) as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue(["re_1", "re_2"], A)
        batch.open(A)
        await server.received_at_least(1)
        batch.journal.take_away(A)
        batch.journal.notice(A)
        batch.execution.drop_account(A)  # as the keeper and the journal may both say
        # Won again before the call has ended: it begins anew after that.
        server.cancels[:] = [CANCELED]
        batch.open(A)
        sent = len(server.received)
        await asyncio.sleep(1.0)
        assert len(server.received) == sent
        await batch.until_idle()
    assert {each.refund_id for each in batch.results} == {"re_1", "re_2"}
    assert len(server.cancel_keys) == 2


async def test_account_that_is_lost_again_before_it_began_anew_stays_away() -> None:
    async with (
        scripted("stall") as server,
        server.client(attempt_timeout=5.0) as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue(["re_1"], A)
        batch.open(A)
        await server.received_at_least(1)
        for _ in range(2):
            batch.journal.take_away(A)
            batch.execution.drop_account(A)
            batch.open(A)
        batch.journal.take_away(A)
        batch.journal.notice(A)
        await asyncio.sleep(60.0)
        assert server.methods() == "POST"
        assert not batch.idle
        assert not batch.results


async def test_waiting_item_of_a_dropped_account_is_not_asked_for_again() -> None:
    stripe = emulator()
    stripe.faults.storm(1.0, names=["503"])
    async with fleet(stripe, retry=ONCE) as batch:
        await batch.journal.enqueue(seeded(stripe, 3, A), A)
        batch.open(A)
        while not batch.execution.figures().waiting:  # noqa: ASYNC110 - of the batch
            await asyncio.sleep(0.01)
        batch.journal.take_away(A)
        batch.journal.notice(A)
        await asyncio.sleep(5.0)
        sent = len(stripe.requests)
        await asyncio.sleep(100.0)
        assert len(stripe.requests) == sent
        assert batch.execution.figures().waiting == 0
        assert not batch.results


async def test_drained_account_ends_what_is_under_way_and_gives_back_the_rest() -> None:
    stripe = emulator()
    stripe.latency = 0.5
    async with fleet(stripe, concurrency=3) as batch:
        ids = seeded(stripe, 50, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        await batch.until_told(20)
        batch.execution.drain_account(A)
        batch.execution.drain_account(A)
        batch.execution.open_account(A)  # as a late notification may
        await batch.until_idle()
        told = len(batch.results)
        assert told < 30
        assert {each.refund_id for each in batch.results} == {
            each for each in ids if asked(stripe, each)
        }
        rest = set(batch.journal.claimed) - batch.outcomes.keys()
        assert {each.refund_id for each in batch.journal.given_back} == rest
        assert rest
        batch.open(A)
        await batch.until_idle(2)
        assert batch.outcomes == dict.fromkeys(ids, "canceled")
    assert stripe.books.requests["cancel"] == 50


async def test_drained_account_asks_for_no_waiting_item_again() -> None:
    stripe = emulator()
    stripe.faults.storm(1.0, names=["503"])
    async with fleet(stripe, retry=ONCE) as batch:
        ids = seeded(stripe, 3, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        while batch.execution.figures().waiting < 3:  # noqa: ASYNC110 - of the batch
            await asyncio.sleep(0.01)
        sent = len(stripe.requests)
        batch.execution.drain_account(A)
        await batch.until_idle()
        assert len(stripe.requests) == sent
        assert not batch.results, "nothing came of them yet"
        # The next holder asks at once, and with the same keys.
        stripe.faults.clear()
        batch.open(A)
        await batch.until_told(3)
        assert batch.outcomes == dict.fromkeys(ids, "canceled")
        assert all(len(set(asked(stripe, each))) == 1 for each in ids)


@pytest.mark.parametrize("end", ["drain", "drop"])
async def test_call_between_two_attempts_ends_with_its_account(end: str) -> None:
    """It does not sleep to the end, nor does it ask again."""
    stripe = emulator()
    stripe.faults.storm(1.0, names=["503"])
    async with fleet(stripe, retry=SLOW, patience=PATIENT) as batch:
        ids = seeded(stripe, 5, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        while len(asked_of(stripe, ids)) < 5:  # noqa: ASYNC110 - of the emulator
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        ended_at = asyncio.get_running_loop().time()
        if end == "drain":
            batch.execution.drain_account(A)
            await batch.until_idle()
        else:
            batch.journal.take_away(A)
            batch.journal.notice(A)
            while batch.execution.figures().under_way:  # noqa: ASYNC110 - of the batch
                await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - ended_at < 0.5
        assert len(asked_of(stripe, ids)) == 5
        assert not batch.results
        # Their requests are counted.
        left = sum(len(each.attempts) for each in batch.journal.handed_over)
        assert left == (len(stripe.requests) if end == "drain" else 0)


async def in_flight(stripe: Emulator, batch: LongBatch) -> str:
    """Let a batch begin with a refund, and return it once the emulator was asked."""
    (refund_id,) = seeded(stripe, 1, A)
    await batch.journal.enqueue([refund_id], A)
    batch.open(A)
    while not asked(stripe, refund_id):  # noqa: ASYNC110 - of the emulator
        await asyncio.sleep(0.01)
    return refund_id


async def test_drained_call_that_is_broken_off_is_left_to_the_next_holder() -> None:
    """The next holder asks at once and with the same key: a result would wait."""
    stripe = emulator()
    stripe.faults.script("stall")
    async with fleet(stripe) as batch:
        refund_id = await in_flight(stripe, batch)
        batch.execution.drain_account(A)
        await asyncio.sleep(3.0)
        batch.execution.interrupt()
    assert not batch.results
    (left,) = batch.journal.handed_over
    assert (left.refund_id, left.outcome) == (refund_id, "unknown")
    assert not batch.journal.given_back


async def test_what_no_journal_has_handed_over_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The database is away: the next holder has the claim, and nobody the requests."""
    stripe = emulator()
    stripe.faults.storm(1.0, names=["503"])
    with pytest.raises(JournalError, match="did not answer"):  # noqa: PT012 - as it ends
        async with fleet(stripe, retry=SLOW, patience=PATIENT) as batch:
            await in_flight(stripe, batch)
            batch.journal.answering.clear()
            batch.execution.drain_account(A)
            await asyncio.sleep(1.0)
            batch.execution.abandon()
    told = [each for each in caplog.messages if "nobody waited for" in each]
    assert len(told) == 1
    (refund,) = stripe.latest_refunds()
    assert told[0].startswith(f"{refund['id']}: unknown, ")


async def test_drained_call_that_is_broken_off_unsent_is_given_back() -> None:
    """A limiter refused its request: it is as if it had not been claimed."""
    stripe = emulator()
    stripe.faults.script("rate_429", "stall")
    async with fleet(stripe, concurrency=1) as batch:
        refund_id = await in_flight(stripe, batch)
        batch.execution.drain_account(A)
        batch.execution.interrupt()
    assert not batch.results
    assert not batch.journal.handed_over
    assert [each.refund_id for each in batch.journal.given_back] == [refund_id]


async def test_call_that_is_broken_off_where_nobody_takes_over_is_told() -> None:
    stripe = emulator()
    stripe.faults.script("stall")
    async with fleet(stripe) as batch:
        refund_id = await in_flight(stripe, batch)
        batch.execution.interrupt()
    assert batch.outcomes == {refund_id: "unknown"}
    assert not batch.journal.handed_over


async def test_item_that_cannot_be_handed_over_any_more_is_the_new_holders() -> None:
    """Its lease was lost before the journal noted that it is left."""
    stripe = emulator()
    stripe.faults.storm(1.0, names=["503"])
    async with fleet(stripe, retry=SLOW, patience=PATIENT) as batch:
        ids = seeded(stripe, 3, A)
        await batch.journal.enqueue(ids, A)
        batch.open(A)
        while len(asked_of(stripe, ids)) < 3:  # noqa: ASYNC110 - of the emulator
            await asyncio.sleep(0.01)
        batch.journal.take_away(A)
        batch.execution.drain_account(A)
        await asyncio.sleep(1.0)
        assert not batch.execution.works_on(A)
        assert not batch.idle
    assert not batch.results
    assert not batch.journal.handed_over


async def test_drained_call_is_settled_by_a_read_and_kept() -> None:
    """Its request was carried out, and the answer lost."""
    async with (
        scripted("reset", reads=[CANCELED]) as server,
        server.client(retry=SLOW) as refunds,
        long_batch(refunds, patience=PATIENT) as batch,
    ):
        await batch.journal.enqueue([RE], A)
        batch.open(A)
        await server.received_at_least(1)
        await asyncio.sleep(0.1)
        batch.execution.drain_account(A)
        await batch.until_idle()
        assert server.methods() == "POST GET"
        await batch.until_told(1)
        assert batch.outcomes == {RE: "canceled"}


async def test_drained_item_that_a_limit_refused_is_given_back() -> None:
    """It was certainly not carried out: it is as if it had not been claimed."""
    stripe = emulator()
    stripe.faults.script("rate_429")
    async with fleet(stripe, retry=SLOW, patience=PATIENT) as batch:
        refund_id = await in_flight(stripe, batch)
        await asyncio.sleep(0.1)
        batch.execution.drain_account(A)
        await batch.until_idle()
        assert [each.refund_id for each in batch.journal.given_back] == [refund_id]
        assert not batch.results
        batch.open(A)
        await batch.until_told(1)
        assert batch.outcomes == {refund_id: "canceled"}


async def test_account_is_drained_while_the_journal_looks_for_claims() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        ids = seeded(stripe, 10, A)
        await batch.journal.enqueue(ids, A)
        batch.journal.answering.clear()
        batch.open(A)
        await asyncio.sleep(1.0)
        batch.execution.drain_account(A)
        await asyncio.sleep(1.0)
        assert not batch.idle, "the claims are on their way"
        batch.journal.answering.set()
        await batch.until_idle()
        assert not stripe.requests
        assert batch.journal.given_back
        # The same with a lease that is lost.
        batch.journal.answering.clear()
        batch.open(A)
        await asyncio.sleep(1.0)
        batch.execution.drop_account(A)
        batch.journal.answering.set()
        await asyncio.sleep(5.0)
        assert not stripe.requests
        assert len(batch.idle) == 1


async def test_refused_key_hands_its_account_back_and_the_others_go_on() -> None:
    no = refusal(401, type="invalid_request_error")
    async with (
        scripted(no) as server,
        server.client() as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue([f"re_{n}" for n in range(500)], A)
        batch.open(A)
        await batch.until_idle()
        closing = batch.closings[A]
        assert closing is not None
        assert closing.reply.status == 401  # type: ignore[attr-defined]
        failed, sent = len(batch.results), len(server.received)
        assert sent < 30
        assert failed <= sent, "what was not sent is given back, not failed"
        claimed = set(batch.journal.claimed)
        back = {claim.refund_id for claim in batch.journal.given_back}
        assert back == claimed - batch.outcomes.keys()
        assert set(batch.outcomes.values()) == {"failed"}
        await batch.journal.enqueue([RE], B)
        server.cancels[:] = [CANCELED]
        batch.open(B)
        await batch.until_idle(2)
        assert len(server.received) == sent + 1


@pytest.mark.parametrize(
    ("late", "outcome"),
    [(CANCELED, "canceled"), (refusal(503), "unknown")],
    ids=["canceled", "unknown"],
)
async def test_answer_that_comes_after_the_key_was_refused_opens_nothing(
    late: bytes, outcome: str
) -> None:
    """It is told, and the account waits as one whose key is refused."""
    no = refusal(401, type="invalid_request_error")
    async with (
        scripted("stall", no, reads=[WAITING]) as server,
        server.client() as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue([RE, *(f"re_{n}" for n in range(20))], A)
        batch.open(A)
        await server.received_at_least(4)
        await asyncio.sleep(5.0)
        assert not batch.idle
        server.say(late)
        await batch.until_idle()
        assert batch.closings[A] is not None
        assert batch.outcomes[RE] == outcome


async def test_account_that_was_to_begin_anew_does_not_when_it_is_drained() -> None:
    async with (
        scripted("stall") as server,
        server.client(attempt_timeout=5.0) as refunds,
        long_batch(refunds) as batch,
    ):
        await batch.journal.enqueue(["re_1"], A)
        batch.open(A)
        await server.received_at_least(1)
        batch.journal.take_away(A)
        batch.execution.drop_account(A)
        batch.open(A)
        assert batch.execution.works_on(A)
        batch.execution.drain_account(A)
        assert not batch.execution.works_on(A)
        await asyncio.sleep(60.0)
        assert server.methods() == "POST"
        assert not batch.results


async def test_takeover_begins_at_the_rate_that_was_found() -> None:
    """The limit is 5 a second; without what was found, a dozen are refused."""
    refused: list[int] = []
    rates: list[float | None] = []
    for start in (None, 5.0):
        stripe = emulator(Limits(endpoint_rate=5.0))
        async with fleet(stripe) as batch:
            ids = seeded(stripe, 300, A)
            await batch.journal.enqueue(ids, A)
            batch.open(A, start)
            await batch.until_told(150)
            refused.append(stripe.books.rate_limited.total())
            rates.append(batch.execution.rate_of(A))
    assert 8 < refused[0] < 20
    assert refused[1] <= 5
    assert rates == [pytest.approx(5.0, rel=0.15)] * 2


async def test_rate_of_a_young_or_unknown_account_is_none() -> None:
    stripe = emulator()
    async with fleet(stripe) as batch:
        assert batch.execution.rate_of(A) is None
        assert batch.execution.closing_of(A) is None
        await batch.journal.enqueue(seeded(stripe, 1, A), A)
        batch.open(A)
        await batch.until_idle()
        assert batch.rates == {A: None}
        assert batch.closings == {A: None}


async def test_accounts_that_have_gone_leave_nothing_in_memory() -> None:
    stripe = emulator()
    async with fleet(stripe, concurrency=10) as batch:
        accounts = [f"acct_{n}" for n in range(300)]
        for account in accounts:
            await batch.journal.enqueue(seeded(stripe, 2, account), account)
            batch.open(account)
        await batch.until_idle(300)
        gc.collect()
        queues = [each for each in gc.get_objects() if isinstance(each, AccountQueue)]
        # Each worker, and each connection, may hold the last that it had.
        assert len(queues) <= 20
        await batch.until_told(600)


async def test_result_whose_lease_is_lost_makes_room_for_others() -> None:
    """A slow caller bounds the results that wait; the lost ones do not count."""
    stripe = emulator()
    stripe.latency = 1.0
    async with fleet(stripe, concurrency=2) as batch:
        for number in range(1, 4):
            account = f"acct_{number}"
            await batch.journal.enqueue(seeded(stripe, 2, account), account)
            batch.open(account)
            while len(stripe.requests) < 2 * number:  # noqa: ASYNC110 - of the emulator
                await asyncio.sleep(0.1)
            batch.journal.take_away(account)
            await asyncio.sleep(5.0)
            assert not batch.results
        others = seeded(stripe, 20, B)
        await batch.journal.enqueue(others, B)
        batch.open(B)
        await batch.until_idle()
        await batch.until_told(20)
        assert set(others) == batch.outcomes.keys()


async def test_result_of_an_account_that_was_dropped_is_neither_kept_nor_told() -> None:
    """Also where the journal would still take it."""
    stripe = emulator()
    stripe.latency = 1.0
    async with fleet(stripe) as batch:
        await batch.journal.enqueue(seeded(stripe, 3, A), A)
        batch.open(A)
        await asyncio.sleep(0.5)
        batch.execution.drop_account(A)
        await asyncio.sleep(5.0)
        assert stripe.requests
        assert not batch.results
        assert not batch.journal.settled


async def test_new_key_that_the_lease_forbids_drops_the_account() -> None:
    async with (
        scripted(CANCELED, reads=[WAITING]) as server,
        server.client() as refunds,
    ):
        now = [0.0]
        journal = LeasedJournal(clock=lambda: now[0])
        async with long_batch(refunds, journal) as batch:
            await journal.enqueue([RE], A)
            journal.hold(A)
            await journal.claim({A: 1})  # by an earlier batch, two days ago
            now[0] = 48 * 3600.0
            batch.open(A)
            await server.received_at_least(1)
            journal.take_away(A)
            await asyncio.sleep(10.0)
            assert server.methods() == "GET"
            assert not batch.results
            assert not batch.idle


async def test_batch_says_at_its_end_which_account_it_never_had() -> None:
    """`cancel_many` on a journal of several machines yields no result of these."""
    stripe = emulator()
    journal = LeasedJournal()
    journal.hold(B)
    async with client(stripe) as refunds:
        lost, others = seeded(stripe, 5, A), seeded(stripe, 5, B)
        await journal.enqueue(lost, A)
        await journal.enqueue(others, B)
        told: list[str] = []
        with pytest.raises(JournalError, match="has taken over acct_A: the journal"):  # noqa: PT012 - as it ends
            async for each in cancel_many(refunds, (), journal=journal):
                told.append(each.refund_id)  # noqa: PERF401 - before it raises
    assert sorted(told) == sorted(others)
    assert not asked_of(stripe, lost)


async def test_batch_without_an_end_of_leases_ends_when_one_is_lost() -> None:
    """Claims are there, nothing may be sent, and nobody will ever claim more."""
    stripe = emulator()
    journal = LeasedJournal()
    journal.hold(A)
    async with client(stripe) as refunds:
        await journal.enqueue(seeded(stripe, 100, A), A)
        told = sent = 0
        with pytest.raises(JournalError, match="has taken over acct_A: the journal"):  # noqa: PT012 - as it ends
            async for _ in cancel_many(refunds, (), journal=journal, rate=10.0):
                told += 1
                if told == 20:
                    journal.take_away(A)
                    await asyncio.sleep(30.0)
                    sent = len(stripe.requests)
                    journal.notice(A)
    assert len(stripe.requests) == sent < 60


class AskedTooOften(LeasedJournal):
    """Ends a batch that asks whether it may send, and never waits in between."""

    asked = 0

    def may_send(self, stripe_account: str | None) -> bool:
        self.asked += 1
        assert self.asked < 10_000
        return super().may_send(stripe_account)


async def test_what_a_refused_key_leaves_needs_no_permit_to_end() -> None:
    """The database is away since: nothing is to be sent, and nothing to wait for."""
    stripe = emulator()
    journal = AskedTooOften()
    journal.hold(A)
    ids = seeded(stripe, 20, A)
    stripe.expire_key(KEY)
    refusals = count(1)

    def silence_when_closed(_: Attempt) -> None:
        if next(refusals) == 3:
            journal.silent.add(A)

    requests = [CancelRequest(each, A) for each in ids]
    async with client(stripe, on_attempt=silence_when_closed) as refunds:
        results = await canceled_many(refunds, requests, journal=journal, concurrency=1)
    assert {each: result.outcome for each, result in results.items()} == dict.fromkeys(
        ids, "failed"
    )
    assert next(refusals) == 4
