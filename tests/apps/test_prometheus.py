"""The recipe for Prometheus measures what calls did."""

from __future__ import annotations

import inspect

import pytest
from prometheus_client import REGISTRY

from async_refunds import OutcomeUnknownError
from tests.apps import prometheus
from tests.support.scripted import CANCELED, RE, refusal, scripted, seen


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_recipe_counts_calls_failures_waits_and_tokens() -> None:
    failing = refusal(503, type="api_error")
    async with (
        scripted(failing, CANCELED, "reset", reads=[seen("requires_action")]) as server,
        server.client(on_call=prometheus.note) as refunds,
    ):
        await refunds.cancel(RE)
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
        assert refunds.retry_budget is not None
        tokens = refunds.retry_budget.tokens
    for outcome in ("canceled", "unknown"):
        labels = {"method": "cancel", "outcome": outcome}
        assert sample("refund_calls_total", **labels) == 1
    assert sample("refund_failures_total", reason="503", stopped_by="") == 1
    assert sample("refund_failures_total", reason="reset", stopped_by="") == 3
    assert sample("refund_failures_total", reason="reset", stopped_by="count") == 1
    assert sample("refund_call_seconds_count", method="cancel") == 2
    assert sample("refund_connection_wait_seconds_count") == 7
    assert sample("refund_retry_tokens") == tokens


def test_recipe_has_at_most_twenty_lines() -> None:
    code = inspect.getsource(prometheus).partition('"""\n\n')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
