"""A short run of the chaos, and proof that it sees a fleet that takes no care."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.postgres_cluster import server_folder

from .campaign import played, template_of_fleet
from .script import Disaster, Option, Script

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

SMALL = (Option("accounts", 8), Option("refunds", 200), Option("rate", 25))


@pytest.fixture(scope="module")
def template() -> Generator[Path]:
    with server_folder() as folder:
        yield asyncio.run(template_of_fleet(folder))


def test_kill_and_failover_cancel_nothing_twice_and_lose_nothing(
    template: Path,
) -> None:
    script: Script = (*SMALL, Disaster("kill", 0.1), Disaster("failover", 0.12))
    report = played(script, "short", template)
    assert not report.findings, (report.findings, report.left, report.log)
    assert report.told == {"canceled": 200}
    assert report.done == {"kill": 1, "failover": 1}
    assert report.lost[0] >= 30
    assert sum(report.faults_met.values()) > 20


def test_careless_fleet_is_found_out(template: Path) -> None:
    worker = ("-m", "tests.chaos.careless_worker")
    script: Script = (Option("accounts", 4), Option("refunds", 40), Option("rate", 25))
    report = played(script, "careless", template, worker)
    kinds = {finding.kind for finding in report.findings}
    assert {"two keys for one refund", "canceled twice"} <= kinds
