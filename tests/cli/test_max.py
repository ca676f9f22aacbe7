"""``--max`` and a journal: what was left out is canceled only when told to."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.terminal import emulator_of, held, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.terminal import Ended

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

RESUME = "async-refunds resume run.sqlite3"


def commands(ended: Ended) -> list[str]:
    """Return the commands that a summary names, in its order."""
    return re.findall(r"`(.*?)`", ended.err)


async def test_command_that_is_offered_takes_no_more_than_max_did(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(5)
    (tmp_path / "ids.txt").write_text("\n".join(["re_none", *ids]))
    async with emulator.serve() as base_url:
        first = await run(
            *("cancel", "--from", "ids.txt", "--max", "2", "--journal", "run.sqlite3"),
            *("--base-url", base_url),
            folder=tmp_path,
        )
        assert first.err.endswith(
            f"5 of 6 are open: `{RESUME} --max 2` takes the next 2, `{RESUME}` all\n"
            "--max left out 4 refunds\n"
        )
        # What failed is open too: its row offers no more than the last line.
        *about_outcomes, some, all_ = commands(first)
        assert {*about_outcomes, some} == {f"{RESUME} --max 2"}
        assert all_ == RESUME
        second = await run(*some.split()[1:], folder=tmp_path)
        assert len(second.lines) == 2
        assert set(emulator.books.cancellations) == set(ids[:3])
        assert second.code == 0, "what was asked for is canceled"
        assert "\nthis time: 2 canceled; in all run.sqlite3 holds:\n" in second.err
        assert "\ncanceled  3\n" in second.err
        third = await run(*some.split()[1:], folder=tmp_path)
        fourth = await run(*all_.split()[1:], folder=tmp_path)
    assert "3 of 6 are open: " in second.err
    assert "1 of 6 are open: " in third.err
    assert "--max left out 1 refund\n" in third.err
    assert set(commands(fourth)) == {RESUME, "async-refunds close run.sqlite3"}
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
    # The one that is not there was asked for by the first and the last.
    assert [each.code for each in (first, third, fourth)] == [1, 0, 1]


async def test_max_that_would_take_all_of_the_rest_is_not_offered(
    tmp_path: Path,
) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--max", "2", "--journal", "run.sqlite3"),
            *("--base-url", base_url),
            folder=tmp_path,
        )
    assert ended.code == 0
    assert "this time" not in ended.err, "all of the journal is of this time"
    assert set(commands(ended)) == {RESUME}
    assert ended.err.endswith(
        f"1 of 3 are open: `{RESUME}` continues with them\n--max left out 1 refund\n"
    )


async def test_interrupt_before_max_leaves_work(tmp_path: Path) -> None:
    emulator, ids = emulator_of(5)
    async with held(
        emulator,
        1,
        *("cancel", *ids, "--max", "3", "--journal", "run.sqlite3"),
        *("--concurrency", "1"),
        folder=tmp_path,
    ) as (gate, running):
        running.process.send_signal(signal.SIGINT)
        await running.says("no new refund is started")
        gate.open()
        ended = await running.ended()
    assert ended.code == 130
    assert [line["outcome"] for line in ended.lines] == ["canceled"]
