"""What a worker tells of itself while it works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from async_refunds.integrations.opentelemetry import WorkerInstrumentation

if TYPE_CHECKING:
    from async_refunds.workers import WorkerMetrics
    from tests.workers.conftest import Fleet

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

A, B = "acct_A", "acct_B"
FAST = 2000.0


@pytest.fixture(autouse=True)
def _told_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_refunds.workers.worker._INTERVAL", 0.02)


async def test_metrics_say_what_the_worker_has_done(fleet: Fleet) -> None:
    fleet.stripe.faults.script("ok", "rate_429", "ok", "rate_429")
    await fleet.seed(60, A)
    await fleet.seed(4, B)
    # A holder of one of them was killed.
    await fleet.ask(
        "UPDATE async_refunds.leases SET token = gen_random_uuid() "
        "WHERE account = 'acct_B'"
    )
    told: list[WorkerMetrics] = []
    async with fleet.worker("one", rate=100.0, on_metrics=told.append):
        await fleet.until(lambda: any(each.accounts == 2 for each in told))
        await fleet.until_told(64)
    last = told[-1]
    assert last.scope == f"default {fleet.base_url} test"
    assert last.worker == "one"
    assert (last.accounts, last.takeovers, last.fenced, last.results) == (0, 1, 0, 64)
    assert last.requests == 66
    assert last.rate_limited == 2
    assert last.transactions >= 2
    grown = [(each.results, each.requests, each.transactions) for each in told]
    assert grown == sorted(grown)


async def test_metrics_say_that_writes_were_refused(fleet: Fleet) -> None:
    fleet.stripe.latency = 0.2
    await fleet.seed(3, A)
    told: list[WorkerMetrics] = []
    async with fleet.worker("one", rate=FAST, on_metrics=told.append):
        await fleet.until(lambda: len(fleet.stripe.requests) == 3)
        await fleet.ask("UPDATE async_refunds.leases SET token = gen_random_uuid()")
        await fleet.until(lambda: told[-1].fenced)


async def test_hook_that_raises_ends_no_worker(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await fleet.seed(2, A)

    def fail(told: WorkerMetrics) -> None:
        raise RuntimeError(told.worker)

    async with fleet.worker("one", rate=FAST, on_metrics=fail):
        await fleet.until_told(2)
    assert fleet.results.keys() == set(ids)
    assert "on_metrics raised" in caplog.text


async def test_opentelemetry_has_what_each_worker_told_last(fleet: Fleet) -> None:
    reader = InMemoryMetricReader()
    hook = WorkerInstrumentation(
        meter_provider=MeterProvider([reader], shutdown_on_exit=False)
    )
    await fleet.seed(3, A)
    async with fleet.worker("one", rate=FAST, on_metrics=hook):
        await fleet.until_told(3)
    await fleet.seed(2, A)
    async with fleet.worker("two", rate=FAST, on_metrics=hook):
        await fleet.until_told(5)
    found = _points(reader)
    scope = f"default {fleet.base_url} test"
    assert found["async_refunds.worker.results"] == {
        (scope, "one"): 3,
        (scope, "two"): 2,
    }
    assert found["async_refunds.worker.accounts"] == {
        (scope, "one"): 0,
        (scope, "two"): 0,
    }
    assert found.keys() == {
        f"async_refunds.worker.{name}"
        for name in (
            *("accounts", "takeovers", "fenced", "transactions", "results"),
            *("requests", "rate_limited"),
        )
    }


def _points(reader: InMemoryMetricReader) -> dict[str, dict[tuple[Any, ...], Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: {
            tuple((point.attributes or {}).values()): getattr(point, "value", None)
            for point in metric.data.data_points
        }
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
