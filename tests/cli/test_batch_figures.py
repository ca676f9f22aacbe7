"""What the summary of a batch counts: with a journal, all of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from async_refunds import CancelRequest, Refund
from async_refunds.cli.batch_figures import BatchFigures
from async_refunds.cli.journals import BoundedJournal, OpenJournal
from async_refunds.journal import Run
from async_refunds.models import Attempt
from async_refunds.results import CancelResult
from tests.support.scripted import refund_json

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.journal import Claim


def canceled(claim: Claim) -> CancelResult:
    sent = Attempt(1, "POST", "/v1", 200, None, "req_1", seconds=0.1, slept=0.0)
    return CancelResult(
        refund_id=claim.refund_id,
        stripe_account=None,
        outcome="canceled",
        refund=msgspec.json.decode(
            refund_json(amount=1050, currency="eur"), type=Refund
        ),
        idempotency_key=claim.idempotency_key,
        attempts=(sent,),
    )


@pytest.mark.asyncio(loop_factories=["real"])
async def test_summary_of_a_journal_is_of_all_its_runs(tmp_path: Path) -> None:
    now = 100.0
    path = str(tmp_path / "run.sqlite3")
    run = Run("https://a.example", livemode=False)
    figures = BatchFigures()
    async with BoundedJournal.open(path, run, clock=lambda: now) as journal:
        journal.load([CancelRequest("re_1"), CancelRequest("re_2")])

        async def cancel_one() -> CancelResult:
            nonlocal now
            journal.begin()
            (claim,) = (await journal.claim({None: 1}))[None]
            now += 60.0
            await journal.settle([(claim, canceled(claim))])
            journal.end()
            return canceled(claim)

        await cancel_one()
        figures.add(await cancel_one())  # of the second run alone
        figures.outcomes["canceled"] += 1
        figures.sent, figures.seconds = 1, 60.0
        kept = OpenJournal(journal, path)
        figures.read_journal(kept)
        lines = list(figures.summary(2, kept, None, broken=False))
    assert [" ".join(line.split()) for line in lines] == [
        f"this time: 1 canceled; in all {path} holds:",
        "outcome refunds what to do",
        "canceled 2",
        "came back refunds sum",
        "eur 2 21.00",
        "2 requests in 0:02:00",
    ]
    assert not figures.lost
