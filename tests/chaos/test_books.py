"""The chaos's books and server know what was canceled, by whom, and how often."""

from __future__ import annotations

import asyncio

import pytest

from async_refunds import RefundsClient, RefundsError

from .books import Books, account_id, refund_id
from .server import StripeServer, api_key

ACCOUNT = account_id(1)


def made(rate: float = 1000.0, refunds: int = 60) -> Books:
    books = Books(asyncio.get_running_loop().time, {ACCOUNT: rate})
    books.give((refund_id(number), ACCOUNT) for number in range(refunds))
    return books


async def test_books_agree_with_what_the_client_was_told() -> None:
    books = made()
    server = StripeServer(books, seed="7", share=0.2)
    async with (
        server.serve() as base_url,
        RefundsClient(
            api_key("w1"), base_url=base_url, stripe_account=ACCOUNT
        ) as refunds,
    ):
        await asyncio.gather(*(refunds.cancel(name) for name in books.refunds))
    assert books.canceled == 60
    assert all(len(each.executed) == 1 for each in books.refunds.values())
    assert all(len(keys) == 1 for keys in books.keys().values())
    assert not books.second_keys()
    assert not books.shared_keys()
    assert not books.faults
    assert {each.worker for each in books.requests} == {"w1"}
    assert len(server.faults_met) > 5


async def test_books_see_what_must_not_be() -> None:
    books = made(rate=5.0, refunds=9)
    server = StripeServer(books, seed="1", share=0.0)
    first, second, *others = books.refunds
    async with (
        server.serve() as base_url,
        RefundsClient(
            api_key("w1"), base_url=base_url, stripe_account=ACCOUNT
        ) as refunds,
    ):
        await refunds.cancel(first, idempotency_key="a")
        with pytest.raises(RefundsError):
            await refunds.cancel(first, idempotency_key="b")
        with pytest.raises(RefundsError):
            await refunds.cancel(second, idempotency_key="a")
        assert not books.limited
        told = await asyncio.gather(
            *(refunds.cancel(name) for name in others), return_exceptions=True
        )
    refused = sum(isinstance(each, RefundsError) for each in told)
    assert books.keys()[first] == ["a", "b"]
    assert books.refunds[first].executed == ["a", "b"]
    assert books.second_keys() == {first: ["a", "b"]}
    assert books.shared_keys() == ["a"]
    assert books.refunds[second].status == "requires_action"
    assert books.canceled == 8 - refused
    assert books.limited
