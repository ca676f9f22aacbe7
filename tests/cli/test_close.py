"""``close JOURNAL``, and what the other commands say of a journal that is closed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from async_refunds.emulator import Emulator
from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.results import CancelRequest, CancelResult
from tests.support.journals import claimed
from tests.support.terminal import (
    LIVE_KEY,
    Screen,
    emulator_of,
    run,
    run_each,
    run_in_shell,
    started,
)

if TYPE_CHECKING:
    from pathlib import Path

    from async_refunds.journal import Claim

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

JOURNAL = "run.sqlite3"
GIVEN_UP = (
    "run.sqlite3 is closed; 1 refund given up: not canceled, nor asked for any more"
)
CLOSED = "not canceled: the run is closed, another one may have them"


def canceled(claim: Claim) -> CancelResult:
    return CancelResult(
        refund_id=claim.refund_id, stripe_account=None, outcome="canceled"
    )


def sent(emulator: Emulator) -> list[str]:
    """Return the ids that a cancel was asked for, in order."""
    asked = [each.path for each in emulator.requests if each.endpoint == "cancel"]
    return [path.split("/")[3] for path in asked]


async def test_wrong_id_is_given_up_on_for_good(tmp_path: Path) -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        first = await run(
            *("cancel", ids[0], "re_wrong", "--journal", JOURNAL),
            *("--base-url", base_url),
            folder=tmp_path,
        )
        screen = Screen()
        async with started(
            "report", JOURNAL, key=None, folder=tmp_path, stdout=screen.terminal
        ) as running:
            _, failed = await screen.shows(running)
        closed = await run("close", JOURNAL, key=None, folder=tmp_path)
        again = await run("close", JOURNAL, key=None, folder=tmp_path)
        before = len(emulator.requests)
        resumed = await run("resume", JOURNAL, folder=tmp_path)
        more = await run(
            *("cancel", "re_more", "--journal", JOURNAL, "--base-url", base_url),
            folder=tmp_path,
        )
        report = await run("report", JOURNAL, key=None, folder=tmp_path)
    assert (
        "1 of 2 are open: `async-refunds resume run.sqlite3` continues with them, "
        "`async-refunds close run.sqlite3` gives up on them"
    ) in first.said
    assert f", or `async-refunds close {JOURNAL}` gives up" in failed
    assert (closed.code, closed.out) == (0, "")
    assert closed.said == [GIVEN_UP]
    assert again.said == ["run.sqlite3 is closed; nothing was left to give up"]
    assert (resumed.code, resumed.out) == (1, "")
    assert resumed.said == [
        f"{JOURNAL} is closed: nothing more of it is sent",
        "this time: no result; in all run.sqlite3 holds:",
        "outcome   refunds  what to do",
        "canceled  1",
        f"failed    1        {CLOSED}",
    ]
    place = str(tmp_path / JOURNAL)
    assert more.code == 2
    assert more.err == (
        f"async-refunds: the run of the journal {place!r} is closed, and takes no more "
        "refunds: give another path; nothing was sent\n"
    )
    assert len(emulator.requests) == before
    assert report.code == 1
    error = report.lines[1]["error"]
    assert error.startswith("re_wrong was not canceled: No such refund")
    assert error.endswith("; then its run was closed")


async def test_report_names_close_only_where_the_rest_has_failed(
    tmp_path: Path,
) -> None:
    """It would give up what has not begun, too."""
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        await run(
            *("cancel", "re_wrong", ids[0], "--journal", JOURNAL, "--max", "1"),
            *("--base-url", base_url),
            folder=tmp_path,
        )
    screen = Screen()
    async with started(
        "report", JOURNAL, key=None, folder=tmp_path, stdout=screen.terminal
    ) as running:
        _, shown = await screen.shows(running)
    assert "fix its cause, then" in shown
    assert "gives up" not in shown


async def test_what_was_perhaps_sent_is_asked_for_and_nothing_else(
    tmp_path: Path,
) -> None:
    emulator, (unknown, other) = emulator_of(2)
    async with emulator.serve() as base_url:
        run_of = Run(base_url, livemode=False)
        async with SqliteJournal.open(tmp_path / JOURNAL, run_of) as journal:
            await journal.add([CancelRequest(unknown), CancelRequest(other)])
            (claim,) = await claimed(journal, None, 1)
        closed = await run("close", JOURNAL, key=None, folder=tmp_path)
        resumed = await run("resume", JOURNAL, folder=tmp_path)
    resume = f"`async-refunds resume {JOURNAL}`"
    assert closed.code == 3
    assert closed.said == [f"{GIVEN_UP}; 1 refund perhaps sent: {resume} asks"]
    assert resumed.code == 1
    assert (
        resumed.said[0]
        == f"{JOURNAL} is closed: only what was perhaps sent is asked for, 1 refund"
    )
    assert [line["outcome"] for line in resumed.lines] == ["canceled"]
    assert sent(emulator) == [unknown]
    assert emulator.requests[0].idempotency_key == claim.idempotency_key
    assert emulator.books.cancellations == {unknown: 1}


@pytest.mark.parametrize("command", ["cancel", "sweep"])
async def test_closed_journal_is_refused_before_a_search_and_before_a_question(
    tmp_path: Path, command: str
) -> None:
    emulator = Emulator()
    long_ago = int(time.time() - 20 * 86_400)
    ids = [emulator.add_refund(livemode=True, created=long_ago) for _ in range(2)]
    which = ids if command == "cancel" else ["--older-than", "14d"]
    screen = Screen()
    async with emulator.serve() as base_url:
        run_of = Run(base_url, livemode=True)
        async with SqliteJournal.open(tmp_path / JOURNAL, run_of) as journal:
            journal.close_run()
        async with started(
            *(command, *which, "--live", "--journal", JOURNAL, "--base-url", base_url),
            key=LIVE_KEY,
            folder=tmp_path,
            stdin=screen.terminal,
            stderr=screen.terminal,
        ) as running:
            screen.types("n\n")
            ended, shown = await screen.shows(running)
    assert "is closed, and takes no more refunds" in shown
    assert "[y/N]" not in shown
    assert ended.code == 2
    assert not emulator.requests


async def test_report_of_a_closed_journal_says_so(tmp_path: Path) -> None:
    run_of = Run("https://a.example", livemode=False)
    async with SqliteJournal.open(tmp_path / JOURNAL, run_of) as journal:
        await journal.add([CancelRequest("re_1"), CancelRequest("re_2")])
        await claimed(journal, None, 1)
        journal.close_run()
    screen = Screen()
    async with started(
        "report", JOURNAL, key=None, folder=tmp_path, stdout=screen.terminal
    ) as running:
        ended, shown = await screen.shows(running)
    assert ended.code == 3
    assert ended.said == [
        f"{JOURNAL} is closed: only what was perhaps sent is asked for, 1 refund"
    ]
    assert CLOSED in shown
    assert "gives up" not in shown
    page = await run("report", JOURNAL, "--html", "-", key=None, folder=tmp_path)
    assert (
        "It is closed: only what was perhaps sent is asked for, 1 refund." in page.out
    )


async def test_journal_that_is_missing_or_in_use_is_not_closed(tmp_path: Path) -> None:
    run_of = Run("https://a.example", livemode=False)
    async with SqliteJournal.open(tmp_path / JOURNAL, run_of) as journal:
        await journal.add([CancelRequest("re_1")])
        missing, used = await run_each(
            ("close", "none.sqlite3"), ("close", JOURNAL), key=None, folder=tmp_path
        )
    assert missing.code == used.code == 2
    assert "there is no journal" in missing.err
    assert "is in use by another process" in used.err
    assert not JournalReader(tmp_path / JOURNAL).run_closed


async def test_disk_that_is_full_does_not_hide_that_a_run_is_closed(
    tmp_path: Path,
) -> None:
    """The commit is in the -wal, which cannot be copied into the file."""
    path = tmp_path / JOURNAL
    run_of = Run("https://a.example", livemode=False)
    async with SqliteJournal.open(path, run_of) as journal:
        journal.load(CancelRequest(f"re_{number:06}") for number in range(5300))
        claims = await claimed(journal, None, 5000)
        await journal.settle([(each, canceled(each)) for each in claims])
    blocks = path.stat().st_size // 1024
    ended = await run_in_shell(
        f"ulimit -f {blocks}; refunds close {JOURNAL}", key=None, folder=tmp_path
    )
    assert ended.code == 1
    assert "a quota, or a failing disk" in ended.err
    assert ended.err.endswith(
        f"; perhaps {JOURNAL} is closed: the same command again makes sure\n"
    )
    reader = JournalReader(path)
    assert (reader.run_closed, reader.tally().open) == (True, 0)
