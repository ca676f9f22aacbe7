"""Plays many cases of journals at a time, in real time and in real processes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from . import journals
from .campaign import Summary
from .drawing import drawn
from .fork_server import fork_server

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .script import Script
    from .world import Report


def played(script: Script) -> Report:
    """Play one script, alone."""

    async def main() -> Report:
        async with fork_server() as forks:
            return await journals.play(script, forks)

    with asyncio.Runner() as runner:
        return runner.run(main())


def attack(
    seed: int,
    numbers: Iterable[int],
    *,
    without: Collection[str] = (),
    crowd: int = 4,
) -> Summary:
    """Play the cases of a seed. See `campaign.attack`."""
    summary = Summary()
    began = time.perf_counter()
    left = iter(numbers)

    async def main() -> None:
        async with fork_server() as forks:

            async def worker() -> None:
                for number in left:
                    script = drawn("journals", seed, number, without)
                    report = await journals.play(script, forks)
                    summary.count("journals", seed, number, script, report)

            await asyncio.gather(*(worker() for _ in range(crowd)))

    with asyncio.Runner() as runner:
        runner.run(main())
    summary.seconds = time.perf_counter() - began
    return summary
