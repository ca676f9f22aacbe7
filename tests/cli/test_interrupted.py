from __future__ import annotations

import signal
import sys

import pytest

from tests.support.terminal import Gate, Screen, emulator_of, run, run_in_shell, started

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
HANGUP = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)


async def test_hangup_that_is_ignored_ends_nothing() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        ended = await run_in_shell(
            f"nohup {sys.executable} -m async_refunds cancel {ids[0]} "
            f"--base-url {base_url}"
        )
    assert ended.code == 0
    assert [line["outcome"] for line in ended.lines] == ["canceled"]


@HANGUP
async def test_interrupt_lets_what_is_under_way_end_and_accounts_for_the_rest(
    number: signal.Signals,
) -> None:
    emulator, ids = emulator_of(6)
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with (
            gate.serve() as base_url,
            started(
                *("cancel", *ids, "--concurrency", "2", "--base-url", base_url)
            ) as running,
        ):
            await gate.holds(2)
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


@BOTH
async def test_second_interrupt_reports_what_is_under_way_as_unknown(
    number: signal.Signals,
) -> None:
    emulator, ids = emulator_of(4)
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with (
            gate.serve() as base_url,
            started(
                *("cancel", *ids, "--concurrency", "2", "--base-url", base_url)
            ) as running,
        ):
            await gate.holds(2)
            running.process.send_signal(number)
            await running.says("no new refund is started")
            running.process.send_signal(number)
            ended = await running.ended()
        again = await run("cancel", *ids, "--base-url", behind)
    assert ended.code == 3
    told = {line["refund_id"]: line for line in ended.lines}
    assert len(told) == len(ended.lines) == 4
    assert [told[each]["outcome"] for each in ids] == ["unknown"] * 2 + ["failed"] * 2
    sent = {entry.idempotency_key for entry in emulator.requests}
    for each in ids[:2]:
        assert told[each]["idempotency_key"] in sent
        assert told[each]["attempts"] == 0  # none of them has ended
        assert "the call was interrupted" in told[each]["error"]
    assert again.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


async def test_interrupted_table_is_shown_whole() -> None:
    emulator, ids = emulator_of(2)
    screen = Screen()
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with (
            gate.serve() as base_url,
            started(
                *("cancel", *ids, "--concurrency", "1", "--base-url", base_url),
                stdout=screen.terminal,
            ) as running,
        ):
            await gate.holds(1)
            running.process.send_signal(signal.SIGINT)
            await running.says("no new refund is started")
            running.process.send_signal(signal.SIGINT)
            ended, shown = await screen.shows(running)
    assert ended.code == 3
    _, first, *rest, second = shown.splitlines()
    key = emulator.requests[0].idempotency_key
    assert first.split()[:3] == [ids[0], "unknown", key]
    assert "the call was interrupted" in " ".join([first, *map(str.strip, rest)])
    assert second.split(maxsplit=2) == [
        ids[1],
        "failed",
        "interrupted, nothing was sent",
    ]


@pytest.mark.parametrize("command", ["list", "retrieve"])
async def test_interrupted_read_ends_at_once(command: str) -> None:
    emulator, ids = emulator_of(1)
    words = ids if command == "retrieve" else []
    async with emulator.serve() as behind:
        gate = Gate(behind)
        async with (
            gate.serve() as base_url,
            started(command, *words, "--base-url", base_url) as running,
        ):
            await gate.holds(1)
            running.process.send_signal(signal.SIGINT)
            ended = await running.ended()
    assert ended.code == 130
    assert ended.out == ""
    assert "Traceback" not in ended.err
