"""A doubt about a refund outlives calls, batches and runs, until it is settled."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_refunds import (
    CancelResult,
    RefundNotFoundError,
    RetryPolicy,
    cancel_many,
)
from async_refunds.journal import MemoryJournal, Run, SqliteJournal
from async_refunds.results import CancelRequest
from tests.support.journals import claimed
from tests.support.scripted import (
    KEY,
    RE,
    Act,
    answer,
    refund_json,
    refusal,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from async_refunds import RefundsClient


class Once(aiohttp.TCPConnector):
    """Lets one connection through, and refuses every later one."""

    entered = 0

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
    ) -> Connection:
        self.entered += 1
        if self.entered > 1:
            raise aiohttp.ClientConnectorError(req.connection_key, OSError(111, "no"))
        return await super().connect(req, traces, timeout)


async def only(results: AsyncGenerator[CancelResult]) -> CancelResult:
    (found,) = [result async for result in results]
    return found


@pytest.mark.parametrize("status", [404, 429])
async def test_doubtful_refusal_is_remembered_by_the_next_call_of_a_batch(
    status: int,
) -> None:
    stray = refusal(status, echo=False)
    policy = RetryPolicy(max_retries=1, deadline=2.0)
    async with (
        scripted(stray) as server,
        aiohttp.ClientSession(connector=Once()) as session,
    ):
        refunds = server.client(session=session, retry=policy)
        result = await only(cancel_many(refunds, [RE], patience=10.0))
    assert len({attempt.number for attempt in result.attempts}) > 1
    assert result.outcome == "unknown"


REPLAY = answer(headers={"Request-Id": "req_1", "Idempotent-Replayed": "true"})
"""Of the answer that was lost."""
REFUSALS: dict[str, tuple[Act, str]] = {
    # Stripe repeats its first answer to a key: had the lost request canceled, it would
    # be that one.
    "a refusal to the key": (refusal(400), "already_canceled"),
    "repeated": (refusal(400, {"Idempotent-Replayed": "true"}), "already_canceled"),
    "a refusal to whom": (refusal(400, echo=False), "canceled"),
    "a refusal of a parameter": (refusal(400, code="parameter_unknown"), "canceled"),
    "a refusal of the key": (refusal(401), "canceled"),
    "the answer that was lost": (REPLAY, "canceled"),
}


@pytest.mark.usefixtures("one_call_each")
@pytest.mark.parametrize(("act", "told"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_refund_found_canceled_by_a_later_run_is_credited_by_what_is_proven(
    act: Act, told: str
) -> None:
    policy, failing = RetryPolicy(max_retries=0), answer(500, b"")
    journal = MemoryJournal()
    async with (
        scripted("reset", act, reads=[failing, seen("canceled")]) as server,
        server.client(retry=policy) as refunds,
    ):
        outcomes = [
            (await only(cancel_many(refunds, [RE], journal=journal))) for _ in range(2)
        ]
    assert [result.outcome for result in outcomes] == ["unknown", told]
    assert len(server.cancel_keys) == 1


@pytest.mark.usefixtures("one_call_each")
@pytest.mark.parametrize(
    ("hours", "told"), [((2, 1, 0), "already_canceled"), ((30, 1, 0), "canceled")]
)
async def test_refusal_to_a_key_that_stripe_may_have_forgotten_proves_nothing(
    hours: tuple[float, ...], told: str
) -> None:
    """Of three runs, the first one sent the key and the second was killed early."""
    passed = [3600 * each for each in hours]
    journal = MemoryJournal(clock=lambda: time.time() - passed[0])
    policy, failing = RetryPolicy(max_retries=0), answer(500, b"")
    async with (
        scripted("reset", refusal(400), reads=[failing, seen("canceled")]) as server,
        server.client(retry=policy) as refunds,
    ):
        first = cancel_many(refunds, [RE], journal=journal)
        assert (await only(first)).outcome == "unknown"
        passed.pop(0)
        journal.begin()
        await claimed(journal, None, 1)
        journal.end()
        passed.pop(0)
        last = cancel_many(refunds, [RE], journal=journal)
        assert (await only(last)).outcome == told
    assert len(server.cancel_keys) == 1


@pytest.mark.usefixtures("one_call_each")
@pytest.mark.parametrize("state", ["requires_action", "pending"])
@pytest.mark.parametrize("act", [refusal(400), refusal(404, code="resource_missing")])
async def test_refund_that_a_later_run_finds_open_after_a_refusal_stays_unknown(
    act: Act, state: str
) -> None:
    policy, failing = RetryPolicy(max_retries=0), answer(500, b"")
    journal = MemoryJournal()
    async with (
        scripted("reset", act, reads=[failing, seen(state)]) as server,
        server.client(retry=policy) as refunds,
    ):
        for _ in range(2):
            results = cancel_many(refunds, [RE], journal=journal)
            assert (await only(results)).outcome == "unknown"


MISSING = refusal(404, code="resource_missing")
ABSENT: dict[str, tuple[Act, Act, str, str]] = {
    # The last answers to the cancel and to the read, the last run's key, the outcome.
    "no such refund": (MISSING, MISSING, KEY, "failed"),
    "with another API key": (MISSING, MISSING, f"{KEY}_2", "unknown"),
    "to whom": (
        refusal(404, echo=False, code="resource_missing"),
        *(MISSING, KEY, "unknown"),
    ),
    "no such page": (refusal(404), refusal(404), KEY, "unknown"),
    "a read that fails": (MISSING, answer(500, b""), KEY, "unknown"),
    "a read that is refused": (MISSING, refusal(403), KEY, "unknown"),
    "a read that a proxy refuses": (MISSING, answer(404, b"gone"), KEY, "unknown"),
    "found canceled": (MISSING, seen("canceled"), KEY, "canceled"),
    "refused for good": (refusal(403), refusal(403), KEY, "unknown"),
}


@pytest.mark.usefixtures("one_call_each")
@pytest.mark.parametrize("hours", [1, 30])
@pytest.mark.parametrize(
    ("act", "read", "api_key", "told"), ABSENT.values(), ids=ABSENT
)
async def test_refund_that_a_later_run_does_not_find_was_not_canceled(
    act: Act, read: Act, api_key: str, told: str, hours: int
) -> None:
    """Its account is the one that all requests went to: no other one was asked."""
    passed = hours * 3600
    journal = MemoryJournal(clock=lambda: time.time() - passed)
    policy, failing = RetryPolicy(max_retries=0), answer(500, b"")
    async with (
        scripted("reset", act, reads=[failing, read]) as server,
        server.client(retry=policy) as first,
        server.client(retry=policy, api_key=api_key) as last,
    ):
        results = cancel_many(first, [RE], journal=journal)
        assert (await only(results)).outcome == "unknown"
        passed = 0
        found = await only(cancel_many(last, [RE], journal=journal))
    assert found.outcome == told
    assert len(server.cancel_keys) == 1
    if hours == 30 and api_key != KEY:
        # It may be found with the other one, and Stripe may have forgotten the key.
        assert server.methods().count("POST") == 1
    if told == "failed":
        assert isinstance(found.error, RefundNotFoundError)
        assert not found.settled, "another API key may find it"


@pytest.mark.usefixtures("one_call_each")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"stripe_context": "acct_1Other"}),
        # Which may be another one each time.
        ({"api_key": lambda: KEY}, {"api_key": lambda: KEY}),
    ],
)
async def test_refund_not_found_by_a_key_of_perhaps_another_account_stays_unknown(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    policy, failing = RetryPolicy(max_retries=0), answer(500, b"")
    journal = MemoryJournal()
    async with (
        scripted("reset", MISSING, reads=[failing, MISSING]) as server,
        server.client(retry=policy, **one) as first,
        server.client(retry=policy, **other) as last,
    ):
        for refunds in (first, last):
            found = await only(cancel_many(refunds, [RE], journal=journal))
            assert found.outcome == "unknown"


@pytest.mark.usefixtures("one_call_each")
async def test_refund_that_is_lost_and_not_found_in_one_call_stays_unknown() -> None:
    """A lost request and an absence, both within seconds, are rather no accident."""
    policy = RetryPolicy(max_retries=1, initial_delay=0.01)
    async with (
        scripted("reset", MISSING, reads=[MISSING]) as server,
        server.client(retry=policy) as refunds,
    ):
        assert (await only(cancel_many(refunds, [RE]))).outcome == "unknown"
    assert server.methods() == "POST POST GET"


@pytest.mark.usefixtures("one_call_each")
async def test_id_that_comes_again_after_an_unknown_outcome_has_the_same_key() -> None:
    first = asyncio.Event()

    async def source() -> AsyncGenerator[str]:
        yield RE
        await first.wait()
        yield RE

    policy, failing = RetryPolicy(max_retries=0), answer(500, b"")
    async with (
        scripted("reset", REPLAY, reads=[failing]) as server,
        server.client(retry=policy) as refunds,
    ):
        found: list[CancelResult] = []
        async for result in cancel_many(refunds, source()):
            found.append(result)
            first.set()
    assert [result.outcome for result in found] == ["unknown", "canceled"]
    assert len(server.cancel_keys) == 1


RUN = Run("https://api.stripe.com", livemode=False)
DAY = 24 * 3600.0


def unknown(claim_key: str) -> CancelResult:
    return CancelResult(
        refund_id=RE,
        stripe_account=None,
        outcome="unknown",
        idempotency_key=claim_key,
        settled=False,
    )


@pytest.mark.asyncio(loop_factories=["real"])
async def test_age_of_a_key_counts_from_when_it_was_last_given_out(
    tmp_path: Path,
) -> None:
    now, path = 1.8e9, tmp_path / "run.sqlite3"
    ages: list[float] = []
    for passed in (0.0, 0.9 * DAY, 0.1 * DAY, 2 * DAY):
        now += passed
        async with SqliteJournal.open(path, RUN, clock=lambda: now) as journal:  # noqa: B023 - the time of this turn
            journal.begin()
            await journal.add([CancelRequest(RE)])
            (claim,) = await claimed(journal, None, 1)
            ages.append(now - claim.key_created_at)
            if passed != 0.9 * DAY:  # that run is killed before its result
                await journal.settle([(claim, unknown(claim.idempotency_key))])
            journal.end()
    assert ages == pytest.approx([0.0, 0.9 * DAY, 0.1 * DAY, 2 * DAY])


async def resumed(refunds: RefundsClient, ids: list[str], path: Path) -> list[str]:
    results = cancel_many(refunds, ids, journal=path)
    return [result.outcome async for result in results]


@pytest.mark.asyncio(loop_factories=["real"])
async def test_number_that_no_row_can_hold_ends_no_run(tmp_path: Path) -> None:
    odd = answer(
        body=refund_json(amount=10**20, created=-(10**30), charge="ch_a@b.example"),
        headers={"Request-Id": "req_1"},
    )
    path = tmp_path / "run.sqlite3"
    async with scripted(odd) as server, server.client() as refunds:
        assert await resumed(refunds, [RE], path) == ["canceled"]
    async with SqliteJournal.open(path) as journal:
        (record,) = journal.records()
    assert (record.outcome, record.amount, record.created) == ("canceled", None, None)
    assert record.charge == "[e-mail]"
