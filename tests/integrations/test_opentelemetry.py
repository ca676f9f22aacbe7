"""Spans and metrics of calls, with the real SDK and the real instrumentation beside."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from async_refunds import (
    Attempt,
    CallRecord,
    CallStart,
    OutcomeUnknownError,
    RefundNotFoundError,
    RefundsClient,
    RefundsError,
)
from async_refunds.integrations.opentelemetry import CallInstrumentation
from tests.support.batches import client, emulator
from tests.support.scripted import (
    CANCELED,
    RE,
    answer,
    refund_json,
    refusal,
    scripted,
    seen,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "sk_test_CANARYofTheKey51"
EMAIL = "canary@customer.example"
FAILING = refusal(503, type="api_error")
LIMITED = refusal(429, {"Stripe-Rate-Limited-Reason": "endpoint-rate"})


class Told:
    """What the SDK was told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracing = TracerProvider(shutdown_on_exit=False)
        self.tracing.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.metering = MeterProvider([self._reader], shutdown_on_exit=False)
        self.hook = CallInstrumentation(
            tracer_provider=self.tracing, meter_provider=self.metering
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that ended, in the order of their beginnings."""
        return sorted(
            self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0
        )

    def metric(self, name: str) -> dict[tuple[Any, ...], Any]:
        """Return a metric's data points, by the values of their attributes."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            tuple(point.attributes.values()): point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if point.attributes is not None
        }

    def printed(self) -> str:
        """Return everything that was told, as text."""
        data = self._reader.get_metrics_data()
        return "\n".join(
            [*(span.to_json() for span in self.spans), data.to_json() if data else ""]
        )


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def instrumented(told: Told) -> Iterator[None]:
    """Let aiohttp's own instrumentation tell the same SDK."""
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=told.tracing, meter_provider=told.metering)
    yield
    instrumentor.uninstrument()


async def test_call_is_a_span_and_each_attempt_a_child_of_it(told: Told) -> None:
    tracer = told.tracing.get_tracer("a service")
    async with (
        scripted(FAILING, "reset", CANCELED) as server,
        server.client(on_call_start=told.hook) as refunds,
    ):
        with tracer.start_as_current_span("POST /refunds"):
            refund = await refunds.cancel(RE, idempotency_key="order-7")
    caller, call, *attempts = told.spans
    assert call.name == "async_refunds.cancel"
    assert call.kind is SpanKind.CLIENT
    assert call.parent is not None
    assert call.parent == caller.context
    assert dict(call.attributes or {}) == {
        "stripe.refund.id": RE,
        "stripe.idempotency_key": "order-7",
        "async_refunds.outcome": "canceled",
        "async_refunds.attempts": 3,
        "stripe.request_id": "req_canceled",
    }
    assert call.status.status_code is StatusCode.UNSET
    assert [each.name for each in attempts] == ["POST /v1/refunds/{refund}/cancel"] * 3
    assert [each.parent for each in attempts] == [call.context] * 3
    assert {each.kind for each in attempts} == {SpanKind.CLIENT}
    first, second, third = [dict(each.attributes or {}) for each in attempts]
    port = int(server.url.rpartition(":")[2])
    assert first == {
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.request.method": "POST",
        "http.response.status_code": 503,
        "error.type": "503",
        "url.full": f"{server.url}/v1/refunds/{RE}/cancel",
        "url.template": "/v1/refunds/{refund}/cancel",
        "stripe.request_id": "req_refused",
    }
    assert second["error.type"] == "reset"
    assert "http.response.status_code" not in second
    resends = [each.get("http.request.resend_count") for each in (first, second, third)]
    assert resends == [None, 1, 2]
    assert "error.type" not in third
    codes = [each.status.status_code for each in attempts]
    assert codes == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    for span, attempt in zip(attempts, refund.last_response.attempts, strict=True):
        assert span.start_time is not None
        assert span.end_time is not None
        seconds = (span.end_time - span.start_time) / 1e9
        assert seconds == pytest.approx(attempt.seconds, abs=1e-5)


@pytest.mark.parametrize("status", [200, 404])
async def test_call_of_one_request_is_one_span_with_its_attributes(
    status: int, told: Told
) -> None:
    act = CANCELED if status == 200 else refusal(404, code="resource_missing")
    async with (
        scripted(act) as server,
        server.client(on_call_start=told.hook) as refunds,
    ):
        with contextlib.suppress(RefundNotFoundError):
            await refunds.cancel(RE, idempotency_key="order-7")
    (call,) = told.spans
    good = {"async_refunds.outcome": "canceled", "stripe.request_id": "req_canceled"}
    bad = {
        "async_refunds.outcome": "failed",
        "stripe.request_id": "req_refused",
        "error.type": "RefundNotFoundError",
    }
    assert dict(call.attributes or {}) == {
        "stripe.refund.id": RE,
        "stripe.idempotency_key": "order-7",
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "http.request.method": "POST",
        "http.response.status_code": status,
        "url.full": f"{server.url}/v1/refunds/{RE}/cancel",
        "url.template": "/v1/refunds/{refund}/cancel",
        "async_refunds.attempts": 1,
        **(good if status == 200 else bad),
    }
    assert call.name == "async_refunds.cancel"
    assert call.kind is SpanKind.CLIENT
    failed = call.status.status_code is StatusCode.ERROR
    assert failed == (status == 404)


async def test_unknown_outcome_is_an_error_and_its_read_is_no_resend(
    told: Told,
) -> None:
    async with (
        scripted("reset", reads=[LIMITED, seen("requires_action")]) as server,
        server.client(on_call_start=told.hook) as refunds,
    ):
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE, stripe_account="acct_1")
    call, *attempts = told.spans
    attributes = dict(call.attributes or {})
    assert attributes["error.type"] == "OutcomeUnknownError"
    assert attributes["async_refunds.outcome"] == "unknown"
    assert attributes["async_refunds.stopped_by"] == "count"
    assert attributes["stripe.account"] == "acct_1"
    assert call.status.status_code is StatusCode.ERROR
    resends = [
        (each.attributes or {}).get("http.request.resend_count") for each in attempts
    ]
    assert resends == [None, 1, 2, 3, None, 1]
    assert attempts[-1].name == "GET /v1/refunds/{refund}"


@pytest.mark.parametrize("method", ["cancel", "retrieve"])
async def test_cancelled_task_ends_the_span_and_gives_the_context_back(
    method: str, told: Told
) -> None:
    current: list[trace.Span] = []
    async with (
        scripted("stall", reads=["stall"]) as server,
        server.client(on_call_start=told.hook) as refunds,
    ):

        async def handle() -> None:
            try:
                await getattr(refunds, method)(RE)
            finally:
                current.append(trace.get_current_span())

        call = asyncio.create_task(handle())
        await server.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    (span,) = told.spans
    assert dict(span.attributes or {})["error.type"] == "interrupted"
    assert current == [trace.INVALID_SPAN]


async def test_log_records_of_a_call_belong_to_its_span(told: Told) -> None:
    within: list[trace.Span] = []

    def note(attempt: Attempt) -> None:
        within.append(trace.get_current_span())

    async with (
        scripted(CANCELED) as server,
        server.client(on_call_start=told.hook, on_attempt=note) as refunds,
    ):
        await refunds.cancel(RE)
        assert trace.get_current_span() is trace.INVALID_SPAN
    (call,) = told.spans
    assert [each.get_span_context() for each in within] == [call.context]


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
async def test_instrumentation_of_aiohttp_beside_it_tells_nothing_twice(
    borrowed: bool,  # noqa: FBT001 - a parameter of the test
    told: Told,
) -> None:
    async with (
        scripted(FAILING, CANCELED) as server,
        aiohttp.ClientSession() as session,
        server.client(
            on_call_start=told.hook, session=session if borrowed else None
        ) as refunds,
    ):
        await refunds.cancel(RE)
        names = [each.name for each in told.spans]
        assert names == [
            "async_refunds.cancel",
            *["POST /v1/refunds/{refund}/cancel"] * 2,
        ]
        assert not [each for each in server.received if "traceparent" in each.headers]
        # Outside of a call it goes on as before.
        server.cancels[:] = [CANCELED]
        async with session.post(server.url):
            pass
    assert [each.name for each in told.spans][3:] == ["POST"]


@pytest.mark.usefixtures("instrumented")
async def test_instrumentation_of_aiohttp_works_without_ours(told: Told) -> None:
    async with scripted(FAILING, CANCELED) as server, server.client() as refunds:
        await refunds.cancel(RE)
    assert [each.name for each in told.spans] == ["POST", "POST"]


async def test_metrics_tell_calls_attempts_retries_waits_and_tokens(told: Told) -> None:
    async with (
        scripted(FAILING, "reset", LIMITED, CANCELED) as server,
        server.client(on_call_start=told.hook) as refunds,
    ):
        await refunds.cancel(RE)
        server.cancels[:] = ["reset"]
        server.reads[:] = [seen("requires_action")]
        with pytest.raises(OutcomeUnknownError):
            await refunds.cancel(RE)
        tokens = refunds.retry_budget.tokens if refunds.retry_budget else 0.0
        port = int(server.url.rpartition(":")[2])
    calls = told.metric("async_refunds.call.duration")
    assert calls["cancel", "canceled"].count == 1
    assert calls["cancel", "unknown"].count == 1
    requests = told.metric("http.client.request.duration")
    assert {key[2:]: point.count for key, point in requests.items()} == {
        ("POST", 503, "503"): 1,
        ("POST", "reset"): 5,
        ("POST", 429, "429"): 1,
        ("POST", 200): 1,
        ("GET", 200): 1,
    }
    retries = told.metric("async_refunds.retries")
    assert {key[1]: point.value for key, point in retries.items()} == {
        "503": 1,
        "reset": 4,
        "429": 1,
    }
    assert told.metric("async_refunds.retries_stopped")["cancel", "count"].value == 1
    assert told.metric("async_refunds.retry.wait")["cancel",].count == 6
    assert not told.metric("async_refunds.connection.wait")
    where = ("127.0.0.1", port)
    assert told.metric("async_refunds.retry_budget.tokens")[where].value == tokens


async def test_wait_for_a_connection_is_measured_where_there_is_one(
    told: Told,
) -> None:
    stripe = emulator()
    stripe.latency = 0.1  # else the last one waits no time
    async with client(stripe, on_call_start=told.hook) as refunds:
        ids = stripe.seed_refunds(101)
        await asyncio.gather(*(refunds.cancel(each) for each in ids))
    (waits,) = told.metric("async_refunds.connection.wait").values()
    assert waits.count >= 1


async def test_no_budget_has_no_gauge_and_a_list_has_a_span(told: Told) -> None:
    page = answer(body=b'{"data": [], "has_more": false}')
    async with (
        scripted(reads=[page]) as server,
        server.client(on_call_start=told.hook, retry_budget=None) as refunds,
    ):
        assert [refund async for refund in refunds.list()] == []
    (span,) = told.spans
    assert span.name == "async_refunds.list"
    assert dict(span.attributes or {})["url.template"] == "/v1/refunds"
    assert not told.metric("async_refunds.retry_budget.tokens")


async def test_nothing_told_holds_the_key_or_an_address(told: Told) -> None:
    personal = refund_json("requires_action", instructions_email=EMAIL)
    message = refusal(400, message=f"{CANARY} {EMAIL}")
    async with scripted(message, "reset", reads=[answer(body=personal)]) as server:
        options: dict[str, Any] = {"base_url": server.url, "on_call_start": told.hook}
        async with RefundsClient(CANARY, **options) as refunds:
            for _ in range(2):
                with pytest.raises(RefundsError):
                    await refunds.cancel(RE, expand=["charge"])
    assert len(told.spans) > 4
    assert "CANARY" not in told.printed()
    assert EMAIL not in told.printed()


@pytest.mark.parametrize("cure", ["this package's spans", "sanitized headers"])
async def test_captured_headers_do_not_export_the_key(
    cure: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instrumentation that captures all headers exports it without a cure."""
    names = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS"
    monkeypatch.setenv(f"{names}_CLIENT_REQUEST", ".*")
    hook = told.hook if cure == "this package's spans" else None
    if hook is None:
        monkeypatch.setenv(f"{names}_SANITIZE_FIELDS", "authorization")
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=told.tracing, meter_provider=told.metering)
    try:
        async with scripted(CANCELED) as server:
            options: dict[str, Any] = {"base_url": server.url, "on_call_start": hook}
            async with RefundsClient(CANARY, **options) as refunds:
                await refunds.cancel(RE)
    finally:
        instrumentor.uninstrument()
    assert told.spans
    assert "CANARY" not in told.printed()


async def test_unsampled_call_costs_no_spans_and_is_measured(told: Told) -> None:
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    hook = CallInstrumentation(tracer_provider=off, meter_provider=told.metering)
    async with (
        scripted(CANCELED) as server,
        server.client(on_call_start=hook) as refunds,
    ):
        await refunds.cancel(RE)
    assert not told.spans
    assert told.metric("async_refunds.call.duration")


@pytest.mark.parametrize("base_url", ["https://api.stripe.com", "http://127.0.0.1"])
def test_port_is_that_of_the_scheme_where_the_url_has_none(
    base_url: str, told: Told
) -> None:
    start = CallStart("retrieve", base_url, RE, None, None)
    told.hook(start)(CallRecord("retrieve", RE, None, None, "done", None, 0.1, (), 1.0))
    ((_, port),) = told.metric("async_refunds.retry_budget.tokens")
    assert port == (443 if base_url.startswith("https") else 80)


async def test_global_providers_are_the_default() -> None:
    async with (
        scripted(CANCELED) as server,
        server.client(on_call_start=CallInstrumentation()) as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"


@pytest.mark.parametrize("wrong", ["raises at the start", "raises at the end", "None"])
async def test_hook_of_the_start_that_fails_harms_nothing(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    def end(record: object) -> None:
        raise RuntimeError("the hook's own")

    def start(call: CallStart) -> Any:  # noqa: ANN401 - also what is none
        if wrong == "raises at the start":
            raise RuntimeError("the hook's own")
        return None if wrong == "None" else end

    async with (
        scripted(CANCELED, reads=[seen("canceled")]) as server,
        server.client(on_call_start=start) as refunds,
    ):
        assert (await refunds.cancel(RE)).status == "canceled"
        assert (await refunds.retrieve(RE)).status == "canceled"
    raised = [each for each in caplog.records if "raised" in each.getMessage()]
    assert len(raised) == (0 if wrong == "None" else 2)


def test_nothing_of_it_is_imported_where_it_is_not_used() -> None:
    code = (
        "import sys, async_refunds, async_refunds.batch\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own
