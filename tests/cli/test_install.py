from __future__ import annotations

import platform
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from async_refunds import __version__
from tests.support.terminal import COMMAND, run, run_each

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

# What Python does where a module is not installed, for one that is.
WITHOUT = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = sys.argv.pop(1)
sys.meta_path.insert(0, Missing())
runpy.run_module("async_refunds", run_name="__main__", alter_sys=True)
"""


async def test_command_without_its_extra_says_how_to_install_it() -> None:
    ended = await run("typer", python=("-c", WITHOUT))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "async-refunds: the command line needs typer, which the extra `cli` installs: "
        f"{sys.executable} -m pip install typer\n"
    )


async def test_help_of_a_fleet_says_how_to_install_its_extra() -> None:
    how = (
        "fleet needs psycopg, which the extra `postgres` installs: "
        f"{sys.executable} -m pip install 'psycopg[binary]' procrastinate\n"
    )
    shown = await run("psycopg", "fleet", "--help", python=("-c", WITHOUT))
    assert (shown.code, shown.err) == (0, "")
    assert "Cancel refunds with several machines" in shown.out
    assert shown.out.endswith(f"\n\n{how}")
    bare = await run("psycopg", "fleet", python=("-c", WITHOUT))
    assert bare.code == 2
    assert how in bare.out + bare.err
    for words in (("wait", "tonight"), ("wait", "--help")):
        refused = await run("psycopg", "fleet", *words, python=("-c", WITHOUT))
        assert (refused.code, refused.err) == (2, f"async-refunds: {how}")


async def test_another_missing_module_is_not_taken_for_the_extra() -> None:
    ended = await run("async_refunds.emulator", "demo", python=("-c", WITHOUT))
    assert ended.code == 1
    assert "No module named 'async_refunds.emulator'" in ended.err
    assert "pip install" not in ended.err


async def test_version_shows_what_a_bug_report_needs() -> None:
    ended = await run("--version", key=None, python=COMMAND)
    assert (ended.code, ended.err) == (0, "")
    ours, python, *libraries, sqlite, openssl, system = ended.out.splitlines()
    assert ours == f"async-refunds {__version__}"
    assert python.endswith(platform.python_version())
    for name, line in zip(
        ("aiohttp", "msgspec", "tenacity", "typer"), libraries, strict=True
    ):
        assert line == f"{name} {version(name)}"
    assert sqlite.startswith("SQLite 3.")
    assert "SSL" in openssl
    assert system == platform.platform()


async def test_help_says_what_each_command_does() -> None:
    names = [
        "cancel",
        "resume",
        "close",
        "report",
        "backup",
        "verify",
        "sweep",
        "retrieve",
    ]
    names += ["list", "emulator", "demo"]
    commands = [("--help",), *((name, "--help") for name in names)]
    told = await run_each(*commands, key=None)
    for name, ended in zip(("", *names), told, strict=True):
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"Usage: async-refunds {name}")
        assert "Exit codes: 0" in ended.out
    short = await run("cancel", "-h", key=None)
    assert short.out == told[1].out


async def test_shell_completes_commands_and_options() -> None:
    asked = {"async-refunds ca": "cancel", "async-refunds cancel --dr": "--dry-run"}
    script = Path(sysconfig.get_path("scripts")) / "async-refunds"
    for line, found in asked.items():
        ended = await run(
            python=(str(script),),
            environment={
                "_ASYNC_REFUNDS_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(line.count(" ")),
            },
        )
        assert ended.out.split() == [found]


async def test_no_command_is_a_wrong_call_that_shows_the_help() -> None:
    ended = await run(key=None)
    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


@pytest.mark.skipif(sys.platform == "win32", reason="scripts have another name there")
async def test_installed_command_is_the_same() -> None:
    script = Path(sysconfig.get_path("scripts")) / "async-refunds"
    ended = await run("--version", python=(str(script),))
    assert ended.code == 0
    assert ended.out.startswith(f"async-refunds {__version__}\n")


async def test_help_does_not_depend_on_docstrings() -> None:
    commands = (("--help",), ("cancel", "--help"))
    plain = await run_each(*commands, key=None, python=COMMAND)
    assert plain[0].out.startswith("Usage: python -m async_refunds [OPTIONS]")
    optimized = await run_each(
        *commands, key=None, python=("-OO", "-m", "async_refunds")
    )
    for ours, theirs in zip(plain, optimized, strict=True):
        assert ours.code == theirs.code == 0
        assert ours.out == theirs.out
