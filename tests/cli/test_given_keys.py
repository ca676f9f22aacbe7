"""An API key typed where it does not belong is neither kept nor shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.scripted import (
    CANCELED,
    KEY,
    RE,
    answer,
    refund_json,
    scripted,
)
from tests.support.terminal import LIVE_KEY, run, run_each, there

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

IN_A_NAME = f"run-{LIVE_KEY}.sqlite3"


async def test_key_in_anything_that_is_given_is_refused_unseen(tmp_path: Path) -> None:
    given = {
        "--journal": ("cancel", "re_1", "--journal", IN_A_NAME),
        "--from": ("cancel", "--from", IN_A_NAME),
        "--output": ("cancel", "re_1", "--output", IN_A_NAME),
        "REFUND": ("cancel", "re_1", LIVE_KEY),
        "JOURNAL": ("report", IN_A_NAME),
        "FILE": ("backup", "run.sqlite3", IN_A_NAME),
        "--html": ("report", "run.sqlite3", "--html", IN_A_NAME),
        # A slip of the keys: -jsk_live_..., and something in front of it.
        "-j": ("cancel", "re_1", f"--journal=x{LIVE_KEY}"),
    }
    ends = await run_each(*given.values(), folder=tmp_path)
    for name, ended in zip(given, ends, strict=True):
        shown = "--journal" if name == "-j" else name
        assert ended.err == (
            f"async-refunds: {shown} has an API key in it, which belongs in "
            "STRIPE_API_KEY; nothing was done\n"
        )
        assert (ended.code, ended.out) == (2, "")
    assert not there(tmp_path, "*")


async def test_key_in_a_name_of_a_fleet_is_refused_unseen() -> None:
    pytest.importorskip("psycopg")
    given = {
        "--run": ("fleet", "enqueue", "re_1", "--run", LIVE_KEY),
        "--name": ("fleet", "worker", "--name", f"w-{LIVE_KEY}"),
        "--tenant": ("fleet", "worker", "--tenant", LIVE_KEY),
        "RUN": ("fleet", "pause", LIVE_KEY),
    }
    ends = await run_each(*given.values())
    for name, ended in zip(given, ends, strict=True):
        assert ended.err.startswith(f"async-refunds: {name} has an API key in it")
        assert (ended.code, ended.out) == (2, "")


async def test_key_in_a_variable_is_refused_unseen(tmp_path: Path) -> None:
    ended = await run(
        *("cancel", "re_1"),
        environment={"ASYNC_REFUNDS_JOURNAL": IN_A_NAME},
        folder=tmp_path,
    )
    assert ended.err.startswith("async-refunds: --journal has an API key in it")
    assert ended.code == 2


async def test_key_that_is_wrong_usage_is_shown_masked() -> None:
    wrong = (
        (LIVE_KEY,),
        ("fleet", LIVE_KEY),
        (f"--{LIVE_KEY}",),
        ("cancel", f"--{LIVE_KEY}"),
        ("list", LIVE_KEY),
    )
    for ended in await run_each(*wrong):  # each is looked at for the key itself
        assert "sk_live_***" in ended.err
        assert (ended.code, ended.out) == (2, "")
    for ended in (
        await run("cancel", "re_1", "--rate", LIVE_KEY),
        await run("list", environment={"ASYNC_REFUNDS_MAX": LIVE_KEY}),
    ):
        assert "Invalid value for '--" in ended.err
        assert ended.code == 2


async def test_option_that_is_not_there_suggests_nothing_that_moves_money() -> None:
    commands = (
        ("cancel", "re_1", "--key", LIVE_KEY),
        ("cancel", "re_1", "--liv"),
        ("report", "run.sqlite3", "--forc"),
        ("cancel", "re_1", "--ratee", "3"),
    )
    *dangerous, harmless = await run_each(*commands)
    for ended in dangerous:
        assert ended.code == 2
        assert "No such option: --" in ended.err
        for option in ("--yes", "--live", "--force"):
            assert option not in ended.err
    assert "--rate" in harmless.err.replace("--ratee", "")


async def test_key_that_a_server_echoes_is_not_shown() -> None:
    body = refund_json("requires_action", currency=KEY, reason=KEY, failure_reason=KEY)
    page = b'{"data":[' + body + b'],"has_more":false}'
    async with scripted(CANCELED, reads=[answer(body=body)]) as server:
        previewed, read = await run_each(
            ("cancel", RE, "--dry-run", "--base-url", server.url),
            ("retrieve", RE, "--base-url", server.url),
            key=KEY,
        )
        server.reads[:] = [answer(body=page)]
        listed = await run("list", "--base-url", server.url, key=KEY)
    for ended in (previewed, read, listed):
        assert ended.code == 0
        assert KEY not in ended.out + ended.err
    assert read.lines[0]["reason"] == previewed.lines[0]["currency"] == "sk_test_***"
