"""Plays many scripts, some at a time, each on a database of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.support.postgres_cluster import PostgresNode, make_template, server_folder

from . import database
from .play import WORKER, play

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .judge import Report
    from .script import Script


async def template_of_fleet(folder: Path) -> Path:
    """Make the data of a server that has the fleet's schema."""
    data = await make_template(folder)
    node = PostgresNode(folder)
    await node.start()
    await database.migrate(node)
    await node.stop()
    return data


def played(
    script: Script,
    seed: str,
    template: Path | None = None,
    worker: Sequence[str] = WORKER,
) -> Report:
    """Play one script, and return what came of it.

    Args:
        script: What happens.
        seed: Of everything else.
        template: The data of a server with the fleet's schema; None makes some.
        worker: The arguments of Python that run one.
    """
    with ExitStack() as stack:
        if template is None:
            folder = stack.enter_context(server_folder())
            template = asyncio.run(template_of_fleet(folder))
        logs = Path(stack.enter_context(TemporaryDirectory(prefix="chaos-")))
        return asyncio.run(play(script, seed, template, logs, worker))


def campaign(
    seed: int, scripts: Iterable[tuple[int, Script]], *, jobs: int = 1
) -> Iterator[tuple[int, Report]]:
    """Play scripts, and yield the number and the report of each as it ends."""
    with server_folder() as folder, ProcessPoolExecutor(jobs) as pool:
        template = asyncio.run(template_of_fleet(folder))
        runs = {
            pool.submit(played, script, f"{seed} {number}", template): number
            for number, script in scripts
        }
        for run in as_completed(runs):
            yield runs[run], run.result()
