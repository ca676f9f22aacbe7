"""What a worker tells people, and the next holder, when accounts change hands."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.workers.conftest import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

A, B, C = "acct_A", "acct_B", "acct_C"
FAST = 2000.0


async def test_takeover_says_of_whom_and_how_much_is_open(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "async_refunds")
    await fleet.seed(3, A)
    await fleet.seed(2, B)
    await fleet.seed(2, C)
    await fleet.ask(
        "UPDATE async_refunds.leases SET token = gen_random_uuid(), owner = 'gone', "
        "until = now() - interval '1 s' WHERE account <> 'acct_C'"
    )
    async with fleet.worker(rate=FAST):
        await fleet.until_told(7)
    (line,) = [each for each in caplog.messages if "taken over" in each]
    assert line == (
        "taken over from gone, which has not released them: acct_A, acct_B; 5 open"
    )


async def test_account_that_was_released_says_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "async_refunds")
    await fleet.seed(60, A)
    async with fleet.worker("one", rate=20.0):
        await fleet.until_told(3)
    async with fleet.worker("two", rate=FAST):
        await fleet.until_told(60)
    assert not caplog.messages


async def test_what_failed_says_when_it_is_asked_for_again(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "async_refunds")
    (name,) = await fleet.seed(1, A)
    fleet.stripe.faults.script(*["503"] * 200)
    async with fleet.worker(rate=FAST, patience=0.2, timeout=0.2):
        await fleet.until(lambda: "asked for again" in caplog.text)
    assert fleet.results[name].outcome in {"failed", "unknown"}
    assert (
        "what failed or is unknown of acct_A is asked for again in 60 s, or at once "
        "after `async-refunds fleet retry`" in caplog.messages
    )


async def test_fixed_rate_is_shown_while_it_is_kept(fleet: Fleet) -> None:
    await fleet.seed(100, A)
    await fleet.ask("UPDATE async_refunds.leases SET pace = 25")
    async with fleet.worker(rate=2.0):
        await fleet.until_found("SELECT pace = 2 FROM async_refunds.metrics")
