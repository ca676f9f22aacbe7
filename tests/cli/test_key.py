from __future__ import annotations

import asyncio

import pytest

from tests.support.terminal import (
    CANARY,
    LIVE_KEY,
    TEST_KEY,
    emulator_of,
    run,
    run_each,
)

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


READS = (("list",), ("retrieve", "re_1"))


async def test_key_that_cannot_be_right_is_refused_unseen() -> None:
    wrong = {
        None: "STRIPE_API_KEY is not set: put your secret key (sk_test_...) there",
        "": "STRIPE_API_KEY is empty",
        f"pk_test_{CANARY}": "STRIPE_API_KEY is a publishable key",
        f"{TEST_KEY}\n": "STRIPE_API_KEY has white space around it",
        f"{TEST_KEY}\nX-More: 1": "STRIPE_API_KEY must be a secret key (sk_...)",
        LIVE_KEY: "STRIPE_API_KEY is a live key: add --live",
        f"rk_live_{CANARY}": "STRIPE_API_KEY is a live key: add --live",
        f"sk_{CANARY}": "STRIPE_API_KEY is a key of an unknown kind (not sk_test_..., "
        "not sk_live_...), taken for live: add --live",
    }
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        command = ("cancel", *ids, "--base-url", base_url)
        refused = await asyncio.gather(*(run(*command, key=key) for key in wrong))
    for said, ended in zip(wrong.values(), refused, strict=True):
        assert ended.err.startswith(f"async-refunds: {said}")
        assert len(ended.err.splitlines()) == 1
        assert (ended.code, ended.out) == (2, "")
    assert not emulator.requests


async def test_live_key_asks_for_live_to_read_too() -> None:
    emulator, _ = emulator_of(0)
    emulator.add_refund(livemode=True, refund_id="re_1")
    async with emulator.serve() as base_url:
        commands = [(*command, "--base-url", base_url) for command in READS]
        for refused in await run_each(*commands, key=LIVE_KEY):
            assert (refused.code, refused.out) == (2, "")
        assert not emulator.requests
        allowed = [(*command, "--live") for command in commands]
        for ended in await run_each(*allowed, key=LIVE_KEY):
            assert ended.code == 0
            assert [line["id"] for line in ended.lines] == ["re_1"]


async def test_address_that_would_betray_the_key_is_refused() -> None:
    wrong = {
        "http://example.com": "--base-url must be https: plain http shows the API key",
        "api.stripe.com": "--base-url must be an origin such as https://api.stripe",
        "https://api.stripe.com/v1": "--base-url must be an origin such as",
    }
    commands = (("list", "--live", "--base-url", url) for url in wrong)
    refused = await run_each(*commands, key=LIVE_KEY)
    for said, ended in zip(wrong.values(), refused, strict=True):
        assert ended.err.startswith(f"async-refunds: {said}")
        assert (ended.code, ended.out) == (2, "")


async def test_wrong_account_id_is_refused() -> None:
    for ended in await run_each(*((*read, "--account", "cus_1") for read in READS)):
        assert "acct_, letters and digits, not 'cus_1'" in ended.err
        assert (ended.code, ended.out) == (2, "")


async def test_connected_account_is_read() -> None:
    emulator, _ = emulator_of(1)
    emulator.add_refund(account="acct_1Connected", refund_id="re_1")
    async with emulator.serve() as base_url:
        there = ("--account", "acct_1Connected", "--base-url", base_url)
        for ended in await run_each(*((*read, *there) for read in READS)):
            assert ended.code == 0
            assert [line["id"] for line in ended.lines] == ["re_1"]
