"""What do a webhook, a record of each call, and tracing cost a service?

A webhook is checked and decoded, or found to be forged. A cancel is made with nothing
that watches it, with an ``on_call``, and with OpenTelemetry:

- with its SDK, which keeps the spans until the end of the turn, as an exporter's queue
  does; with spans or metrics alone; and with all spans dropped by a sampler;
- without an SDK, so that only what this package does for it is left;
- **by hand**: a hook that writes as much to the SDK with everything prepared. This is
  what the SDK itself costs, and the least that any instrumentation can.

The server is `benchmarks.canned`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import stripe
from opentelemetry import context, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from async_refunds import RefundsClient, WebhookError, refund_event
from async_refunds.integrations.opentelemetry import CallInstrumentation
from benchmarks import canned, drawing, report
from benchmarks.harness import Figure, figure, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_refunds import CallStart

QUESTION = "What do a webhook, a record of each call, and tracing cost a service?"
SECRET = "whsec_benchmark"  # noqa: S105 - of nobody
REFUND_ID = "re_1Pgc72B7WZ01zgkWqPvrRrPE"

# Their types leave the time unknown.
_SIGNATURES: Any = stripe.WebhookSignature


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: int


class Result(msgspec.Struct, frozen=True):
    """What one thing costs."""

    what: str
    cpu: Figure
    """Seconds each."""


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    calls: int
    results: list[Result]


def webhooks() -> dict[str, Callable[[], object]]:
    """Return what is measured of webhooks, by name."""
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "refund.updated",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": json.loads(canned.body(REFUND_ID.encode()))},
        "request": {"id": "req_1", "idempotency_key": "order-7"},
    }
    body = json.dumps(event, indent=2)
    signature = _SIGNATURES.generate_signature_header(body, SECRET)
    raw, forged = body.encode(), f"{signature}0"

    def refused() -> None:
        with contextlib.suppress(WebhookError):
            refund_event(raw, forged, SECRET, 1e6)

    return {
        "webhook": lambda: refund_event(raw, signature, SECRET, 1e6),
        "forged webhook": refused,
        "webhook, official": lambda: stripe.Webhook.construct_event(
            raw, signature, SECRET, 10**6
        ),
    }


def _turn(do: Callable[[], object], calls: int) -> float:
    gc.collect()
    began = time.process_time()
    for _ in range(calls):
        do()
    return (time.process_time() - began) / calls


def by_hand(
    spans: TracerProvider, meters: MeterProvider
) -> Callable[[CallStart], Callable[[object], None]]:
    """Return a hook that writes to the SDK what a cancel has, all of it prepared."""
    tracer, meter = spans.get_tracer("by_hand"), meters.get_meter("by_hand")
    calls, requests = (
        meter.create_histogram("calls"),
        meter.create_histogram("requests"),
    )
    server: dict[str, Any] = {"server.address": "127.0.0.1", "server.port": 12111}
    request = {"http.request.method": "POST", "http.response.status_code": 200}
    outcome = {"async_refunds.method": "cancel", "async_refunds.outcome": "canceled"}
    of_request = {**server, **request}
    at_start = {"stripe.refund.id": REFUND_ID, "stripe.idempotency_key": "0" * 32}
    at_end = {
        **of_request,
        "url.full": f"http://127.0.0.1:12111/v1/refunds/{REFUND_ID}/cancel",
        "url.template": "/v1/refunds/{refund}/cancel",
        "stripe.request_id": "req_1",
        "async_refunds.outcome": "canceled",
        "async_refunds.attempts": 1,
    }

    def begin(start: CallStart) -> Callable[[object], None]:
        del start
        span = tracer.start_span("a", kind=SpanKind.CLIENT, attributes=at_start)
        token = context.attach(trace.set_span_in_context(span))

        def end(record: object) -> None:
            del record
            context.detach(token)
            span.set_attributes(at_end)
            span.end()
            calls.record(0.1, outcome)
            requests.record(0.1, of_request)

        return end

    return begin


class Cancels:
    """Clients of one server, each watched in another way."""

    def __init__(self, base_url: str) -> None:
        self._exporter = InMemorySpanExporter()
        spans = TracerProvider(shutdown_on_exit=False)
        spans.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        dropped = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        no_spans, no_meters = NoOpTracerProvider(), NoOpMeterProvider()
        self._outcomes: dict[str, int] = {}

        def client(**watched: Any) -> RefundsClient:  # noqa: ANN401 - hooks
            return RefundsClient("sk_test_bench", base_url=base_url, **watched)

        def count(record: Any) -> None:  # noqa: ANN401 - a CallRecord
            self._outcomes[record.outcome] = self._outcomes.get(record.outcome, 0) + 1

        def traced(spans: trace.TracerProvider, meters: Any) -> RefundsClient:  # noqa: ANN401 - of the API or the SDK
            hook = CallInstrumentation(tracer_provider=spans, meter_provider=meters)
            return client(on_call_start=hook)

        self.clients = {
            "cancel": client(),
            "cancel, on_call": client(on_call=count),
            "cancel, OpenTelemetry": traced(spans, meters),
            "cancel, OpenTelemetry by hand": client(
                on_call_start=by_hand(spans, meters)
            ),
            "cancel, OpenTelemetry, spans only": traced(spans, no_meters),
            "cancel, OpenTelemetry, metrics only": traced(no_spans, meters),
            "cancel, OpenTelemetry, spans dropped": traced(dropped, meters),
            "cancel, OpenTelemetry without an SDK": traced(no_spans, no_meters),
        }

    async def turn(self, refunds: RefundsClient, calls: int) -> float:
        """Make the calls, one after the other; return the CPU of each."""
        gc.collect()
        began = time.process_time()
        for _ in range(calls):
            await refunds.cancel(REFUND_ID)
        spent = time.process_time() - began
        self._exporter.clear()
        return spent / calls

    async def close(self) -> None:
        """Close the clients."""
        for refunds in self.clients.values():
            await refunds.close()


def _run(
    runner: asyncio.Runner, cancels: Cancels, refunds: RefundsClient, calls: int
) -> float:
    return runner.run(cancels.turn(refunds, calls))


def measure(asked: Flags) -> list[Result]:
    """Return a result for each thing."""
    turns: dict[str, Callable[[], float]] = {
        name: functools.partial(_turn, do, asked.calls)
        for name, do in webhooks().items()
    }
    with canned.canned_server() as base_url, asyncio.Runner() as runner:
        cancels = Cancels(base_url)
        for name, refunds in cancels.clients.items():
            turns[name] = functools.partial(_run, runner, cancels, refunds, asked.calls)
        found = in_turn(turns, asked.rounds)
        runner.run(cancels.close())
    return [Result(what=name, cpu=figure(each)) for name, each in found.items()]


def headlines(results: list[Result]) -> Mapping[str, float]:
    """Return microseconds of each, and what watching a cancel adds to it.

    A cancel with tracing off is one without an SDK.
    """
    found = {result.what: result.cpu.median * 1e6 for result in results}
    added = {
        f"added by {name.partition(', ')[2]}": cpu - found["cancel"]
        for name, cpu in found.items()
        if name.startswith("cancel, ")
    }
    traced, by_hand = (
        found["cancel, OpenTelemetry"],
        found["cancel, OpenTelemetry by hand"],
    )
    off = found["cancel, OpenTelemetry without an SDK"] / found["cancel"]
    ratios = {"OpenTelemetry x by hand": traced / by_hand, "tracing off x cancel": off}
    return {**found, **added, **ratios}


def draw(results: list[Result], path: Path) -> None:
    """Write a bar for each."""
    with drawing.sheet(path, QUESTION, size=(8, 5), panels=1) as (axes,):
        drawing.bars(
            axes,
            [result.what for result in results],
            [result.cpu.median * 1e6 for result in results],
            [f"{result.cpu.median * 1e6:.1f} µs" for result in results],
            spreads=[result.cpu.iqr * 1e6 / 2 for result in results],
        )
        axes.set_xlabel("µs of CPU")


def main() -> None:
    """Measure as the command line says; print, and draw if asked."""
    parser = report.parser(QUESTION, rounds=15)
    parser.add_argument(
        "--calls", type=report.count, default=1000, help="of each in each round"
    )
    asked = report.read(parser, Flags)
    if not asked.json:
        how = f"medians of {asked.rounds} rounds of {asked.calls}, ± IQR / 2"
        print(report.heading(QUESTION, how), flush=True)
    results = measure(asked)
    if not asked.json:
        rows = [[each.what, report.shown(each.cpu, 1, 1e6)] for each in results]
        print("\n".join(report.table(["", "µs CPU"], rows)), flush=True)
    whole = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines=dict(headlines(results)),
        calls=asked.calls,
        results=results,
    )
    report.finish(asked, whole, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
