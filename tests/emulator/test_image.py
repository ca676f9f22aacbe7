"""The image recipe and the examples of `.github/emulator`, without a container.

What a container would run is run here: the same commands, with the same variables.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tomllib
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.terminal import run, started

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "emulator"
RECIPE = (FOLDER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# A name that a compose file gives a service leads to this machine, in one process.
RESOLVING = """
import runpy, socket, sys

name, resolve = sys.argv.pop(1), socket.getaddrinfo
def getaddrinfo(host, *more, **others):
    return resolve("127.0.0.1" if host == name else host, *more, **others)
socket.getaddrinfo = getaddrinfo
runpy.run_module("async_refunds", run_name="__main__", alter_sys=True)
"""


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def exec_form(instruction: str) -> list[str]:
    """Return the words of an instruction that starts no shell."""
    (found,) = re.findall(rf"^.*\b{instruction} (\[.*\])$", RECIPE, re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def variables() -> dict[str, str]:
    """Return what the image sets, but with a free port."""
    (line,) = re.findall(r"^ENV (.*)$", RECIPE, re.MULTILINE)
    found = dict(each.split("=") for each in line.split())
    return found | {"ASYNC_REFUNDS_PORT": "0"}


@asynccontextmanager
async def container(environment: dict[str, str]) -> AsyncGenerator[str]:
    """Run what the image runs, and give its port."""
    command, *arguments = exec_form("ENTRYPOINT")
    assert command in PROJECT["scripts"]
    async with started(
        *arguments, environment=variables() | environment, key=None
    ) as running:
        yield (await running.says(r"^\d+ refunds .* at http://0\.0\.0\.0:(\d+);"))[1]


async def test_image_has_what_it_is_built_from() -> None:
    copied = re.findall(r"^COPY (.*) /src\S*$", RECIPE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert all((ROOT / name).exists() for name in names)
    # Whatever the build reads is there.
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= {*names}
    (extra,) = re.findall(r"'/src\[(\w+)\]'", RECIPE)
    assert extra in PROJECT["optional-dependencies"]
    (version,) = re.findall(r"^FROM python:(\S+)-slim$", RECIPE, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    assert re.search(r"^USER (?!root)", RECIPE, re.MULTILINE)


async def test_compose_file_runs_the_emulator_and_a_service_that_uses_it() -> None:
    services = example("compose.yaml")["services"]
    stripe, app = services["stripe"], services["app"]
    build = stripe["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(FOLDER / "Dockerfile")
    assert app["image"] == stripe["image"]
    assert app["depends_on"] == {"stripe": {"condition": "service_healthy"}}
    # Its port is for this machine only, and the one that it listens on.
    (published,) = stripe["ports"]
    host, outside, inside = published.split(":")
    assert (host, outside) == ("127.0.0.1", inside)
    assert f"ASYNC_REFUNDS_PORT={inside}" in RECIPE
    assert f"EXPOSE {inside}" in RECIPE

    async with container(stripe["environment"]) as port:
        interpreter, *health = exec_form("CMD")
        assert interpreter == "python"
        checks = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                *health,
                env={"ASYNC_REFUNDS_PORT": asked},
                stderr=PIPE,
            )
            for asked in (port, "1")
        ]
        assert [bool(await each.wait()) for each in checks] == [False, True]
        for each in checks:
            await each.communicate()
        environment = dict(app["environment"])
        address = environment["ASYNC_REFUNDS_BASE_URL"]
        assert address == f"http://stripe:{inside}"
        environment["ASYNC_REFUNDS_BASE_URL"] = address.replace(inside, port)
        command, *arguments = app["entrypoint"]
        assert command in PROJECT["scripts"]
        python = ("-c", RESOLVING, "stripe")
        ended = await run(*arguments, python=python, environment=environment)
        assert (ended.code, len(ended.lines)) == (0, 5), ended.err
        assert {each["outcome"] for each in ended.lines} == {"canceled"}
        # A live key does not go that way, whatever is typed.
        environment["STRIPE_API_KEY"] = "sk_live_51CanaryOfTheTerminal"
        ended = await run(*arguments, "--live", python=python, environment=environment)
        assert (ended.code, ended.out) == (2, "")
        assert "plain http" in ended.err


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_workflow_runs_against_the_service() -> None:
    (job,) = example("workflow.yaml")["jobs"].values()
    (service,) = job["services"].values()
    (published,) = service["ports"]
    assert job["env"]["STRIPE_BASE_URL"] == f"http://{published.rpartition(':')[0]}"
    async with container(service["env"]) as port:
        (script,) = (step["run"] for step in job["steps"])
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            env=job["env"] | {"STRIPE_BASE_URL": f"http://127.0.0.1:{port}"},
            stdout=PIPE,
        )
        out, _ = await shell.communicate()
    assert shell.returncode == 0
    assert json.loads(out[out.rindex(b'{"cancellations"') :])["faults"] == {"503": 1}
