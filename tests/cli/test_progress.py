from __future__ import annotations

import asyncio
import io
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from async_refunds.batch import Progress
from async_refunds.cli.batch_run import BatchRun
from async_refunds.cli.config import Connection
from async_refunds.cli.options import BatchOptions
from async_refunds.cli.output import Output
from async_refunds.cli.progress import TROUBLE, BatchProgress, batch_line, shown
from async_refunds.results import CancelRequest
from tests.support.terminal import Screen, emulator_of, held, started

if TYPE_CHECKING:
    from pathlib import Path

QUIET = Progress(
    outcomes=Counter(),
    under_way=0,
    waiting=0,
    requests=0,
    retries=0,
    rate=0.0,
    in_trouble=False,
)
BUSY = Progress(
    outcomes=Counter(canceled=1100, failed=100),
    under_way=50,
    waiting=3,
    requests=2000,
    retries=1234,
    rate=25.04,
    in_trouble=True,
)
ALL_PARTS = (
    "[##------------------]  1,200/10,000  20.0/s  0:07:20 left  100 not canceled  "
    f"{TROUBLE}  1,234 retries  pace 25.0/s"
)
real = pytest.mark.asyncio(loop_factories=["real"])


def test_line_tells_when_it_ends_and_whether_it_goes_well() -> None:
    at_start = batch_line(QUIET, done=0, total=2000, speed=0.0, columns=200)
    assert at_start == "[--------------------]  0/2,000  0.0/s  time left unknown"
    at_end = batch_line(QUIET, done=7, total=7, speed=3.0, columns=200)
    assert at_end == "[####################]  7/7  3.0/s"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (200, ALL_PARTS),
        (80, f"1,200/10,000  0:07:20 left  {TROUBLE}"),
        (40, "1,200/10,000  0:07:20 left"),
        (10, "1,200/10,000"),
    ],
)
def test_line_keeps_what_matters_most_where_it_is_narrow(
    columns: int, line: str
) -> None:
    drawn = batch_line(BUSY, done=1200, total=10_000, speed=20.0, columns=columns)
    assert drawn == line
    assert len(drawn) <= max(columns, 12)


async def test_long_run_says_how_far_it_is_every_ten_seconds(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator, ids = emulator_of(35)
    output = Output(path=str(tmp_path / "results.jsonl"))
    run = BatchRun(output, BatchOptions(rate=1.0), map(CancelRequest, ids), total=35)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_1")
    async with emulator.serve() as base_url:
        code = await run.run(Connection(live=False, base_url=base_url))
    output.close()
    assert code == 0
    lines = capsys.readouterr().err.splitlines()
    lines, (head, row, *money, effort) = lines[:3], lines[3:]
    for number, line in enumerate(lines, 1):
        _, done, speed, left, pace = line.split("  ")
        count = int(done.removesuffix("/35"))
        assert abs(count - 10 * number) <= 1
        assert speed in ("0.9/s", "1.0/s", "1.1/s")
        assert pace == "pace 1.0/s"
        assert left.startswith("0:00:")
    assert head.startswith("outcome")
    assert row == "canceled  35"
    assert money[0] == "came back  refunds  sum"
    assert effort.startswith("35 requests in 0:00:3")


async def test_speed_is_that_of_the_last_half_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = 100

    def progress() -> Progress:
        return Progress(
            outcomes=Counter(canceled=done),
            under_way=0,
            waiting=0,
            requests=0,
            retries=0,
            rate=0.0,
            in_trouble=False,
        )

    clock = asyncio.get_running_loop().time
    batch = BatchProgress(progress, total=2000, done=900, clock=clock)
    async with shown(Output(), batch.line):
        for _ in range(10):
            await asyncio.sleep(10.01)
            done += 10
    first, *_, last = capsys.readouterr().err.splitlines()
    assert "  1,000/2,000  10.0/s  " in first
    assert "  1,090/2,000  1.0/s  0:15:" in last


class Dead(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError(text)


async def test_progress_outlives_a_closed_stderr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Output()
    drawn = 0

    def line(columns: int) -> str:
        nonlocal drawn
        drawn += 1
        return str(columns)

    monkeypatch.setattr(sys, "stderr", Dead())
    async with shown(output, line):
        await asyncio.sleep(25.0)
    assert drawn == 2


class Unplugged(Dead):
    """A terminal that is gone."""

    def isatty(self) -> bool:
        return True


async def test_progress_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a batch goes on without it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stderr", Unplugged())
    output = Output()
    assert output.shows_status
    async with shown(output, str):
        await asyncio.sleep(25.0)
    assert sys.stderr is None


@real
@pytest.mark.parametrize("columns", [40, 80, 200])
async def test_status_line_fits_the_terminal_and_leaves_nothing_behind(
    columns: int,
) -> None:
    emulator, ids = emulator_of(3)
    screen = Screen(columns)
    async with held(
        emulator,
        1,
        *("cancel", *ids, "--concurrency", "1"),
        stderr=screen.terminal,
    ) as (gate, running):
        gate.open()
        ended, drawn = await screen.shows(running)
    assert ended.code == 0
    frames = drawn.split("\r\x1b[K")
    assert any("0/3" in frame for frame in frames)
    assert max(map(len, frames)) < columns
    assert frames[-1] == ""


@real
@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
async def test_dumb_terminal_gets_no_control_sequences(terminal: str) -> None:
    emulator, ids = emulator_of(2)
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "--base-url", base_url),
            stderr=screen.terminal,
            environment={"TERM": terminal},
        ) as running,
    ):
        ended, drawn = await screen.shows(running)
    assert ended.code == 0
    assert ("\x1b" in drawn) == (terminal == "xterm")
