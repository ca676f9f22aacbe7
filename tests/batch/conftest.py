"""What the tests of batches share."""

from __future__ import annotations

import math

import pytest

from async_refunds.batch import worker


class _Never:
    """Stands for the policy between two calls for the same refund."""

    def backoff(self, retry: int) -> float:
        del retry
        return math.inf


@pytest.fixture
def one_call_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run make one call for each refund, and leave the next one to the next run.

    A patience of next to nothing does so too, but for one run in a hundred: the time
    between two calls is drawn from nothing on.
    """
    monkeypatch.setattr(worker, "_BETWEEN_CALLS", _Never())
