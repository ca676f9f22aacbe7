"""The parts of a benchmark that need PostgreSQL, measured on a server of their own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks import report
from tests.support.postgres_server import PostgresServer, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

B = TypeVar("B")


def measured(
    wanted: Sequence[str],
    parts: Mapping[str, Callable[[B], dict[str, float]]],
    bench: Callable[[Path, PostgresServer], B],
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what each part found.

    Args:
        wanted: The names of the parts.
        parts: How each is measured.
        bench: Makes what they are measured with, of a folder and the server.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        # As a server is by default, but for what waits for a disk.
        running_server(
            autovacuum="on", synchronous_commit="on", shared_buffers="128MB"
        ) as server,
    ):
        made = bench(Path(name), server)
        for part in wanted:
            report.say(f"{part} ...")
            yield part, parts[part](made)
