from __future__ import annotations

import asyncio
import re
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from typer.testing import CliRunner

from async_refunds.batch import Batch
from async_refunds.cli import batch_figures
from async_refunds.cli.app import app
from async_refunds.journal import JournalReader, Run, SqliteJournal
from async_refunds.results import CancelRequest
from tests.support.terminal import (
    IN_BACKGROUND,
    LIVE_KEY,
    TEST_KEY,
    Ended,
    Gate,
    Screen,
    emulator_of,
    held,
    run,
    run_each,
    run_in_shell,
    started,
)

if TYPE_CHECKING:
    from async_refunds.emulator import Emulator

real = pytest.mark.asyncio(loop_factories=["real"])

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
HANGUP = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)


@real
async def test_hangup_that_is_ignored_ends_nothing() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"nohup {sys.executable} -m async_refunds cancel {ids[0]} "
            f"--base-url {base_url}"
        )
    assert ended.code == 0
    assert [line["outcome"] for line in ended.lines] == ["canceled"]


@real
async def test_ctrl_c_that_is_ignored_ends_nothing_and_a_termination_does() -> None:
    emulator, ids = emulator_of(3)
    command = ("cancel", *ids, "--concurrency", "1")
    async with held(emulator, 1, *command, python=IN_BACKGROUND) as (gate, running):
        running.process.send_signal(signal.SIGINT)
        gate.open()
        ended = await running.ended()
    assert (ended.code, "interrupted" in ended.err) == (0, False)
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    emulator, ids = emulator_of(3)
    command = ("cancel", *ids, "--concurrency", "1")
    async with held(emulator, 1, *command, python=IN_BACKGROUND) as (gate, running):
        running.process.send_signal(signal.SIGTERM)
        await running.says("no new refund is started")
        gate.open()
        ended = await running.ended()
    assert ended.code == 130


@real
async def test_emulator_in_the_background_ends_by_a_termination_alone() -> None:
    async with started(
        *("emulator", "--port", "0", "--seed", "2"), key=None, python=IN_BACKGROUND
    ) as emulator:
        base_url = (await emulator.says(r"at (http\S+);"))[1]
        emulator.process.send_signal(signal.SIGINT)
        listed = await run("list", "--base-url", base_url)
        emulator.process.send_signal(signal.SIGTERM)
        ended = await emulator.ended()
    assert (listed.code, len(listed.lines)) == (0, 2)
    assert ended.code == 0


# A Ctrl-C that the whole suite is deaf for: then a test that sends one would hang.
DEAF = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", *sys.argv[1:]])
"""


@real
async def test_interrupts_of_this_suite_are_heard_where_ctrl_c_is_ignored() -> None:
    one = "test_emulator_serves_what_its_hint_says_until_interrupted"
    place = Path(__file__).with_name("test_emulator.py")
    async with asyncio.timeout(60):
        ended = await run(
            *("-n", "1", "-p", "no:cacheprovider", f"{place}::{one}"),
            python=("-c", DEAF),
            environment={"PYTEST_ADDOPTS": ""},  # coverage is of the outer one
        )
    assert (ended.code, "1 passed" in ended.out) == (0, True), ended.out


@real
@HANGUP
async def test_interrupt_lets_what_is_under_way_end_and_accounts_for_the_rest(
    number: signal.Signals,
) -> None:
    emulator, ids = emulator_of(6)
    command = ("cancel", *ids, "--concurrency", "2")
    async with held(emulator, 2, *command) as (gate, running):
        running.process.send_signal(number)
        await running.says("no new refund is started")
        gate.open()
        ended = await running.ended()
    assert ended.code == 130
    told = {line["refund_id"]: line for line in ended.lines}
    assert len(told) == len(ended.lines) == 6
    assert [told[each]["outcome"] for each in ids] == ["canceled"] * 2 + ["failed"] * 4
    for each in ids[2:]:
        assert told[each]["error"] == "interrupted, nothing was sent"
        assert told[each]["idempotency_key"] is None
        assert told[each]["attempts"] == 0
    assert emulator.books.cancel_requests == dict.fromkeys(ids[:2], 1)


@real
@BOTH
async def test_second_interrupt_reports_what_is_under_way_as_unknown(
    number: signal.Signals,
) -> None:
    emulator, ids = emulator_of(4)
    command = ("cancel", *ids, "--concurrency", "2")
    async with held(emulator, 2, *command) as (_, running):
        running.process.send_signal(number)
        await running.says("no new refund is started")
        running.process.send_signal(number)
        ended = await running.ended()
        again = await run("cancel", *ids, "--base-url", emulator.base_url)
    assert ended.code == 3
    told = {line["refund_id"]: line for line in ended.lines}
    assert len(told) == len(ended.lines) == 4
    assert [told[each]["outcome"] for each in ids] == ["unknown"] * 2 + ["failed"] * 2
    sent = {entry.idempotency_key for entry in emulator.requests}
    for each in ids[:2]:
        assert told[each]["idempotency_key"] in sent
        assert told[each]["attempts"] == 1, "it was sent, and had no answer"
        assert "the call was interrupted" in told[each]["error"]
    assert again.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


@real
async def test_interrupted_table_is_shown_whole() -> None:
    emulator, ids = emulator_of(2)
    screen = Screen()
    async with held(
        emulator,
        1,
        *("cancel", *ids, "--concurrency", "1"),
        stdout=screen.terminal,
    ) as (_, running):
        running.process.send_signal(signal.SIGINT)
        await running.says("no new refund is started")
        running.process.send_signal(signal.SIGINT)
        ended, shown = await screen.shows(running)
    assert ended.code == 3
    _, first, *rest, second = shown.splitlines()
    key = emulator.requests[0].idempotency_key
    assert first.split()[:3] == [ids[0], "unknown", key]
    assert "the call was interrupted" in " ".join([first, *map(str.strip, rest)])
    assert re.split(r"  +", second) == [
        *(ids[1], "not begun"),
        "interrupted, nothing was sent",
    ]
    told = r"\nnot begun +1 +not canceled: run the same command again\n"
    assert re.search(told, ended.err)
    assert "read the error" not in ended.err


# What Ctrl-C finds: the command, and what it says of its first answer, which is held.
READS = {
    ("list",): "0 refunds searched, older ones not",
    ("list", "--status", "failed"): "0 refunds searched, older ones not",
    ("retrieve", "re_1", "re_2"): "0 of 2 refunds read",
    ("sweep", "--older-than", "1d", "--dry-run"): (
        "0 refunds searched, older ones not; nothing was canceled"
    ),
    ("sweep", "--older-than", "1d", "--yes"): (
        "0 refunds searched, older ones not; nothing was canceled"
    ),
    ("cancel", "re_1", "re_2", "--dry-run"): (
        "0 of 2 refunds read; nothing was canceled"
    ),
}


@real
async def test_interrupted_read_says_what_was_done() -> None:
    emulator, _ = emulator_of(1)
    async with emulator.serve() as behind:
        gate = Gate(behind)

        async def interrupted(base_url: str, *words: str) -> Ended:
            async with started(*words, "--base-url", base_url) as running:
                await gate.holds(1)
                running.process.send_signal(signal.SIGINT)
                return await running.ended()

        async with gate.serve() as base_url:
            for words, said in READS.items():
                ended = await interrupted(base_url, *words)
                assert ended.err == f"async-refunds: interrupted: {said}\n"
                assert (ended.code, ended.out) == (130, "")
    assert not emulator.books.cancel_requests


@real
async def test_interrupted_search_says_how_far_it_came() -> None:
    emulator, ids = emulator_of(101)
    async with emulator.serve() as base_url:

        def interrupt_the_second(_: object) -> None:
            if emulator.books.requests["list"] == 2:
                running.process.send_signal(signal.SIGINT)

        emulator.latency = 0.05
        emulator.on_request = interrupt_the_second
        screen = Screen()
        async with started(
            "list", "--base-url", base_url, stdout=screen.terminal
        ) as running:
            ended, shown = await screen.shows(running)
    assert ended.code == 130
    assert len(shown.splitlines()) == 1 + 100
    assert ids[1] in shown
    day = datetime.fromtimestamp(int(str(emulator.refund(ids[1])["created"])), UTC)
    assert ended.err.endswith(
        f"interrupted: 100 refunds searched, back to {day:%Y-%m-%d}, older ones not\n"
    )


@real
async def test_interrupted_verify_says_what_was_compared(tmp_path: Path) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as behind:
        gate = Gate(behind)
        gate.open()
        async with gate.serve() as base_url:
            await run(
                *("cancel", *ids, "--journal", "run.sqlite3", "--base-url", base_url),
                folder=tmp_path,
            )
            gate.close()
            async with started("verify", "run.sqlite3", folder=tmp_path) as running:
                await gate.holds(1)
                running.process.send_signal(signal.SIGINT)
                ended = await running.ended()
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "async-refunds: interrupted: 0 of 3 refunds compared\n"


@real
async def test_interrupted_prompt_cancels_nothing() -> None:
    emulator, _ = emulator_of(0)
    ids = [emulator.add_refund(livemode=True) for _ in range(2)]
    async with emulator.serve() as base_url:
        for code, said in (
            (130, "async-refunds: interrupted: nothing was canceled"),
            (1, "nothing was canceled"),
        ):
            screen = Screen()
            async with started(
                *("cancel", *ids, "--live", "--base-url", base_url),
                key=LIVE_KEY,
                stdin=screen.terminal,
                stderr=screen.terminal,
            ) as running:
                showing = screen.reading()
                await screen.asks("[y/N]:")
                await running.sleeps()
                if code == 1:
                    screen.types("\x04")  # the end of the input
                else:
                    running.process.send_signal(signal.SIGINT)
                ended = await running.ended()
                shown = await showing
            assert ended.code == code
            assert shown.splitlines()[-1] == said
    assert not emulator.requests


def raise_interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def interrupted(*words: str, code: int = 130) -> str:
    """Run a command in this process, and return what it says of an interrupt."""
    ended = CliRunner().invoke(app, words, env={"STRIPE_API_KEY": TEST_KEY})
    assert ended.exit_code == code
    return ended.stderr.splitlines()[-1]


def test_interrupt_around_a_batch_says_what_was_done(
    stripe_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    command = ["cancel", stripe_emulator.add_refund(), "re_none"]
    command += ["--output", str(results), "--base-url", stripe_emulator.base_url]
    with monkeypatch.context() as before:
        before.setattr(Batch, "__init__", raise_interrupt)
        assert interrupted(*command) == ("async-refunds: interrupted: nothing was sent")
    with monkeypatch.context() as after:
        after.setattr(batch_figures, "outcome_table", raise_interrupt)
        assert interrupted(*command) == (
            "async-refunds: interrupted: every result is written"
        )
        assert len(results.read_text().splitlines()) == 2
        stripe_emulator.faults.load("503=1")
        unknown = [*command, "--patience", "0.1", "--timeout", "0.1"]
        assert interrupted(*unknown, code=3) == (
            "async-refunds: interrupted: every result is written"
        )


def test_interrupt_of_what_only_needs_a_journal_says_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "run.sqlite3"
    run_of = Run("https://a.example", livemode=False)
    with SqliteJournal.open(journal, run_of) as made:
        made.load([CancelRequest("re_1")])
    monkeypatch.setattr(JournalReader, "records", raise_interrupt)
    monkeypatch.setattr(JournalReader, "backup", raise_interrupt)
    monkeypatch.setattr(JournalReader, "tally", raise_interrupt)
    monkeypatch.setattr(SqliteJournal, "close_run", raise_interrupt)
    for command, said in {
        ("report",): "interrupted: the report is not complete; the journal is as it "
        "was",
        ("backup", "copy"): "interrupted: copy was not written",
        ("verify",): "interrupted; nothing was sent",
        ("close",): f"interrupted: perhaps {journal} is closed: the same command again "
        "makes sure",
    }.items():
        name, *more = command
        assert interrupted(name, str(journal), *more) == f"async-refunds: {said}"


# Python, interrupted when it looks for a module that it is to import.
AT_IMPORT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module, ignored = sys.argv.pop(1), sys.argv.pop(1)
if ignored == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("async_refunds", run_name="__main__", alter_sys=True)
"""


@real
async def test_interrupt_of_the_start_is_one_line_too() -> None:
    modules = ("typer", "aiohttp", "async_refunds.cli.sweep")
    *interrupted, ignored = await run_each(
        *((each, "heard", "--version") for each in modules),
        ("aiohttp", "ignored", "--version"),
        python=("-c", AT_IMPORT),
    )
    for ended in interrupted:
        assert ended.err == "async-refunds: interrupted; nothing was sent\n"
        assert (ended.code, ended.out) == (130, "")
    assert (ignored.code, ignored.err) == (0, "")
