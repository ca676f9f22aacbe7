"""A disk that is soon full, where this user may mount one."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def root(*command: str) -> bool:
    """Tell whether a command of the system was allowed and did it."""
    done = subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - ours
    return done.returncode == 0


@contextmanager
def small_disk(folder: Path) -> Generator[Path]:
    """Give a folder, made for this, on a disk of one megabyte; or skip the test."""
    disk = folder / "disk"
    disk.mkdir()
    if not root("mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)):
        pytest.skip("may not mount a small disk")
    try:
        yield disk
    finally:
        assert root("umount", str(disk))


def fill_disk(folder: Path) -> Path:
    """Write a file that leaves no room beside it, and return its path."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path
