"""Many refunds at once: each accounted for, whatever happens to it or to the batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_refunds import (
    APIConnectionError,
    Attempt,
    AuthenticationError,
    CancelRequest,
    CancelResult,
    OutcomeUnknownError,
    PermissionDeniedError,
    RateLimitError,
    RefundNotCancelableError,
    RefundNotFoundError,
    RefundsClient,
    RefundsError,
    RetryPolicy,
    cancel_many,
)
from async_refunds.batch import Batch, claim_rounds, source
from async_refunds.emulator import Emulator, Limits
from async_refunds.journal import MemoryJournal, SqliteJournal
from tests.support.answering import answering, canceled
from tests.support.batches import KEY, asked, canceled_many, client, emulator
from tests.support.scripted import (
    CANCELED,
    RE,
    Act,
    answer,
    error_json,
    refund_json,
    refusal,
    scripted,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from pathlib import Path

    from async_refunds.batch.source import Requests
    from async_refunds.emulator import ReceivedRequest
    from async_refunds.journal import Claim

SAVED_500 = answer(
    500, error_json(type="api_error"), headers={"Idempotent-Replayed": "true"}
)
ONCE = RetryPolicy(max_retries=0)
FAST = 1000.0


async def drip(ids: Iterable[str]) -> AsyncIterator[str]:
    for refund_id in ids:
        await asyncio.sleep(0.01)
        yield refund_id


def requesting(ids: Iterable[str]) -> Iterator[CancelRequest]:
    return (CancelRequest(each) for each in ids)


@pytest.mark.parametrize(
    "given",
    [list[str], tuple[str], drip, requesting],
    ids=["list", "tuple", "async generator", "requests"],
)
async def test_each_refund_is_canceled_once_and_told_once(
    given: Callable[[list[str]], Requests],
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(300)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, given(ids))
    assert results.keys() == set(ids)
    assert {result.outcome for result in results.values()} == {"canceled"}
    assert all(stripe.books.cancellations[refund_id] == 1 for refund_id in ids)
    assert stripe.books.requests == {"cancel": 300}


async def test_result_tells_what_was_asked_and_what_came_back() -> None:
    stripe = emulator()
    refund_id = stripe.add_refund()
    stripe.faults.script("unsaved_500", "ok")
    async with client(stripe) as refunds:
        result = (await canceled_many(refunds, [refund_id]))[refund_id]
    assert result.refund is not None
    assert result.refund.status == "canceled"
    assert asked(stripe, refund_id) == [result.idempotency_key] * 2
    assert [attempt.status for attempt in result.attempts] == [500, 200]
    assert result.request_id == result.refund.last_response.request_id
    slept = result.attempts[1].slept
    assert slept > 0
    # Both are differences of times on the event loop's clock.
    assert result.seconds > slept or result.seconds == pytest.approx(slept)
    assert result.error is None
    assert result.settled


async def test_what_happens_to_one_refund_is_its_result() -> None:
    stripe = emulator()
    ids = {
        "canceled": stripe.add_refund(),
        "already_canceled": stripe.add_refund(status="canceled"),
        "not_cancelable": stripe.add_refund(status="succeeded"),
    }
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, [*ids.values(), "re_none", "ch_1"])
    for outcome, refund_id in ids.items():
        assert results[refund_id].outcome == outcome
        assert results[refund_id].refund is not None
        assert results[refund_id].settled
    error = results[ids["not_cancelable"]].error
    assert isinstance(error, RefundNotCancelableError)
    assert error.refund.status == "succeeded"
    assert results["re_none"].outcome == "failed"
    assert isinstance(results["re_none"].error, RefundNotFoundError)
    assert not results["re_none"].settled  # another key may find it
    assert results["ch_1"].outcome == "failed"
    assert isinstance(results["ch_1"].error, ValueError)
    assert results["ch_1"].idempotency_key is None
    assert results["ch_1"].settled
    assert stripe.books.requests["cancel"] == 4


async def test_what_is_no_id_is_told_without_its_secrets() -> None:
    stripe = emulator()
    given: list[Any] = [KEY, 7, None, CancelRequest("re_1", "acct/1"), "a@b.example"]
    async with client(stripe) as refunds:
        results = [result async for result in cancel_many(refunds, given)]
    assert [type(result.error) for result in results] == [
        *(ValueError, TypeError, TypeError, ValueError, ValueError),
    ]
    assert [result.refund_id for result in results[1:4]] == [
        *("<int>", "<NoneType>", "re_1"),
    ]
    assert KEY not in str(results)
    assert "a@b" not in str(results)
    assert not stripe.books.requests


async def test_each_account_is_asked_for_its_own() -> None:
    stripe = emulator()
    own = stripe.add_refund(account="acct_1")
    other = stripe.add_refund(account="acct_2")
    async with client(stripe, stripe_account="acct_1") as refunds:
        results = await canceled_many(refunds, [own, CancelRequest(other, "acct_2")])
    assert {result.outcome for result in results.values()} == {"canceled"}
    assert results[own].stripe_account == "acct_1"
    assert results[other].stripe_account == "acct_2"


async def test_no_more_are_under_way_than_allowed() -> None:
    stripe = emulator(Limits(None, None, endpoint_concurrency=7))
    stripe.faults.storm(1, names=["slow"])
    ids = stripe.seed_refunds(60)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids, concurrency=7, rate=FAST)
    assert len(results) == 60
    assert not stripe.books.rate_limited


async def test_input_is_read_only_as_far_as_it_is_needed() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(5000)
    read = 0

    def reading() -> Iterator[str]:
        nonlocal read
        for refund_id in ids:
            read += 1
            yield refund_id

    async with (
        client(stripe) as refunds,
        aclosing(cancel_many(refunds, reading(), rate=FAST)) as results,
    ):
        for ended in range(1, 2001):
            await anext(results)
            # In the window, in the chunk that waits for room there, and under way.
            assert read <= ended + 1000 + 1000 + 100


async def test_input_that_takes_its_time_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "_CHUNK_SECONDS", -1.0)  # passed at once
    stripe = emulator()
    ids = stripe.seed_refunds(50)
    read = 0

    def reading() -> Iterator[str]:
        nonlocal read
        for refund_id in ids:
            read += 1
            yield refund_id

    async with (
        client(stripe) as refunds,
        aclosing(cancel_many(refunds, reading(), rate=FAST)) as results,
    ):
        told = [await anext(results)]
        assert read < 50
        told += [result async for result in results]
    assert sorted(result.refund_id for result in told) == sorted(ids)


async def test_asynchronous_input_that_is_always_ready_is_read_in_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "CHUNK", 10)
    stripe = emulator()
    ids = stripe.seed_refunds(50)

    async def reading() -> AsyncIterator[str]:
        for refund_id in ids:
            yield refund_id

    sizes = [len(chunk.requests) async for chunk in source.read_chunks(reading())]
    assert sizes == [10, 10, 10, 10, 10]
    async with client(stripe) as refunds:
        found = await canceled_many(refunds, reading(), rate=FAST)
    assert found.keys() == set(ids)


@pytest.mark.asyncio(loop_factories=["real"])
async def test_journal_is_not_far_ahead_of_an_input_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(source, "CHUNK", 20)
    monkeypatch.setattr(claim_rounds, "_AHEAD", 20)
    stripe = emulator()
    ids = stripe.seed_refunds(250)
    read = 0

    def reading() -> Iterator[str]:
        nonlocal read
        for refund_id in (*ids, *ids[:100], *ids[:100]):  # some are there already
            read += 1
            yield refund_id

    path = tmp_path / "run.sqlite3"
    ended = 0
    async with client(stripe) as refunds:
        async for result in cancel_many(refunds, reading(), rate=100, journal=path):
            ended += 1
            assert result.outcome == "canceled"
            if ended < 100:
                # Claimed are what goes out in a second, and what is under way.
                assert read <= ended + 100 + 50 + 20 + 20
    assert ended == 250
    assert read == 450


async def test_results_come_while_the_input_is_still_waited_for() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    told = asyncio.Event()

    async def feed() -> AsyncIterator[str]:
        for refund_id in ids:
            yield refund_id
            await told.wait()
            told.clear()

    async with client(stripe) as refunds:
        seen: list[str] = []
        async for result in cancel_many(refunds, feed()):
            seen.append(result.refund_id)
            told.set()
    assert seen == ids


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_input_that_breaks_off_is_done_as_far_as_it_was_read(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(20)

    def broken() -> Iterator[str]:
        yield from ids
        raise LookupError("the database is gone")

    async def broken_later() -> AsyncIterator[str]:
        for refund_id in broken():
            yield refund_id

    given = broken() if kind == "plain" else broken_later()
    async with client(stripe) as refunds:
        results = cancel_many(refunds, given)
        done = [(await anext(results)).refund_id for _ in ids]
        with pytest.raises(LookupError, match="the database is gone"):
            await anext(results)
    assert sorted(done) == sorted(ids)
    assert "the input broke off" in caplog.text


async def test_input_that_breaks_off_at_once_is_told() -> None:
    def broken() -> Iterator[str]:
        yield from ()
        raise LookupError("there is no database")

    async with client(emulator()) as refunds:
        with pytest.raises(LookupError, match="there is no database"):
            await anext(cancel_many(refunds, broken()))


async def test_same_refund_twice_is_canceled_once() -> None:
    stripe = emulator()
    refund_id = stripe.add_refund()
    far = stripe.seed_refunds(1500)
    async with client(stripe) as refunds:
        near = [each async for each in cancel_many(refunds, [refund_id] * 50)]
        given = [*far, far[0]]
        results = [each async for each in cancel_many(refunds, given, rate=FAST)]
    assert [result.outcome for result in near] == ["canceled"]
    assert asked(stripe, refund_id) in ([], [near[0].idempotency_key])
    outcomes = [each.outcome for each in results if each.refund_id == far[0]]
    assert outcomes == ["canceled", "already_canceled"]
    assert len(results) == 1501
    assert stripe.books.cancellations[far[0]] == 1


async def test_refused_account_stops_and_the_others_go_on() -> None:
    stripe = emulator()
    good = stripe.seed_refunds(40, account="acct_good")
    bad = [CancelRequest(f"re_{n}", "acct_stranger") for n in range(500)]
    given = [*bad, *(CancelRequest(each, "acct_good") for each in good)]
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, given, concurrency=5)
    assert all(results[each].outcome == "canceled" for each in good)
    for request in bad:
        result = results[request.refund_id]
        assert result.outcome == "failed"
        assert isinstance(result.error, PermissionDeniedError)
        assert not result.settled
    assert stripe.books.requests["cancel"] <= 40 + 5
    assert sum(results[each.refund_id].idempotency_key is None for each in bad) >= 495


async def test_key_that_expires_in_mid_run_leaves_no_false_no() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    stripe.faults.script("reset_after")
    async with client(stripe, retry=ONCE) as refunds:
        # The answer to the first is lost; before anybody asks again the key expires.
        batch = Batch(refunds, ids, concurrency=1)
        stripe.faults.script("stall")
        results: dict[str, Any] = {}
        stripe_expires = asyncio.get_running_loop().call_later(
            5, stripe.expire_key, KEY
        )
        async for result in batch.results():
            results[result.refund_id] = result
        stripe_expires.cancel()
    assert stripe.books.cancellations[ids[0]] == 1
    assert results[ids[0]].outcome == "unknown"
    assert isinstance(results[ids[0]].error, OutcomeUnknownError)
    assert results[ids[0]].idempotency_key in asked(stripe, ids[0])
    for refund_id in ids[1:]:
        assert results[refund_id].outcome in ("failed", "canceled")
        assert (results[refund_id].outcome == "canceled") == (
            stripe.books.cancellations[refund_id] == 1
        )


async def test_error_of_a_refused_account_is_each_refunds_own() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(8)
    stripe.faults.script("reset_after", "stall")
    async with client(stripe, retry=ONCE, attempt_timeout=1) as refunds:
        batch = Batch(refunds, ids, concurrency=1)
        asyncio.get_running_loop().call_later(0.5, stripe.expire_key, KEY)
        results = {result.refund_id: result async for result in batch.results()}
    for refund_id, result in results.items():
        assert refund_id in str(result.error)
        assert isinstance(result.error, RefundsError)
        assert result.error.idempotency_key == result.idempotency_key
    assert results[ids[0]].outcome == "unknown"
    assert isinstance(results[ids[0]].error, OutcomeUnknownError)
    unasked = [each for each in ids if results[each].idempotency_key is None]
    assert ids[-4:] == unasked[-4:]


async def test_own_error_is_told_of_what_was_under_way_when_the_key_expired() -> None:
    stripe = emulator()
    slow, *refused = stripe.seed_refunds(4)
    stripe.faults.script("stall")
    loop = asyncio.get_running_loop()
    async with client(stripe, retry=ONCE, attempt_timeout=5) as refunds:
        loop.call_later(0.5, stripe.expire_key, KEY)
        results = await canceled_many(refunds, [slow, *refused], rate=1)
    for refund_id in refused:
        assert isinstance(results[refund_id].error, AuthenticationError)
    assert results[slow].outcome == "unknown"
    assert "no answer in time" in str(results[slow].error)


@pytest.mark.parametrize("ending", ["stop", "break", "cancel", "interrupt", "close"])
async def test_what_waits_to_be_asked_again_is_told_at_the_end(
    ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(6)
    # All are canceled, and nobody hears of it.
    stripe.faults.storm(1, names=["reset_after"])
    told: set[str] = set()

    async def consume() -> None:
        async with aclosing(batch.results()) as results:
            async for result in results:
                told.add(result.refund_id)

    async with client(stripe, retry=ONCE) as refunds:
        batch = Batch(refunds, ids, rate=FAST)
        task = asyncio.create_task(consume())
        for _ in range(1000):  # however time jumps, until each was asked for
            if stripe.books.cancellations.total() == 6:
                break
            await asyncio.sleep(0.1)
        if ending == "stop":
            batch.stop()
        elif ending == "interrupt":
            batch.interrupt()
        elif ending == "close":
            await refunds.close()
        else:
            task.cancel()
        await asyncio.wait([task])
    told |= {each for each in ids if f"{each}: unknown" in caplog.text}
    assert told == set(ids)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("canceled", "already_canceled"), ("succeeded", "not_cancelable")],
)
async def test_state_is_told_also_where_reads_are_limited(
    status: str, outcome: str
) -> None:
    stripe = emulator(Limits(global_rate=25))  # as a sandbox has it, reads included
    ids = [stripe.add_refund(status=status) for _ in range(400)]
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids, patience=600)
    assert {result.outcome for result in results.values()} == {outcome}


async def test_state_that_could_not_be_read_is_no_final_no() -> None:
    no = refusal(400, type="invalid_request_error", message="Charges must")
    async with scripted(no, reads=[answer(503, b"{}")]) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE], patience=5)
        await refunds.close()
    assert results[RE].outcome == "failed"
    assert not results[RE].settled
    assert server.methods().count("POST") > 1
    assert len(server.cancel_keys) == 1


@pytest.mark.parametrize("why", [{"param": "id"}, {"code": "resource_missing"}])
async def test_refusal_that_says_what_is_wrong_is_final(why: dict[str, str]) -> None:
    no = refusal(400, {}, echo=True, **why)
    async with scripted(no) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE])
        await refunds.close()
    assert results[RE].outcome == "failed"
    assert results[RE].settled
    assert server.methods() == "POST"


async def test_key_that_may_not_read_is_not_asked_with_over_and_over() -> None:
    no = refusal(400, type="invalid_request_error", message="Charges must")
    unseen = refusal(403, type="invalid_request_error")
    async with scripted(no, reads=[unseen]) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE, f"{RE}B"], concurrency=1)
        await refunds.close()
    for result in results.values():
        assert result.outcome == "failed"
        assert not result.settled
    # It may be good for cancels all the same, so the other one is asked for too.
    assert server.methods() == "POST GET POST GET"


async def test_page_of_a_proxy_is_no_word_on_the_key() -> None:
    forbidden = answer(403, b"<html>Forbidden</html>")
    async with scripted(forbidden, reads=[forbidden]) as server:
        refunds = server.client()
        ids = [f"{RE}{letter}" for letter in "ABCD"]
        results = await canceled_many(refunds, ids, concurrency=1)
        await refunds.close()
    assert server.methods() == "POST GET POST GET POST GET POST GET"
    assert {result.outcome for result in results.values()} == {"unknown"}
    for result in results.values():  # no journal has the key
        advice = f"; call cancel again with idempotency_key={result.idempotency_key!r}"
        assert advice in str(result.error)


async def test_service_that_comes_up_a_little_later_is_waited_for() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(200)
    stripe.faults.refuse_seconds = 3
    async with client(stripe) as refunds:
        stripe.faults.script("refuse")
        results = await canceled_many(refunds, ids)
    assert {result.outcome for result in results.values()} == {"canceled"}


async def test_told_not_to_ask_again_it_does_not() -> None:
    final = {"Stripe-Should-Retry": "false"}
    waiting = answer(200, refund_json("requires_action"))
    for status in (500, 429):
        no = refusal(status, final, type="api_error")
        async with scripted(no, reads=[waiting]) as server:
            refunds = server.client()
            results = await canceled_many(refunds, [RE])
            await refunds.close()
        assert results[RE].outcome == ("unknown" if status == 500 else "failed")
        assert server.methods().count("POST") == 1


async def test_account_that_takes_long_leaves_workers_to_the_others() -> None:
    stripe = emulator(Limits(None, None))
    stripe.latency = 1
    long = stripe.seed_refunds(50, account="acct_long")
    own = stripe.seed_refunds(50)
    alone = asyncio.Event()

    async def feed() -> AsyncIterator[str | CancelRequest]:
        for refund_id in long:
            yield CancelRequest(refund_id, "acct_long")
        await alone.wait()
        for refund_id in own:
            yield refund_id

    async with client(stripe) as refunds:
        asyncio.get_running_loop().call_later(0.5, alone.set)
        await canceled_many(refunds, feed(), concurrency=10, rate=FAST)
    accounts = [request.stripe_account for request in stripe.requests]
    # Alone, it has all workers; as soon as there are others, no more than half.
    assert accounts[:10] == ["acct_long"] * 10
    assert accounts[10:20].count("acct_long") == 5


class Late(MemoryJournal):
    """A journal whose claims come late, and know nothing of what came meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.claiming = asyncio.Event()
        self.release = asyncio.Event()
        self.given: list[str] = []
        self.returned: list[str] = []

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        claims = await super().claim(limits)
        self.given += [claim.refund_id for each in claims.values() for claim in each]
        self.claiming.set()
        await self.release.wait()
        return claims

    async def give_back(self, claims: Sequence[Claim]) -> None:
        self.returned += [claim.refund_id for claim in claims]


async def test_input_that_comes_while_the_journal_gives_out_claims_counts() -> None:
    stripe = emulator()
    first, second = stripe.seed_refunds(2)
    journal = Late()

    async def feed() -> AsyncIterator[str]:
        yield first
        await journal.claiming.wait()
        yield second
        asyncio.get_running_loop().call_later(1, journal.release.set)

    async with client(stripe) as refunds, asyncio.timeout(60):
        results = await canceled_many(refunds, feed(), journal=journal)
    assert results.keys() == {first, second}


async def test_claims_that_come_after_a_stop_are_given_back() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)
    journal = Late()
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, journal=journal)
        running = asyncio.create_task(anext(batch.results(), None))
        await journal.claiming.wait()
        batch.stop()
        journal.release.set()
        assert await running is None
    # All of them, but where reading the first took long.
    assert journal.returned == journal.given == ids[: len(journal.given)] != []
    assert not stripe.books.requests


async def test_input_that_is_cancelled_by_itself_is_told() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(3)

    async def later() -> AsyncIterator[str]:
        for refund_id in ids:
            yield refund_id
        raise asyncio.CancelledError

    def now() -> Iterator[str]:
        yield from ids
        raise asyncio.CancelledError

    for given in (later(), now()):
        async with client(stripe) as refunds:
            results = cancel_many(refunds, given)
            for _ in ids:
                await anext(results)
            with pytest.raises(RuntimeError, match="the input was cancelled"):
                await anext(results)


async def test_input_that_is_waited_for_is_let_go_when_the_loop_is_left() -> None:
    stripe = emulator()
    (refund_id,) = stripe.seed_refunds(1)
    ended = False

    async def feed() -> AsyncIterator[str]:
        nonlocal ended
        try:
            yield refund_id
            await asyncio.Event().wait()
        finally:
            ended = True

    async with client(stripe) as refunds:
        async with aclosing(cancel_many(refunds, feed())) as results:
            await anext(results)
        assert ended


async def test_account_that_could_not_be_reached_goes_on_when_an_answer_comes() -> None:
    arrived, answering, back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await answering.wait()
        refund_id = head.split(b"/")[3].decode()
        writer.write(answer(200, refund_json(id=refund_id)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def feed() -> AsyncIterator[str]:
        yield "re_slow"
        await arrived.wait()
        server.close()
        yield "re_refused"
        await asyncio.sleep(20)
        answering.set()
        await back.wait()
        yield "re_later"

    async with RefundsClient(KEY, base_url=f"http://127.0.0.1:{port}") as refunds:
        results: dict[str, CancelResult] = {}
        async for result in cancel_many(refunds, feed()):
            results[result.refund_id] = result
            if result.refund_id == "re_slow":
                server = await asyncio.start_server(serve, "127.0.0.1", port)
                back.set()
    server.close()
    # Nothing had ever been answered, so that the account was closed for a while.
    assert isinstance(results["re_refused"].error, APIConnectionError)
    assert results["re_refused"].seconds < 19
    assert results["re_slow"].outcome == results["re_later"].outcome == "canceled"


async def test_input_that_will_not_end_is_left_behind() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(2)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def stubborn() -> AsyncIterator[str]:
        for refund_id in ids:
            yield refund_id
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with client(stripe) as refunds:
        async with aclosing(cancel_many(refunds, stubborn())) as results:
            await anext(results)
            left = loop.time()
        seconds = loop.time() - left
        release.set()
    assert seconds < 5  # calls have ten to end, an input has one


def test_loop_that_ends_in_the_midst_of_a_batch_ends(
    stripe_emulator: Emulator,
) -> None:
    # From a thread: a loop that ends leaves what its server is about to accept open.
    ids = stripe_emulator.seed_refunds(500)
    base_url = stripe_emulator.base_url

    async def consume() -> None:
        async with RefundsClient(KEY, base_url=base_url) as refunds:
            async for _ in cancel_many(refunds, ids, rate=50):
                begun.set()

    async def leave() -> None:
        tasks = [asyncio.create_task(consume()) for _ in range(1)]
        await begun.wait()
        del tasks

    for _ in range(5):
        begun = asyncio.Event()
        asyncio.run(leave())


async def test_secrets_in_an_error_of_the_input_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Iterator[str]:
        yield from ()
        raise LookupError(f"no row for a@b.example with {KEY}")

    async with client(emulator()) as refunds:
        with pytest.raises(LookupError):
            await anext(cancel_many(refunds, broken()))
    assert KEY not in caplog.text
    assert "a@b" not in caplog.text


async def test_wrong_key_is_tried_with_three_refunds() -> None:
    stripe = emulator()
    stripe.expire_key(KEY)
    ids = stripe.seed_refunds(300)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids, concurrency=1)
    assert stripe.books.requests == {"cancel": 3}
    for result in results.values():
        assert result.outcome == "failed"
        assert isinstance(result.error, AuthenticationError)


async def test_refused_key_says_nothing_doubtful_of_what_was_never_sent() -> None:
    """Also where no refusal is proven, since the reads that would do it say nothing."""

    def respond(method: str, refund_id: str) -> bytes:
        if method == "POST":
            return refusal(401, echo=False)
        return answer(200, refund_json(id="re_other"))

    ids = [f"re_{number}" for number in range(8)]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, ids, concurrency=1, patience=20)
    sent = [result for result in results.values() if result.attempts]
    assert len(sent) == 3
    assert {result.outcome for result in sent} == {"unknown"}
    unsent = [result for result in results.values() if not result.attempts]
    assert {(each.outcome, each.idempotency_key) for each in unsent} == {
        ("failed", None)
    }
    assert {type(each.error) for each in unsent} == {AuthenticationError}


async def test_one_refund_whose_calls_are_all_refused_closes_nothing() -> None:
    def respond(method: str, refund_id: str) -> bytes:
        if refund_id != "re_refused":
            return canceled(refund_id)
        if method == "POST":
            return refusal(401, echo=False)
        return answer(200, refund_json(id="re_other"))

    ids = ["re_refused", *(f"re_{number}" for number in range(3))]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, ids, concurrency=1, patience=20)
    assert results.pop("re_refused").outcome == "unknown"
    assert {result.outcome for result in results.values()} == {"canceled"}


async def test_brown_out_slows_the_run_down_and_fails_nothing() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(2000)
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        began = loop.time()
        results: dict[str, Any] = {}
        async for result in cancel_many(refunds, ids):
            results[result.refund_id] = result
            if len(results) == 300:
                stripe.faults.storm(1, names=["503"])
                loop.call_later(60, stripe.faults.clear)
    assert {result.outcome for result in results.values()} == {"canceled"}
    assert len(results) == 2000
    requests = sum(stripe.books.requests.values())
    assert stripe.books.faults["503"] > 20
    assert requests <= 1.2 * 2000
    assert loop.time() - began < 60 + 2000 / 20 + 30


async def test_service_that_was_never_reached_is_not_asked_for_each() -> None:
    loop = asyncio.get_running_loop()
    async with RefundsClient(KEY, base_url="http://127.0.0.1:9") as refunds:
        began = loop.time()
        results = await canceled_many(refunds, [f"re_{n}" for n in range(1000)])
    assert len(results) == 1000
    assert sum(bool(result.attempts) for result in results.values()) <= 50
    assert loop.time() - began < 120
    for result in results.values():
        assert result.outcome == "failed"
        assert isinstance(result.error, APIConnectionError)
        assert not result.settled


async def test_service_that_goes_away_for_a_while_is_waited_for() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(200)
    stripe.faults.refuse_seconds = 45
    results = 0
    async with client(stripe) as refunds:
        async for result in cancel_many(refunds, ids):
            assert result.outcome == "canceled"
            results += 1
            if results == 50:
                stripe.faults.script("refuse")
    assert results == 200
    assert stripe.books.faults["refuse"] == 1


async def test_patience_comes_to_an_end() -> None:
    stripe = emulator()
    refund_id = stripe.add_refund()
    stripe.faults.storm(1, names=["rate_429"])
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        began = loop.time()
        results = await canceled_many(refunds, [refund_id], patience=30)
    assert 10 < loop.time() - began <= 30 + 80
    result = results[refund_id]
    assert result.outcome == "failed"
    assert isinstance(result.error, RateLimitError)
    assert not result.settled
    assert len(set(asked(stripe, refund_id))) == 1
    assert len(result.attempts) == len(asked(stripe, refund_id)) > 4


async def test_saved_500_that_stays_open_is_not_asked_for_over_and_over() -> None:
    waiting = answer(200, refund_json("requires_action"))
    async with scripted(SAVED_500, reads=[waiting]) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE])
        await refunds.close()
    assert results[RE].outcome == "unknown"
    refund = results[RE].refund
    assert refund is not None
    assert refund.status == "requires_action"
    assert server.methods() == "POST GET"


async def test_saved_500_that_could_not_be_read_is_asked_for_again() -> None:
    reads: list[Act] = ["reset"] * 8
    reads.append(CANCELED)
    async with scripted(SAVED_500, reads=reads) as server:
        refunds = server.client()
        results = await canceled_many(refunds, [RE])
        await refunds.close()
    assert results[RE].outcome == "canceled"
    assert server.methods().count("POST") > 1
    assert len(server.cancel_keys) == 1


async def test_retries_keep_to_the_pace_too() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(100)
    stripe.faults.storm(0.2, names=["rate_429"], seed=1)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids, rate=10)
    assert {result.outcome for result in results.values()} == {"canceled"}
    times = sorted(request.received_at for request in stripe.requests)
    assert len(times) > 110
    assert all(
        later - first > 0.95 for first, later in zip(times, times[11:], strict=False)
    )


async def test_patience_is_over_also_while_a_retry_waits_for_its_turn() -> None:
    stripe = emulator()
    first, second = stripe.seed_refunds(2)
    stripe.faults.script("rate_429", "ok", "ok")
    async with client(stripe) as refunds:
        # The retry has its turn after 100 s, and the second refund after 200 s.
        results = await canceled_many(
            refunds, [first, second], rate=0.01, timeout=80, patience=10
        )
    assert results[first].outcome == "failed"
    assert isinstance(results[first].error, RateLimitError)
    assert results[first].seconds == pytest.approx(10, abs=1)
    assert not results[first].settled
    assert results[second].outcome == "canceled"


async def test_call_ends_in_time_also_while_its_retry_waits_for_its_turn() -> None:
    stripe = emulator()
    first, second = stripe.seed_refunds(2)
    stripe.faults.script("rate_429", "ok", "ok")
    async with client(stripe) as refunds:
        results = await canceled_many(
            refunds, [first, second], rate=0.01, timeout=20, patience=10_000
        )
    # The second call gets through.
    assert {results[each].outcome for each in results} == {"canceled"}
    assert len(results[first].attempts) == 2


async def test_batch_finds_the_limit_of_stripe_by_itself() -> None:
    stripe = emulator(Limits(global_rate=None))  # 25 cancels a second
    log: deque[ReceivedRequest] = deque()
    stripe.requests = log  # all of them
    ids = stripe.seed_refunds(2000)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids)
    assert {result.outcome for result in results.values()} == {"canceled"}
    began = log[0].received_at
    for start in (0, 30):
        passed = [
            request
            for request in log
            if start <= request.received_at - began < start + 30
            and request.status == 200
        ]
        assert len(passed) >= 0.95 * 25 * 30
    assert stripe.books.rate_limited["endpoint-rate"] < 0.02 * len(log)


async def test_each_account_has_a_pace_of_its_own() -> None:
    stripe = emulator()
    accounts = [f"acct_{n}" for n in range(5)]
    given = [
        CancelRequest(refund_id, account)
        for account in accounts
        for refund_id in stripe.seed_refunds(50, account=account)
    ]
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        began = loop.time()
        results = await canceled_many(refunds, given, rate=5)
    assert len(results) == 250
    assert 9.7 < loop.time() - began < 15


async def test_slow_account_in_front_holds_up_no_other() -> None:
    stripe = emulator()
    slow = stripe.seed_refunds(300, account="acct_slow")
    quick = stripe.seed_refunds(10, account="acct_quick")
    given = [
        *(CancelRequest(each, "acct_slow") for each in slow),
        *(CancelRequest(each, "acct_quick") for each in quick),
    ]
    async with client(stripe) as refunds:
        order = [
            result.stripe_account
            async for result in cancel_many(refunds, given, rate=10, concurrency=4)
        ]
    assert order[:40].count("acct_quick") == 10


async def test_refunds_of_a_locked_charge_are_retried_one_at_a_time() -> None:
    stripe = emulator(Limits(None, None, endpoint_concurrency=1))
    ids = stripe.seed_refunds(10, per_charge=10)
    stripe.faults.script(*["lock_429"] * 10)
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, rate=FAST)
        began = loop.time()
        results = [result async for result in batch.results()]
        # Each gives way to the next as soon as it is over, not when its time is.
        assert loop.time() - began < 10
    assert [result.outcome for result in results] == ["canceled"] * 10
    # Were two of them retried at once, the limit to the concurrency would show it.
    assert set(stripe.books.rate_limited) == {"lock_timeout"}
    # One read of each tells which of them share the charge.
    assert 0 < stripe.books.requests["retrieve"] <= 2 * 10


async def test_locked_charge_slows_its_own_refunds_only() -> None:
    stripe = emulator(Limits(None, None))
    stripe.latency = 0.5
    locked = stripe.seed_refunds(30, per_charge=30)
    others = stripe.seed_refunds(200)
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        began, ended = loop.time(), 0.0
        async for result in cancel_many(refunds, [*locked, *others], rate=20):
            assert result.outcome == "canceled"
            if result.refund_id in others:
                ended = loop.time() - began
    # The retries of the thirty take slots of the account's pace, and nothing else.
    assert ended < (230 + 30 * 3) / 20
    assert 0 < stripe.books.rate_limited["lock_timeout"] < 30 * 3


async def test_locked_refunds_whose_charge_cannot_be_read_retry_one_by_one() -> None:
    locked = refusal(429, code="lock_timeout")
    times: dict[str, int] = {}

    def respond(method: str, refund_id: str) -> bytes:
        if method == "GET":
            return answer(503, b"{}")
        times[refund_id] = times.get(refund_id, 0) + 1
        return locked if times[refund_id] <= 2 else canceled(refund_id)

    ids = [f"re_{number}" for number in range(12)]
    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, ids, rate=FAST)
    assert {result.outcome for result in results.values()} == {"canceled"}


async def test_locked_refunds_are_not_read_when_their_patience_is_over() -> None:
    stripe = emulator()
    stripe.latency = 0.5
    ids = stripe.seed_refunds(10, per_charge=10)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids, rate=FAST, patience=1e-9)
    assert {result.outcome for result in results.values()} == {"canceled", "failed"}
    assert not stripe.books.requests["retrieve"]


async def test_refunds_of_one_charge_are_all_canceled() -> None:
    stripe = emulator()
    stripe.latency = 0.3
    ids = stripe.seed_refunds(60, per_charge=20)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids)
    assert {result.outcome for result in results.values()} == {"canceled"}
    assert all(stripe.books.cancellations[each] == 1 for each in ids)
    # Each may run into the lock once; no two of them do so over and over.
    assert 0 < stripe.books.rate_limited["lock_timeout"] <= 60


async def test_limit_to_requests_at_once_is_found() -> None:
    stripe = emulator(Limits(None, None, endpoint_concurrency=3))
    stripe.faults.storm(1, names=["slow"])
    ids = stripe.seed_refunds(400)
    async with client(stripe) as refunds:
        results = await canceled_many(refunds, ids, rate=FAST)
    assert {result.outcome for result in results.values()} == {"canceled"}
    assert stripe.books.rate_limited["endpoint-concurrency"] < 0.3 * 400


async def test_loop_that_is_left_early_leaves_nothing_under_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = emulator()
    stripe.faults.storm(1, names=["slow"])
    ids = stripe.seed_refunds(300)
    async with client(stripe) as refunds:
        with caplog.at_level(logging.WARNING):
            async with aclosing(cancel_many(refunds, ids, rate=FAST)) as results:
                first = await anext(results)
        before = stripe.books.requests["cancel"]
        assert len(asyncio.all_tasks()) <= 2 + before  # the test's, the emulator's
        await asyncio.sleep(60)
        assert stripe.books.requests["cancel"] == before
    untold = [name for name in ids if f"{name}: canceled" in caplog.text]
    assert len(untold) + 1 == before == sum(stripe.books.cancellations.values())
    assert first.refund_id not in untold


async def test_left_loop_waits_ten_seconds_for_what_is_under_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = emulator()
    first, second = stripe.seed_refunds(2)
    stripe.faults.script("ok", "stall")
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        async with aclosing(cancel_many(refunds, [first, second])) as results:
            assert (await anext(results)).refund_id == first
            await asyncio.sleep(1)
            began = loop.time()
        assert loop.time() - began == pytest.approx(10, abs=0.5)
    (key,) = asked(stripe, second)
    assert f"{second}: unknown, which nobody waited for [key {key}]" in caplog.text


async def test_cancelled_batch_ends_what_is_under_way_and_passes_it_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = emulator()
    stripe.faults.storm(1, names=["slow"])
    ids = stripe.seed_refunds(30)

    async def consume() -> None:
        async for _ in cancel_many(refunds, ids, rate=FAST):
            raise AssertionError("none is over yet")

    async with client(stripe) as refunds:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = sum(stripe.books.cancellations.values())
        assert before
        assert caplog.text.count(": canceled, which nobody waited for") == before
        await asyncio.sleep(60)
    assert sum(stripe.books.cancellations.values()) == before


async def test_batch_cancelled_twice_waits_for_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = emulator()
    stripe.faults.storm(1, names=["stall"])
    ids = stripe.seed_refunds(5)
    loop = asyncio.get_running_loop()
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, rate=FAST)
        task = asyncio.create_task(anext(batch.results()))
        await asyncio.sleep(0.5)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.1)
        began = loop.time()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.time() - began < 1
    assert caplog.text.count(": unknown, which nobody waited for") == 5
    for refund_id in ids:
        assert f"[key {asked(stripe, refund_id)[0]}]" in caplog.text


async def test_slow_reader_of_the_results_slows_the_batch_down() -> None:
    stripe = emulator()
    ids = [*stripe.seed_refunds(200), *(["no id"] * 200)]
    async with (
        client(stripe) as refunds,
        aclosing(cancel_many(refunds, ids, concurrency=5, rate=FAST)) as results,
    ):
        for told in range(1, 401):
            await anext(results)
            await asyncio.sleep(1)
            assert stripe.books.requests["cancel"] <= told + 2 * 5 + 5
    assert stripe.books.requests["cancel"] == 200


async def test_input_of_nothing_but_bad_ids_is_read_as_its_results_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No worker has them, and no journal, which hold up the reading otherwise."""
    monkeypatch.setattr(source, "CHUNK", 20)
    stripe = emulator()
    read = 0

    def reading() -> Iterator[str]:
        nonlocal read
        for read in range(1, 1001):  # noqa: B007 - the test looks at it
            yield "no id"

    async with (
        client(stripe) as refunds,
        aclosing(cancel_many(refunds, reading(), concurrency=5)) as results,
    ):
        for told in range(1, 1001):
            assert (await anext(results)).outcome == "failed"
            await asyncio.sleep(1)
            assert read <= told + 5 + 20
    assert read == 1000
    assert not stripe.requests


def test_loop_that_ends_with_a_batch_left_open_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = Emulator()
    ids = stripe.seed_refunds(500)
    kept: list[object] = []

    async def leave() -> None:
        async with client(stripe) as refunds:
            results = cancel_many(refunds, ids, concurrency=3, rate=FAST)
            kept.append(results)  # as a traceback might: nothing closes it
            await anext(results)

    asyncio.run(leave())
    done = sum(stripe.books.cancellations.values())
    told = sum(f"{refund_id}: " in caplog.text for refund_id in ids)
    assert done <= told + 1
    assert told < 20


async def test_batch_whose_tasks_are_all_cancelled_leaves_nobody_waiting() -> None:
    async with RefundsClient(KEY, base_url="http://127.0.0.1:9") as refunds:
        waiting = asyncio.create_task(canceled_many(refunds, ["re_1", "re_2"]))
        others = asyncio.all_tasks()
        await asyncio.sleep(0.5)
        # As at the end of a loop, which may come to them before us.
        for task in asyncio.all_tasks() - others:
            task.cancel()
        await asyncio.wait([waiting], timeout=60)
        assert waiting.done()


def test_what_waits_to_be_asked_again_when_the_loop_ends_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stripe = Emulator()
    stripe.faults.storm(1, names=["503"])
    ids = stripe.seed_refunds(3)
    kept: list[object] = []

    async def leave() -> None:
        async with client(stripe, retry=ONCE) as refunds:
            batch = Batch(refunds, ["no id", *ids], rate=FAST)
            results = batch.results()
            kept.append(results)  # as a traceback might: nothing closes it
            await anext(results)
            while batch.progress().waiting < len(ids):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)

    asyncio.run(leave())
    for refund_id in ids:
        assert f"{refund_id}: unknown" in caplog.text


async def test_stopped_batch_tells_what_is_under_way_and_begins_nothing() -> None:
    stripe = emulator()
    stripe.faults.storm(1, names=["slow"])
    ids = stripe.seed_refunds(100)
    told: list[str] = []
    async with client(stripe) as refunds:
        batch = Batch(refunds, iter(ids), concurrency=8, rate=FAST)
        async for result in batch.results():
            batch.stop()
            assert result.outcome == "canceled"
            told.append(result.refund_id)
    # When the first is told, as many may have ended, and made room for others.
    assert 1 <= len(told) <= 2 * 8
    assert {each for each in ids if stripe.books.cancellations[each]} == set(told)


async def test_what_stays_open_in_a_stopped_batch_is_told_at_once() -> None:
    stripe = emulator()
    slow, lost = stripe.seed_refunds(2)
    stripe.faults.script("stall", "reset_after", "503")
    loop = asyncio.get_running_loop()

    def stop(_: Attempt) -> None:
        batch.stop()

    async with client(stripe, retry=ONCE, on_attempt=stop) as refunds:
        batch = Batch(refunds, [slow, lost])
        began = loop.time()
        times = {
            result.refund_id: loop.time() - began async for result in batch.results()
        }
    assert times[lost] < 5 < times[slow]


@pytest.mark.parametrize("how", ["stop", "interrupt"])
async def test_batch_stopped_before_it_begins_sends_nothing(how: str) -> None:
    stripe = emulator()
    async with client(stripe) as refunds:
        batch = Batch(refunds, stripe.seed_refunds(3))
        getattr(batch, how)()
        assert [result async for result in batch.results()] == []
    assert not stripe.books.requests


async def test_interrupted_batch_tells_what_is_under_way_as_unknown() -> None:
    stripe = emulator()
    stripe.faults.storm(1, names=["stall"])
    ids = stripe.seed_refunds(20)
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, concurrency=4, rate=FAST)
        asyncio.get_running_loop().call_later(1, batch.interrupt)
        results = [result async for result in batch.results()]
    assert len(results) == 4
    for result in results:
        assert result.outcome == "unknown"
        assert isinstance(result.error, OutcomeUnknownError)
        assert result.error.idempotency_key == result.idempotency_key
        assert asked(stripe, result.refund_id) == [result.idempotency_key]
        assert not result.settled


async def test_progress_shows_how_far_it_has_come() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(50)
    stripe.faults.script("unsaved_500")
    async with client(stripe) as refunds:
        batch = Batch(refunds, ids, rate=10)
        assert batch.progress().requests == 0
        results = batch.results()
        for _ in range(20):
            await anext(results)
        now = batch.progress()
        assert 20 <= now.outcomes["canceled"] <= 25
        assert now.requests >= 21
        assert now.retries == 1
        assert now.rate == 10
        assert not now.in_trouble
        async for _ in results:
            pass
    end = batch.progress()
    assert end.outcomes == {"canceled": 50}
    assert (end.under_way, end.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"concurrency": 0}, ValueError),
        ({"concurrency": 2.5}, TypeError),
        ({"rate": 0}, ValueError),
        ({"rate": -1}, ValueError),
        ({"rate": float("nan")}, ValueError),
        ({"rate": True}, TypeError),
        ({"rate": "fast"}, TypeError),
        ({"patience": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"requests": "re_1"}, TypeError),
        ({"requests": b"re_1"}, TypeError),
        ({"requests": 7}, TypeError),
        ({"refunds": KEY}, TypeError),
        ({"journal": 3}, TypeError),
        ({"journal": b"run.sqlite3"}, TypeError),
        ({"journal": SqliteJournal}, TypeError),
    ],
)
async def test_bad_argument_is_refused_before_anything_is_sent(
    options: dict[str, Any], error: type[Exception]
) -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(1)
    async with client(stripe) as refunds:
        given: dict[str, Any] = {"refunds": refunds, "requests": ids, **options}
        with pytest.raises(error):
            await anext(cancel_many(**given))
    assert not stripe.books.requests


async def test_closed_client_is_told_and_nothing_is_sent() -> None:
    stripe = emulator()
    ids = stripe.seed_refunds(10)
    async with client(stripe) as refunds:
        await refunds.close()
        with pytest.raises(RuntimeError, match="closed"):
            await anext(cancel_many(refunds, ids))
    assert not stripe.books.requests


@pytest.mark.parametrize(("after", "outcome"), [(1, "failed"), (2, "unknown")])
async def test_client_closed_in_mid_run_leaves_what_is_known(
    after: int, outcome: str
) -> None:
    stripe = emulator()
    (refund_id,) = stripe.seed_refunds(1)
    # Refused; and when it is asked for again, canceled without a word.
    stripe.faults.script("rate_429", "reset_after")
    closing: list[asyncio.Task[None]] = []
    attempts: list[Attempt] = []

    def note(attempt: Attempt) -> None:
        attempts.append(attempt)
        if len(attempts) == after:
            closing.append(asyncio.create_task(refunds.close()))

    async with client(stripe, retry=ONCE, on_attempt=note) as refunds:
        results = cancel_many(refunds, [refund_id])
        result = await anext(results)
        with pytest.raises(RuntimeError, match="closed"):
            await anext(results)
    assert result.outcome == outcome
    assert stripe.books.cancellations[refund_id] == after - 1


async def test_session_that_its_owner_closes_ends_the_batch() -> None:
    """It does not wait for Stripe to come back, as after an outage."""
    stripe = emulator()
    ids = stripe.seed_refunds(50)
    async with (
        aiohttp.ClientSession() as session,
        client(stripe, session=session) as refunds,
    ):
        results = cancel_many(refunds, ids, rate=100, concurrency=1)
        told = {(await anext(results)).refund_id}
        await session.close()
        with pytest.raises(RuntimeError, match="session given"):
            told |= {result.refund_id async for result in results}
    assert not told - stripe.books.cancellations.keys()


async def test_batch_runs_once() -> None:
    stripe = emulator()
    async with client(stripe) as refunds:
        batch = Batch(refunds, stripe.seed_refunds(3))
        assert len([result async for result in batch.results()]) == 3
        with pytest.raises(RuntimeError, match="runs once"):
            await anext(batch.results())


async def test_empty_input_ends_at_once() -> None:
    async with client(Emulator()) as refunds:
        assert await canceled_many(refunds, []) == {}
