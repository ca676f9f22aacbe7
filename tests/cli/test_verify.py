"""Copy a journal, and read again what it reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.terminal import emulator_of, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


async def test_verify_shows_what_differs(tmp_path: Path) -> None:
    emulator, ids = emulator_of(4)
    emulator.set_status(ids[1], "succeeded")
    emulator.set_status(ids[2], "succeeded")
    async with emulator.serve() as base_url:
        emulator.faults.script(*["ok"] * 5, *["unsaved_500"] * 50)
        await run(
            *("cancel", *ids[:4], "--concurrency", "1"),
            *("--patience", "0.1", "--base-url", base_url),
            *("--journal", "run.sqlite3"),
            folder=tmp_path,
        )
        emulator.faults.clear()
        await run(
            *("cancel", "re_missing", "--journal", "missing.sqlite3"),
            *("--base-url", base_url),
            folder=tmp_path,
        )
        missing = await run("verify", "missing.sqlite3", folder=tmp_path)
        same = await run("verify", "run.sqlite3", folder=tmp_path)
        emulator.set_status(ids[0], "requires_action")
        emulator.set_status(ids[1], "canceled")
        sent = emulator.books.requests["cancel"]
        differs = await run("verify", "run.sqlite3", folder=tmp_path)
        emulator.faults.load("503=1")
        lost = await run(
            *("verify", "run.sqlite3", "--timeout", "0.5", "--rate", "25"),
            folder=tmp_path,
        )
        emulator.expire_key("sk_test_expired")
        emulator.faults.clear()
        expired = await run(
            "verify", "run.sqlite3", key="sk_test_expired", folder=tmp_path
        )
    assert emulator.books.requests["cancel"] == sent
    (unknown,) = same.lines
    assert unknown["refund_id"] == ids[3]
    assert unknown["error"] == "the outcome was unknown; it is requires_action now"
    assert same.code == missing.code == 0
    assert same.err == "3 as reported\n1 unknown\n"
    assert (missing.out, missing.err) == ("", "1 as reported\n")
    assert differs.code == 1
    told = {line["refund_id"]: line for line in differs.lines}
    assert told[ids[0]]["error"] == (
        "it was reported as canceled, and is requires_action now"
    )
    assert told[ids[1]]["error"] == (
        "it was reported as not_cancelable, and is canceled now"
    )
    assert "2 different" in differs.err
    assert lost.code == 1
    assert "not read" in lost.err
    assert expired.code == 1
    assert expired.err.endswith("; 0 of 4 refunds compared\n")


async def test_verify_needs_the_key_of_the_run(tmp_path: Path) -> None:
    missing = await run("verify", "none.sqlite3", folder=tmp_path)
    assert (missing.code, missing.out) == (2, "")
    assert "there is no journal" in missing.err


async def test_backup_can_be_read_and_resumed(tmp_path: Path) -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        await run(
            *("cancel", *ids, "--journal", "run.sqlite3", "--max", "1"),
            *("--base-url", base_url),
            folder=tmp_path,
        )
        copied = await run("backup", "run.sqlite3", "copy.sqlite3", folder=tmp_path)
        verified = await run("verify", "run.sqlite3", folder=tmp_path)
        again = await run("backup", "run.sqlite3", "copy.sqlite3", folder=tmp_path)
        resumed = await run("resume", "copy.sqlite3", folder=tmp_path)
    assert copied.code == 0
    assert copied.err == "copied 3 refunds of run.sqlite3 to copy.sqlite3\n"
    # What was never sent has no outcome to verify.
    assert (verified.code, verified.err) == (0, "1 as reported\n")
    assert again.code == 2
    assert "is there already" in again.err
    assert resumed.code == 0
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)
