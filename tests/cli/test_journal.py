from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.results import CancelRequest
from tests.support.small_disk import fill_disk, small_disk
from tests.support.terminal import (
    IN_SHELL,
    LIVE_KEY,
    TEST_KEY,
    Gate,
    Screen,
    emulator_of,
    held,
    run,
    run_each,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_refunds.emulator import Emulator

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

QUICK = ("--rate", "2000")
THEM = "acct_1Them"


def keys(emulator: Emulator, refund_id: str) -> set[str | None]:
    """Return the keys with which its cancel was asked for."""
    return {
        entry.idempotency_key
        for entry in emulator.requests
        if entry.endpoint == "cancel" and refund_id in entry.path
    }


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


async def test_file_is_canceled_each_on_its_own_account(tmp_path: Path) -> None:
    emulator, ids = emulator_of(2)
    theirs = emulator.add_refund(account=THEM)
    emulator.set_status(ids[1], "succeeded")
    (tmp_path / "ids.csv").write_text(
        f"id,stripe_account\n{ids[0]},\n{theirs},{THEM}\n{ids[1]},\n"
    )
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", "--from", "ids.csv", "--base-url", base_url), folder=tmp_path
        )
    assert ended.code == 1
    told = {line["refund_id"]: line for line in ended.lines}
    assert told[theirs]["stripe_account"] == THEM
    assert told[theirs]["outcome"] == told[ids[0]]["outcome"] == "canceled"
    assert ended.said == [
        "outcome         refunds  what to do",
        "canceled        2",
        "not_cancelable  1        nothing can be: it is no longer in requires_action",
    ]
    assert emulator.books.cancellations == {ids[0]: 1, theirs: 1}


async def test_each_kind_that_is_not_canceled_has_its_next_step(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(2)
    emulator.set_status(ids[0], "canceled")
    async with emulator.serve() as base_url:
        how = ("--concurrency", "1", "--patience", "0.1", "--base-url", base_url)
        kept = ("--journal", "a run.sqlite3")
        command = ("cancel", ids[0], "re_missing", ids[1], *how)
        faults = ("ok", "ok", "ok", *["unsaved_500"] * 50)
        emulator.faults.script(*faults)
        plain = await run(*command)
        emulator.faults.clear()
        emulator.faults.script(*faults)
        resumable = await run(*command, *kept, folder=tmp_path)
    again = "run the same command again"
    failed = "not canceled: read the error, fix its cause, then"
    twice = "nothing is canceled twice"
    for ended, then in ((plain, again), (resumable, None)):
        resume = "`async-refunds resume 'a run.sqlite3'`" if then is None else then
        assert ended.code == 3
        assert ended.said[:4] == [
            "outcome           refunds  what to do",
            "already_canceled  1        nothing: canceled before this run asked",
            f"failed            1        {failed} {resume}",
            f"unknown           1        maybe canceled: {resume}; {twice}",
        ]
    assert len(plain.said) == 4
    assert resumable.said[4:] == [
        "2 of 3 are open: `async-refunds resume 'a run.sqlite3'` continues with them"
    ]


async def test_run_that_is_killed_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    emulator, ids = emulator_of(6)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            how = ("--journal", "run.sqlite3", "--concurrency", "2")
            async with started(
                *("cancel", "--from", "ids.txt", *how, "--base-url", base_url),
                folder=tmp_path,
            ) as running:
                await gate.holds(2)
                running.process.kill()
                killed = await running.ended()
            report = await run("report", "run.sqlite3", key=None, folder=tmp_path)
            gate.open()
            resumed = await run("resume", "run.sqlite3", folder=tmp_path)
            again = await run("resume", "run.sqlite3", folder=tmp_path)
    assert killed.code == -signal.SIGKILL
    # What was under way, and what was next, may be canceled for all that is on disk.
    assert report.code == 3
    assert [line["refund_id"] for line in report.lines] == ids
    under_way = {
        line["refund_id"] for line in report.lines if line["outcome"] == "unknown"
    }
    assert all(line["idempotency_key"] for line in report.lines if line["outcome"])
    assert {*ids[:2]} <= under_way
    assert resumed.code == 0
    assert sorted(line["refund_id"] for line in resumed.lines) == sorted(ids)
    *said, requests = resumed.said
    assert said == [
        f"continuing run.sqlite3, at {base_url}: 6 of 6 refunds are open",
        "outcome   refunds  what to do",
        "canceled  6",
    ]
    # Those of the killed process are told by nobody.
    assert re.fullmatch(r"at least 6 requests in 0:00:\d\d", requests)
    assert requests in again.err.splitlines()
    assert (again.code, again.out) == (0, "")
    assert "0 of 6 refunds are open" in again.err
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    assert all(len(keys(emulator, each)) == 1 for each in ids)
    assert emulator.books.replays == 2


@pytest.mark.parametrize(
    ("api_key", "told", "code"),
    [(TEST_KEY, "failed", 1), (f"{TEST_KEY}Other", "unknown", 3)],
)
async def test_wrong_id_under_way_at_a_kill_is_told_by_the_same_key_only(
    tmp_path: Path, api_key: str, told: str, code: int
) -> None:
    """A refund that this key does not find may be one of the account before."""
    emulator, _ = emulator_of(0)
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            command = ("cancel", "re_wrong", "--journal", "run.sqlite3")
            async with started(
                *command, "--base-url", base_url, folder=tmp_path
            ) as running:
                await gate.holds(1)
                running.process.kill()
                await running.ended()
            gate.open()
            resume = ("resume", "run.sqlite3")
            resumed = await run(*resume, key=api_key, folder=tmp_path)
            again = await run(*resume, key=api_key, folder=tmp_path)
    for ended in (resumed, again):
        (line,) = ended.lines
        assert (line["outcome"], ended.code) == (told, code)
        found = "No such refund" if told == "failed" else "not found with this API key"
        assert found in line["error"]
    # A definite no ends its key: the next run asks with a new one.
    assert len(keys(emulator, "re_wrong")) == (2 if told == "failed" else 1)


async def test_interrupt_leaves_the_rest_open_in_the_journal(tmp_path: Path) -> None:
    emulator, ids = emulator_of(5)
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            how = ("--journal", "run.sqlite3", "--concurrency", "2", *QUICK)
            async with started(
                *("cancel", *ids, *how, "--base-url", base_url), folder=tmp_path
            ) as running:
                await gate.holds(2)
                running.process.send_signal(signal.SIGINT)
                await running.says("no new refund is started")
                in_use = await run("resume", "run.sqlite3", folder=tmp_path)
                running.process.send_signal(signal.SIGINT)
                ended = await running.ended()
            gate.open()
            resumed = await run("resume", "run.sqlite3", folder=tmp_path)
    assert (in_use.code, in_use.out) == (2, "")
    assert "is in use by another process" in in_use.err
    assert ended.code == 3
    assert {line["refund_id"] for line in ended.lines} == {*ids[:2]}
    assert {line["outcome"] for line in ended.lines} == {"unknown"}
    assert "\nopen     3        `async-refunds resume run.sqlite3`\n" in ended.err
    assert ended.err.endswith(
        "5 of 5 are open: `async-refunds resume run.sqlite3` continues with them\n"
    )
    assert resumed.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    assert all(len(keys(emulator, each)) == 1 for each in ids)


async def test_report_of_a_run_that_is_going_on_says_so(tmp_path: Path) -> None:
    emulator, ids = emulator_of(5)
    screen = Screen()
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            how = ("--journal", "run.sqlite3", "--concurrency", "2", "--rate", "2000")
            async with started(
                *("cancel", *ids, *how, "--base-url", base_url), folder=tmp_path
            ) as running:
                await gate.holds(2)
                async with started(
                    *("report", "run.sqlite3"),
                    stdout=screen.terminal,
                    key=None,
                    folder=tmp_path,
                ) as reporting:
                    reported, shown = await screen.shows(reporting)
                gate.open()
                ended = await running.ended()
    assert reported.code == 1
    assert reported.err == "run.sqlite3 is in use: its run is going on\n"
    head, in_flight, *left = shown.splitlines()
    assert head.split() == ["outcome", "refunds", "what", "to", "do"]
    assert in_flight.startswith("in flight  ")
    rows = [re.split("  +", line) for line in (in_flight, *left)]
    assert sum(int(count) for _, count, _ in rows) == 5
    assert {step for *_, step in rows} == {"nothing yet: the run is going on"}
    assert "resume" not in shown
    assert ended.code == 0


async def test_options_are_remembered_and_may_be_given_again(tmp_path: Path) -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(account=THEM) for _ in range(6)]
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            how = ("--concurrency", "1", "--timeout", "30", "--patience", "9", *QUICK)
            async with started(
                *("cancel", *ids, "--journal", "run.sqlite3", "--account", THEM, *how),
                *("--base-url", base_url),
                folder=tmp_path,
            ) as running:
                await gate.holds(1)
                running.process.kill()
                await running.ended()
            canceled: list[int] = []
            for more, at_once in ((), 1), (("--concurrency", "3"), 3):
                gate.close()
                async with started(
                    "resume", "run.sqlite3", *more, folder=tmp_path
                ) as running:
                    await gate.holds(at_once)
                    running.process.send_signal(signal.SIGTERM)
                    await running.says("no new refund is started")
                    gate.open()
                    canceled.append(len((await running.ended()).lines))
            added = await run(
                *("cancel", *ids, emulator.add_refund(account=THEM)),
                *("--journal", "run.sqlite3", "--base-url", base_url),
                *("--account", THEM),
                folder=tmp_path,
            )
    assert canceled == [1, 3]
    assert JournalReader(tmp_path / "run.sqlite3").run.options == {
        "rate": 2000.0,
        "concurrency": 1,
        "timeout": 30.0,
        "patience": 9.0,
        "account": THEM,
    }
    assert added.code == 0
    assert added.err.startswith(
        f"continuing run.sqlite3, at {base_url}: it holds 6 refunds already, 2 of them "
        "open; 1 of the 7 given is added\n"
    )
    assert {line["stripe_account"] for line in added.lines} == {THEM}
    assert emulator.books.cancellations.total() == 7


async def test_journal_of_a_run_is_good_for_that_run_only(tmp_path: Path) -> None:
    emulator, _ = emulator_of(0)
    refund_id = emulator.add_refund(livemode=True)
    (tmp_path / "notes").write_text("milk, bread")
    place = tmp_path / "odd.sqlite3"
    with SqliteJournal.open(
        place, Run("https://127.0.0.1:1", livemode=False, options={"rate": "fast"})
    ) as journal:
        journal.load([CancelRequest("re_1")])
    async with emulator.serve() as base_url:
        begun = await run(
            *("cancel", refund_id, "re_missing", "--live", "--yes"),
            *("--base-url", base_url),
            *("--journal", "run.sqlite3"),
            key=LIVE_KEY,
            folder=tmp_path,
        )
        sent = len(emulator.requests)
        resume = ("resume", "run.sqlite3")
        mode = "is a run in live mode, and STRIPE_API_KEY is a test key"
        wrong: dict[tuple[str, ...], str] = {
            ("resume", "notes"): "notes' is ",
            ("resume", "odd.sqlite3"): "odd.sqlite3 holds options that this release "
            "does not know (Expected `float | null`, got `str` - at `$.rate`)",
            ("cancel", "re_1", "--journal", "run.sqlite3"): "holds a run on",
            ("cancel", "re_1", "--journal", "nowhere/run.sqlite3"): "has no folder",
        }
        refused = await run_each(*wrong, folder=tmp_path)
        for live in (), ("--live",):
            wrong[(*resume, *live)] = mode
            refused.append(await run(*resume, *live, folder=tmp_path))
        unasked = await run(*resume, key=LIVE_KEY, folder=tmp_path)
        asked = await run(*resume, "--live", key=LIVE_KEY, folder=tmp_path)
    assert begun.code == 1
    assert "`async-refunds resume run.sqlite3 --live`" in begun.err
    for said, ended in zip(wrong.values(), refused, strict=True):
        assert said in ended.err
        assert ended.err.endswith("nothing was sent\n")
        assert len(ended.err.splitlines()) == 1
        assert (ended.code, ended.out) == (2, "")
    assert unasked.code == 2
    assert "add --live" in unasked.err
    assert asked.code == 1
    assert len(emulator.requests) == sent + 1  # what was not found is asked for again


async def test_journal_that_breaks_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    emulator, ids = emulator_of(4)
    async with held(
        emulator,
        2,
        *("cancel", *ids, "--journal", "run.sqlite3", "--concurrency", "2"),
        *("--rate", "4"),  # the third one has to wait for longer than a commit
        folder=tmp_path,
    ) as (gate, running):
        remove(tmp_path, "run.sqlite3*")
        gate.open()
        ended = await running.ended()
    assert ended.code == 3
    assert ended.out == ""
    said, then = ended.said
    assert said.startswith("async-refunds: ")
    assert "run.sqlite3' was in use" in said
    assert then == (
        "what was in flight is unknown: `async-refunds resume run.sqlite3` asks with "
        "the same keys"
    )
    assert emulator.books.cancel_requests.keys() == {*ids[:2]}


async def test_older_copy_in_its_place_hides_nothing_of_what_is_in_flight(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(3)
    journal = tmp_path / "run.sqlite3"
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            to = ("--journal", journal.name, "--base-url", base_url)
            gate.open()
            first = await run("cancel", ids[0], *to, folder=tmp_path)
            gate.close()
            older = journal.read_bytes()
            async with started("cancel", *ids, *to, folder=tmp_path) as running:
                await gate.holds(2)
                remove(tmp_path, "run.sqlite3*")
                journal.write_bytes(older)
                gate.open()
                ended = await running.ended()
    assert first.code == 0
    assert (ended.code, ended.out) == (3, "")
    assert "run.sqlite3' was in use" in ended.err
    assert "\nwhat was in flight is unknown: " in ended.err


def cut(journal: Path, older: bytes) -> None:
    """Damage the file that is there."""
    del older
    with journal.open("r+b") as file:
        file.truncate(4096)


def put_in_place(journal: Path, older: bytes) -> None:
    """Put another file, an older copy, in its place."""
    remove(journal.parent, "run.sqlite3*")
    journal.write_bytes(older)


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (put_in_place, 3, "\nwhat was in flight is unknown: "),
        (cut, 1, "run.sqlite3' is damaged or cut short: put back a copy of it"),
    ],
)
async def test_journal_that_is_spoiled_in_mid_run_is_not_believed(
    tmp_path: Path, spoil: Callable[[Path, bytes], None], code: int, said: str
) -> None:
    """The older copy, too, is of a moment with refunds in flight."""
    emulator, ids = emulator_of(40)
    journal = tmp_path / "run.sqlite3"
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            how = ("--journal", journal.name, "--concurrency", "1")
            async with started(
                *("cancel", "--from", "ids.txt", *how, "--base-url", base_url),
                folder=tmp_path,
            ) as running:
                await gate.holds(1)
                older = journal.read_bytes()
                gate.open()
                while len(emulator.books.cancellations) < 5:  # noqa: ASYNC110 - of another program
                    await asyncio.sleep(0.01)
                gate.close()
                await gate.holds(1)
                spoil(journal, older)
                gate.open()
                ended = await running.ended()
    assert ended.code == code
    assert said in ended.err
    told = [line["refund_id"] for line in ended.lines if line["outcome"] == "canceled"]
    assert 5 <= len(told) <= len(emulator.books.cancellations)
    assert f"\ncanceled  {len(told)}\n" in ended.err
    sums = re.findall(r"^[a-z]{3} +(\d+) ", ended.err, re.MULTILINE)
    assert sum(map(int, sums)) == len(told)


async def test_run_with_few_file_descriptors_can_read_its_journal_at_its_end(
    tmp_path: Path,
) -> None:
    """The connections have taken all that were left, and give them back before."""
    emulator, ids = emulator_of(60)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with gate.serve() as base_url:
            line = 'ulimit -n 32; exec "$0" -m async_refunds cancel --from ids.txt'
            async with started(
                f"{line} --journal run.sqlite3 --rate 2000 --base-url {base_url}",
                python=IN_SHELL,
                folder=tmp_path,
            ) as running:
                await gate.holds(12)
                gate.open()
                ended = await running.ended()
    assert (ended.code, ended.said) == (
        0,
        ["outcome   refunds  what to do", "canceled  60"],
    )


async def test_full_disk_ends_a_run_with_what_its_journal_holds(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(3)
    with small_disk(tmp_path) as folder:
        async with emulator.serve() as behind:
            gate = Gate(behind)
            async with gate.serve() as base_url:
                to = ("--journal", "run.sqlite3", "--base-url", base_url)
                async with started("cancel", *ids, *to, folder=folder) as running:
                    await gate.holds(3)
                    running.process.kill()
                    await running.ended()
                filler = fill_disk(folder)
                resumed = await run("resume", "run.sqlite3", folder=folder)
                filler.unlink()
                begun = await run("report", "run.sqlite3", folder=folder)
    assert (resumed.code, resumed.out) == (3, "")
    _, broken, *said = resumed.said
    assert "does not fit on the disk: make room, then resume the run" in broken
    resume = "`async-refunds resume run.sqlite3`"
    assert said == [
        "outcome  refunds  what to do",
        f"unknown  3        maybe canceled: {resume}; nothing is canceled twice",
        f"3 of 3 are open: {resume} continues with them",
    ]
    assert [line["outcome"] for line in begun.lines] == ["unknown"] * 3


async def test_results_go_to_a_file_after_what_it_holds(tmp_path: Path) -> None:
    emulator, ids = emulator_of(3)
    path = tmp_path / "results.jsonl"
    path.write_text('{"refund_id":"re_0"}\n{"refund_id":')
    async with emulator.serve() as base_url:
        for part in (ids[:2], ids[2:]):
            command = ("cancel", *part, "--output", "results.jsonl")
            ended = await run(*command, "--base-url", base_url, folder=tmp_path)
            assert (ended.code, ended.out, ended.err) == (0, "", "")
    first, half, *told = path.read_text().splitlines()
    assert first == '{"refund_id":"re_0"}'
    assert half == '{"refund_id":'
    assert sorted(json.loads(line)["refund_id"] for line in told) == sorted(ids)


async def test_file_that_cannot_be_written_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    wrong = {
        ("pipe",): "--output 'pipe': Illegal seek",
        (".",): "--output '.': Is a directory",
        ("loop",): "--output 'loop': Too many levels of symbolic links",
    }
    commands = [("cancel", "re_2", "--output", *words) for words in wrong]
    for said, ended in zip(
        wrong.values(), await run_each(*commands, folder=tmp_path), strict=True
    ):
        assert said in ended.err
        assert ended.err.endswith("; nothing was sent\n")
        assert (ended.code, ended.out) == (2, "")


async def test_results_go_on_to_stderr_when_the_disk_of_their_file_is_full() -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--output", "/dev/full", "--base-url", base_url)
        )
    assert (ended.code, ended.out) == (1, "")
    said, *told = ended.err.splitlines()
    assert said == ("/dev/full broke (No space left on device): the results go on here")
    assert sorted(json.loads(line)["refund_id"] for line in told) == sorted(ids)


async def test_many_on_a_terminal_list_only_what_wants_attention(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(301)
    emulator.set_status(ids[5], "succeeded")
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    for kept, where in (
        ((), "--output or --journal keeps them all"),
        (("--journal", "run.sqlite3"), "`async-refunds report run.sqlite3` has all"),
    ):
        screen, bar = Screen(), Screen()
        async with (
            emulator.serve() as base_url,
            started(
                *("cancel", "--from", "ids.txt", *kept, *QUICK, "--base-url", base_url),
                stdout=screen.terminal,
                stderr=bar.terminal,
                folder=tmp_path,
            ) as running,
        ):
            said = bar.reading()
            ended, shown = await screen.shows(running)
        assert ended.code == 1
        (line,) = shown.splitlines()
        assert line.startswith(f"{ids[5]}  not_cancelable  ")
        assert "301/301" in await said
        assert f"listed are only refunds that need attention; {where}" in said.result()


async def test_what_wants_attention_is_bounded_where_the_journal_has_it(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(305)
    for each in ids:
        emulator.set_status(each, "succeeded")
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    for kept, listed, more in (
        ((), 305, ""),
        (("--journal", "run.sqlite3"), 300, ", all but 5 of them"),
    ):
        screen = Screen()
        async with (
            emulator.serve() as base_url,
            started(
                *("cancel", "--from", "ids.txt", *kept, *QUICK, "--base-url", base_url),
                stdout=screen.terminal,
                folder=tmp_path,
            ) as running,
        ):
            ended, shown = await screen.shows(running)
        assert ended.code == 1
        assert len(shown.splitlines()) == listed
        assert f"refunds that need attention{more}; " in ended.err


async def test_many_that_were_never_begun_do_not_flood_a_terminal(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(320)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    screen = Screen()
    async with held(
        emulator,
        2,
        *("cancel", "--from", "ids.txt", "--concurrency", "2"),
        stdout=screen.terminal,
        folder=tmp_path,
    ) as (gate, running):
        running.process.send_signal(signal.SIGINT)
        await running.says("no new refund is started")
        gate.open()
        ended, shown = await screen.shows(running)
    assert ended.code == 130
    assert len(shown.splitlines()) == 300
    assert shown.splitlines()[0] == (
        f"{ids[2]}  not begun    interrupted, nothing was sent"
    )
    assert "canceled   2\n" in ended.err
    assert "not begun  318 " in ended.err
    assert "that need attention, all but 18 of them; --output" in ended.err


async def test_interrupted_file_accounts_for_every_line(tmp_path: Path) -> None:
    emulator, ids = emulator_of(1300)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    async with held(
        emulator,
        2,
        *("cancel", "--from", "ids.txt", "--concurrency", "2"),
        folder=tmp_path,
    ) as (gate, running):
        running.process.send_signal(signal.SIGINT)
        await running.says("no new refund is started")
        gate.open()
        ended = await running.ended()
    assert ended.code == 130
    assert [line["refund_id"] for line in ended.lines[2:]] == ids[2:]
    assert {line["refund_id"] for line in ended.lines[:2]} == {*ids[:2]}
    assert len(ended.lines) == 1300


async def test_results_outlive_the_terminal_of_many(tmp_path: Path) -> None:
    emulator, ids = emulator_of(301)
    emulator.set_status(ids[0], "succeeded")
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    screen = Screen()
    async with held(
        emulator,
        1,
        *("cancel", "--from", "ids.txt", "--concurrency", "1", *QUICK),
        stdout=screen.terminal,
        folder=tmp_path,
    ) as (gate, running):
        screen.leave_to_process()
        screen.unplug()
        gate.open()
        ended = await running.ended()
    assert ended.code == 1
    said, *told = ended.err.splitlines()[:302]
    assert said == "stdout broke (Input/output error): the results go on here"
    assert [json.loads(line)["refund_id"] for line in told] == ids


async def test_journal_with_no_room_for_the_ids_is_refused(tmp_path: Path) -> None:
    emulator, ids = emulator_of(0)
    (tmp_path / "ids.txt").write_text("".join(f"re_{n:0100}\n" for n in range(10_000)))
    del ids
    async with emulator.serve() as base_url:
        ended = await run(
            *(base_url, "cancel", "--from", "ids.txt", "--journal", "run.sqlite3"),
            python=("-c", SMALL_DISK),
            folder=tmp_path,
        )
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("nothing was sent\n")
    assert not emulator.requests


# No file of this process gets larger than 1 MiB; coverage keeps less than that, and the
# list itself stays in memory.
SMALL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_048_576, 1_048_576))
sys.argv += ["--base-url", sys.argv.pop(1)]
runpy.run_module("async_refunds", run_name="__main__", alter_sys=True)
"""


async def test_live_run_elsewhere_is_resumed_only_where_it_is_told_to(
    tmp_path: Path,
) -> None:
    there = Run("https://127.0.0.1:9", livemode=True)
    with SqliteJournal.open(tmp_path / "run.sqlite3", there) as journal:
        journal.load([CancelRequest("re_1")])
    resume = ("resume", "run.sqlite3", "--live")
    unasked, elsewhere, told = [
        await run(*resume, *more, key=LIVE_KEY, folder=tmp_path)
        for more in (
            (),
            ("--base-url", "https://127.0.0.1:8"),
            ("--base-url", "https://127.0.0.1:9", "--patience", "0.1"),
        )
    ]
    assert (unasked.code, elsewhere.code, told.code) == (2, 2, 1)
    assert "add --base-url https://127.0.0.1:9" in unasked.err
    other = "is a run at https://127.0.0.1:9, and {} names another address; nothing was"
    assert other.format("--base-url") in elsewhere.err
    variable = {"ASYNC_REFUNDS_BASE_URL": "https://127.0.0.1:8"}
    left = await run(*resume, key=LIVE_KEY, folder=tmp_path, environment=variable)
    assert (left.code, other.format(*variable) in left.err) == (2, True)
    assert told.lines[0]["outcome"] == "failed"
    going_on = "run.sqlite3 --live --base-url https://127.0.0.1:9`"
    assert f"`async-refunds resume {going_on}" in told.err


async def test_account_of_a_journal_is_not_that_of_the_next_call(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(1)
    theirs = emulator.add_refund(account=THEM)
    async with emulator.serve() as base_url:
        how = ("--journal", "run.sqlite3", "--base-url", base_url)
        await run("cancel", theirs, "--account", THEM, *how, folder=tmp_path)
        ended = await run("cancel", *ids, *how, folder=tmp_path)
    assert ended.code == 0
    assert ended.lines[0]["stripe_account"] is None
    assert emulator.books.cancellations == {theirs: 1, ids[0]: 1}
