from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from async_refunds.cli import demo
from async_refunds.cli.crash_recovery import ROUNDS
from tests.support.terminal import Screen, appears, run, run_each, started, there

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

FIELDS = [
    "refunds",
    "canceled",
    "canceled_exactly_once",
    "requests",
    "retries",
    "settled_by_a_read",
    "asked_again",
    "replays",
    "faults",
    "killed",
    "seconds",
]
# Every one of them may have landed, and none takes long.
KINDLY = "reset_after=0.1,cut_body=0.1,saved_500=0.1,503=0.1"
AGREE = "The emulator's books agree: each refund was canceled exactly once."


async def test_demo_tells_the_truth_in_any_weather() -> None:
    storm, calm, hopeless = await run_each(
        ("demo", "--refunds", "40", "--seed", "3"),
        ("demo", "--refunds", "3", "--faults", "storm:0", "--json"),
        # An answer that is never followed up, and never what was asked for.
        ("demo", "--refunds", "1", "--faults", "redirect=1"),
        key=None,
    )

    assert storm.code == 0
    story = storm.err.splitlines()
    assert story[0] == "40 of 40 refunds canceled"
    assert story[-1] == AGREE
    (report,) = storm.lines
    assert list(report) == FIELDS
    assert report["refunds"] == report["canceled"] == 40
    assert report["canceled_exactly_once"] == 40
    assert report["requests"] > 40
    assert report["retries"] > 0
    assert sum(report["faults"].values()) > 0

    assert calm.code == 0
    assert "faults met       0 (none)" in calm.err
    (report,) = calm.lines
    assert report["requests"] == report["refunds"] == report["canceled"] == 3
    assert report["retries"] == report["asked_again"] == report["replays"] == 0
    assert report["faults"] == {}

    assert hopeless.code == 1
    assert hopeless.err.splitlines()[-1] == (
        "The emulator's books DISAGREE: 0 of 1 were canceled exactly once."
    )
    (report,) = hopeless.lines
    assert report["canceled"] == report["canceled_exactly_once"] == 0
    assert report["asked_again"] == 19


async def test_killed_batch_cancels_everything_exactly_once() -> None:
    ended = await run("demo", "--kill", "--refunds", "60", "--faults", KINDLY, key=None)
    assert ended.code == 0
    (report,) = ended.lines
    assert list(report) == FIELDS
    assert report["refunds"] == report["canceled"] == 60
    assert report["canceled_exactly_once"] == 60
    assert report["killed"] == 5
    # What was under way at a kill was sent, and is sent again with its key.
    assert report["asked_again"] > 5
    assert report["retries"] >= report["asked_again"]
    assert report["requests"] >= 60 + report["retries"]
    assert report["replays"] > 0
    assert sum(report["faults"].values()) > 0
    story = ended.err.splitlines()
    assert story[1] == "  killed           5 times, and resumed"
    assert story[-1] == AGREE


async def test_killed_batch_in_hopeless_weather_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "KILLS", 1)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    run = demo.Demo(refunds=1, faults="redirect=1", seed=0)
    report = await run.run_with_kills()
    assert report.killed == 1
    assert report.canceled == report.canceled_exactly_once == 0
    assert not report.good


@pytest.mark.parametrize("kill", [(), ("--kill",)])
async def test_interrupted_demo_leaves_no_journal_behind(
    tmp_path: Path, kill: tuple[str, ...]
) -> None:
    async with started(
        *("demo", "--refunds", "9999", "--faults", "storm:0", *kill),
        key=None,
        folder=tmp_path,
    ) as running:
        await appears(running, tmp_path, "*/run.sqlite3-wal")
        running.process.send_signal(signal.SIGINT)
        ended = await running.ended()
    assert ended.code == 130
    assert re.fullmatch(
        r"async-refunds: interrupted: [\d,]+ of 9,999 refunds canceled, all of them "
        "the emulator's",
        ended.err.splitlines()[-1],
    )
    assert not there(tmp_path, "*")


async def test_demo_in_weather_that_there_is_not_is_a_wrong_call() -> None:
    ended = await run("demo", "--faults", "nosuch=1")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("async-refunds: --faults: no fault 'nosuch'")


async def test_demo_on_a_terminal_shows_progress_and_the_story_on_stdout() -> None:
    screen, bar = Screen(), Screen()
    async with started(
        *("demo", "--refunds", "5", "--faults", "storm:0"),
        stdout=screen.terminal,
        stderr=bar.terminal,
    ) as running:
        bar_shown = bar.reading()
        ended, shown = await screen.shows(running)
    assert ended.code == 0
    story = shown.splitlines()
    assert story[0] == "5 of 5 refunds canceled"
    assert story[-1] == AGREE
    assert "5/5" in await bar_shown


async def test_demo_on_a_terminal_says_why_another_bar_begins() -> None:
    screen, bar = Screen(), Screen()
    async with started(
        *("demo", "--refunds", "2", "--faults", "redirect=1"),
        stdout=screen.terminal,
        stderr=bar.terminal,
    ) as running:
        bar_shown = bar.reading()
        ended, _ = await screen.shows(running)
    assert ended.code == 1
    assert (await bar_shown).count("asking again for 2\n") == ROUNDS - 1
