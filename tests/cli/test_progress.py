from __future__ import annotations

import asyncio
import io
import sys
from collections import Counter
from typing import TYPE_CHECKING

from async_refunds import RefundsClient
from async_refunds.batch import Progress
from async_refunds.cli.batch_run import BatchRun
from async_refunds.cli.options import BatchOptions
from async_refunds.cli.output import Output
from async_refunds.cli.progress import TROUBLE, ProgressDisplay, progress_line
from async_refunds.results import CancelRequest
from tests.support.terminal import emulator_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

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


def test_line_tells_all_that_there_is_to_tell() -> None:
    assert progress_line(QUIET, done=0, total=2000, speed=0.0) == "0/2,000  0.0/s"
    assert progress_line(QUIET, done=7, total=7, speed=3.0) == "7/7  3.0/s"
    assert progress_line(BUSY, done=1200, total=10_000, speed=20.0) == (
        f"1,200/10,000  20.0/s  1,234 retries  pace 25.0/s  0:07:20 left  {TROUBLE}"
    )


async def test_long_run_says_how_far_it_is_every_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator, ids = emulator_of(35)
    output = Output(as_json=True, path=str(tmp_path / "results.jsonl"))
    job = BatchRun(output, BatchOptions(rate=1.0), map(CancelRequest, ids), total=35)
    async with emulator.serve() as base_url:
        code = await job.run(RefundsClient("sk_test_1", base_url=base_url))
    output.close()
    assert code == 0
    *lines, head, row = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        done, speed, pace, left = line.split("  ")
        count = int(done.removesuffix("/35"))
        assert abs(count - 10 * number) <= 1
        assert speed in ("0.9/s", "1.0/s", "1.1/s")
        assert pace == "pace 1.0/s"
        assert left.startswith("0:00:")
    assert head.startswith("outcome")
    assert row == "canceled  35"


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
    display = ProgressDisplay(
        Output(as_json=True), progress, total=2000, done=900, clock=clock
    )
    async with display.shown():
        for _ in range(10):
            await asyncio.sleep(10.01)
            done += 10
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("1,000/2,000  10.0/s  ")
    assert last.startswith("1,090/2,000  1.0/s  0:15:")


class Dead(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError(text)


async def test_closed_stderr_does_not_end_the_display(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Output(as_json=True)
    clock = asyncio.get_running_loop().time
    asked = 0

    def progress() -> Progress:
        nonlocal asked
        asked += 1
        return QUIET

    monkeypatch.setattr(sys, "stderr", Dead())
    display = ProgressDisplay(output, progress, total=1, done=0, clock=clock)
    async with display.shown():
        await asyncio.sleep(25.0)
    assert asked == 2
