"""Coverage put aside where tests go in great numbers through what others reach too.

A traced simulation of an hour takes three times as long, and so does the `mypy` or the
`pip` of a test, which would be traced as well. That every branch is reached is for the
other tests to show, and the gate counts what they reach.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def unmeasured() -> Generator[None]:
    """Trace neither this thread nor the processes that it starts, until the end."""
    tracer = sys.gettrace()
    kept = {
        name: os.environ.pop(name)
        for name in [*os.environ]
        if name.startswith("COVERAGE_PROCESS")  # as `patch = ["subprocess"]` sets it
    }
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        os.environ.update(kept)
