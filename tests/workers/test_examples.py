"""The examples of `.github/fleet`: what they would start is there to be started."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "fleet"
RECIPE = (FOLDER / "Dockerfile").read_text()
UNIT = (FOLDER / "async-refunds-worker.service").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
STOPS_WITHIN = 10  # seconds, as the help of `fleet worker` says


@pytest.mark.parametrize(
    "words",
    [
        SERVICES["tables"]["command"],
        SERVICES["worker"]["command"],
        ["fleet", "worker"],  # of the unit and the image
        ["fleet", "status"],  # of the comment
    ],
)
def test_command_is_one(words: list[str]) -> None:
    ran = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "async_refunds", *words, "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"async_refunds {' '.join(words)}" in ran.stdout


def test_image_has_what_a_worker_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"'/src\[(.*)\]'", RECIPE)
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}
    copied = re.findall(r"^COPY (.*) /src\S*$", RECIPE, re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    build = SERVICES["tables"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(FOLDER / "Dockerfile")
    assert SERVICES["worker"]["image"] == SERVICES["tables"]["image"]


def test_only_the_worker_has_the_key() -> None:
    holders = [
        name
        for name, service in SERVICES.items()
        if "STRIPE_API_KEY" in service.get("environment", {})
    ]
    assert holders == ["worker"]
    assert "ports" not in SERVICES["postgres"]  # anybody may log in there
    assert "sk_" not in UNIT


def test_worker_has_time_to_give_its_accounts_back() -> None:
    assert int(SERVICES["worker"]["stop_grace_period"].rstrip("s")) > STOPS_WITHIN
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert int(seconds) > STOPS_WITHIN
    (started,) = re.findall(r"^ExecStart=\S*/(\S+) (.*)$", UNIT, re.MULTILINE)
    assert started == ("async-refunds", "fleet worker")
