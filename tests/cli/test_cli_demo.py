from __future__ import annotations

import pytest
from terminal import Screen, run, run_each, started

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
    "seconds",
]
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
    assert report["asked_again"] == 20


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
