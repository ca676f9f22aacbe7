"""``resume --dry-run``: what a resumed run would do, with nothing done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.models import Attempt
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed
from tests.support.terminal import emulator_of, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

JOURNAL = "run.sqlite3"


async def journal_of(path: Path, base_url: str, ids: list[str]) -> None:
    """Make a journal: the first failed, the second is canceled, the third in flight."""
    async with SqliteJournal.open(path, Run(base_url, livemode=False)) as journal:
        await journal.add([CancelRequest(each) for each in ids])
        failed, canceled, _ = await claimed(journal, None, 3)
        asked = Attempt(1, "POST", "/v1", 404, None, None, seconds=0.1, slept=0.0)
        refused = CancelResult(
            refund_id=failed.refund_id,
            stripe_account=None,
            outcome="failed",
            idempotency_key=failed.idempotency_key,
            attempts=(asked,),
            settled=False,
        )
        done = CancelResult(
            refund_id=canceled.refund_id, stripe_account=None, outcome="canceled"
        )
        await journal.settle([(failed, refused), (canceled, done)])


async def test_dry_run_reads_what_is_open_and_changes_nothing(tmp_path: Path) -> None:
    emulator, ids = emulator_of(5)
    emulator.set_status(ids[3], "succeeded")
    path = tmp_path / JOURNAL
    async with emulator.serve() as base_url:
        await journal_of(path, base_url, ids)
        before = path.read_bytes()
        told = await run("resume", JOURNAL, "--dry-run", folder=tmp_path)
        some = await run("resume", JOURNAL, "--dry-run", "--max=1", folder=tmp_path)
        from_variable = await run(
            *("resume", JOURNAL, "--max", "1"),
            folder=tmp_path,
            environment={"ASYNC_REFUNDS_DRY_RUN": "1"},
        )
    assert path.read_bytes() == before
    assert {each.endpoint for each in emulator.requests} == {"retrieve"}
    assert told.code == 0
    assert told.said[0] == (
        f"{JOURNAL}, at {base_url}: 4 of 5 refunds are open, 1 of them perhaps sent"
    )
    assert told.said[1] == "3 of 4 refunds can be canceled:"
    assert told.said[-1] == (
        f"nothing was canceled; to cancel them: async-refunds resume {JOURNAL}"
    )
    assert {line["refund_id"]: line["cancelable"] for line in told.lines} == {
        ids[0]: True,
        ids[2]: True,
        ids[3]: False,
        ids[4]: True,
    }
    # What failed comes last.
    assert [line["refund_id"] for line in some.lines] == [ids[2]]
    assert "--max left out 3 refunds" in some.said
    assert from_variable.lines == some.lines


async def test_what_the_run_perhaps_canceled_itself_is_not_told_as_a_refusal(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(5)
    # The one that was in flight was executed; another one is somebody else's.
    for each in ids[2:4]:
        emulator.set_status(each, "canceled")
    async with emulator.serve() as base_url:
        await journal_of(tmp_path / JOURNAL, base_url, ids)
        told = await run("resume", JOURNAL, "--dry-run", folder=tmp_path)
    assert told.code == 0
    assert "1 is canceled already, perhaps by this run" in told.said
    assert "1 cannot be canceled: canceled" in told.said
    states = {line["refund_id"]: line["status"] for line in told.lines}
    assert states[ids[2]] == states[ids[3]] == "canceled"


async def test_dry_run_of_a_run_that_goes_on_or_is_closed_or_done_says_so(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(3)
    path = tmp_path / JOURNAL
    async with emulator.serve() as base_url:
        await journal_of(path, base_url, ids)
        async with SqliteJournal.open(path) as journal:
            used = await run("resume", JOURNAL, "--dry-run", folder=tmp_path)
            journal.close_run()
        closed = await run("resume", JOURNAL, "--dry-run", folder=tmp_path)
        await run("resume", JOURNAL, folder=tmp_path)
        done = await run("resume", JOURNAL, "--dry-run", folder=tmp_path)
    assert used.said[0] == f"{JOURNAL} is in use: its run is going on"
    assert used.code == 0
    assert (
        closed.said[0]
        == f"{JOURNAL} is closed: only what was perhaps sent is asked for, 1 refund"
    )
    assert [line["refund_id"] for line in closed.lines] == [ids[2]]
    assert done.code == 0
    assert done.said == [
        f"{JOURNAL} is closed: nothing more of it is sent",
        f"{JOURNAL}, at {base_url}: 0 of 3 refunds are open",
    ]
    assert JournalReader(path).tally().open == 0


async def test_dry_run_needs_a_journal_and_its_key(tmp_path: Path) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        missing = await run("resume", "none", "--dry-run", folder=tmp_path)
        await journal_of(tmp_path / JOURNAL, base_url, ids)
        emulator.expire_key("sk_test_expired")
        refused = await run(
            *("resume", JOURNAL, "--dry-run"), key="sk_test_expired", folder=tmp_path
        )
    assert missing.code == 2
    assert "there is no journal" in missing.err
    assert refused.code == 1
    assert refused.err.endswith("0 of 2 refunds read; nothing was canceled\n")
