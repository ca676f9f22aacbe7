from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from async_refunds import __version__
from tests.support.terminal import run, run_each

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
        "async-refunds: the command line needs its extra: "
        "pip install 'async-refunds[cli]'\n"
    )


async def test_another_missing_module_is_not_taken_for_the_extra() -> None:
    ended = await run("async_refunds.emulator", "demo", python=("-c", WITHOUT))
    assert ended.code == 1
    assert "No module named 'async_refunds.emulator'" in ended.err
    assert "pip install" not in ended.err


async def test_version_is_the_package_s() -> None:
    ended = await run("--version", key=None)
    assert (ended.code, ended.out) == (0, f"async-refunds {__version__}\n")


async def test_help_says_what_each_command_does() -> None:
    names = ["cancel", "resume", "report", "sweep", "retrieve", "list"]
    names += ["emulator", "demo"]
    commands = [("--help",), *((name, "--help") for name in names)]
    for name, ended in zip(
        ("", *names), await run_each(*commands, key=None), strict=True
    ):
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"Usage: python -m async_refunds {name}")
        assert "Exit codes: 0" in ended.out or "Ctrl-C ends it" in ended.out


async def test_no_command_is_a_wrong_call_that_shows_the_help() -> None:
    ended = await run(key=None)
    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


@pytest.mark.skipif(sys.platform == "win32", reason="scripts have another name there")
async def test_installed_command_is_the_same() -> None:
    script = Path(sysconfig.get_path("scripts")) / "async-refunds"
    ended = await run("--version", python=(str(script),))
    assert (ended.code, ended.out) == (0, f"async-refunds {__version__}\n")


async def test_help_does_not_depend_on_docstrings() -> None:
    commands = (("--help",), ("cancel", "--help"))
    plain = await run_each(*commands, key=None)
    optimized = await run_each(
        *commands, key=None, python=("-OO", "-m", "async_refunds")
    )
    for ours, theirs in zip(plain, optimized, strict=True):
        assert ours.code == theirs.code == 0
        assert ours.out == theirs.out
