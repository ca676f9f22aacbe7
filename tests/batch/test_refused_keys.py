"""When a batch stops asking for an account, and when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_refunds import PermissionDeniedError, RefundsClient
from tests.support.answering import answering, canceled
from tests.support.batches import KEY, canceled_many
from tests.support.scripted import answer, refusal

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

IDS = [f"re_{number:03}" for number in range(300)]


class Books:
    """A server that refuses some refunds, and what it was asked."""

    def __init__(self, refused: Container[str], status: int) -> None:
        self.refused = refused
        self.status = status
        self.asked: list[str] = []

    def respond(self, method: str, refund_id: str) -> bytes:
        assert method == "POST"
        self.asked.append(refund_id)
        if refund_id in self.refused:
            return refusal(self.status)
        return canceled(refund_id)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("concurrency", [1, 50])
async def test_refusal_of_one_refund_does_not_close_its_account(
    status: int, concurrency: int
) -> None:
    books = Books({IDS[2], IDS[150]}, status)
    async with (
        answering(books.respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, IDS, concurrency=concurrency)
    failed = {each for each in IDS if results[each].outcome == "failed"}
    assert failed == books.refused
    assert len(books.asked) == 300


async def test_account_closes_when_several_refunds_in_a_row_are_refused() -> None:
    books = Books(set(IDS[3:]), 403)
    async with (
        answering(books.respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, IDS, concurrency=1)
    assert books.asked == IDS[:6]
    for refund_id in IDS[3:]:
        assert isinstance(results[refund_id].error, PermissionDeniedError)
    assert results[IDS[5]].idempotency_key is not None
    assert results[IDS[6]].idempotency_key is None


async def test_refusals_of_one_refund_again_and_again_are_no_evidence() -> None:
    # Told to retry, a call asks four times for the same refund.
    books = Books({IDS[0]}, 403)

    def respond(method: str, refund_id: str) -> bytes:
        if books.respond(method, refund_id).startswith(b"HTTP/1.1 403"):
            headers = {"Stripe-Should-Retry": "true"}
            return refusal(403, headers)
        return canceled(refund_id)

    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, IDS[:5], concurrency=1)
    assert [results[each].outcome for each in IDS[:5]] == ["failed"] + ["canceled"] * 4
    assert books.asked.count(IDS[0]) == 4


async def test_page_of_a_proxy_in_place_of_a_read_closes_no_account() -> None:
    asked: list[str] = []

    def respond(method: str, refund_id: str) -> bytes:
        if method == "GET":
            return answer(401, b"<html>Unauthorized</html>")
        asked.append(refund_id)
        return refusal(400)

    async with (
        answering(respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        results = await canceled_many(refunds, IDS[:9], concurrency=1)
    assert asked == IDS[:9]
    assert {result.outcome for result in results.values()} == {"failed"}


@pytest.mark.asyncio(loop_factories=["real"])
async def test_resumed_run_begins_with_what_did_not_fail_last_time(
    tmp_path: Path,
) -> None:
    ids = IDS[:60]
    poisoned = set(ids[:4])
    books = Books(poisoned, 403)
    path = tmp_path / "run.sqlite3"
    async with (
        answering(books.respond) as base_url,
        RefundsClient(KEY, base_url=base_url) as refunds,
    ):
        first = await canceled_many(
            refunds, ids, journal=path, concurrency=1, rate=1000
        )
        assert {result.outcome for result in first.values()} == {"failed"}
        assert books.asked == ids[:3]  # then the account is closed
        books.asked.clear()
        second = await canceled_many(
            refunds, (), journal=path, concurrency=1, rate=1000
        )
        assert {each for each in ids if second[each].outcome == "failed"} == poisoned
        assert books.asked == [*ids[3:], *ids[:3]]
        books.refused = ()
        third = await canceled_many(refunds, (), journal=path, rate=1000)
    assert third.keys() == poisoned
    assert {result.outcome for result in third.values()} == {"canceled"}
