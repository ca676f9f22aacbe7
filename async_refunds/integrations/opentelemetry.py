"""OpenTelemetry (extra ``otel``): a span for each call and each attempt, and metrics.

::

    from async_refunds.integrations.opentelemetry import CallInstrumentation

    refunds = RefundsClient(api_key, on_call_start=CallInstrumentation())

The span of a call is a child of the caller's span. If the call took one request, as
nearly all do, it has that request's attributes too. If it took several, each of them is
a child of it, as the semantic conventions for HTTP clients have it: "each retry attempt
has its own span" (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). The
attributes of requests, and ``http.client.request.duration``, are those of the stable
conventions. Neither the API key nor an e-mail address is in any of them.

A span costs about 16 us in the SDK, a point of a metric about 7, whoever writes them
(``benchmarks/bench_service.py``). So a call that succeeds at once has one span and two
points, and nothing else is recorded of it.

What a worker of a fleet does is measured by ``work(..., on_metrics=...)``, see
`WorkerInstrumentation`.

``opentelemetry-instrumentation-aiohttp-client`` may be used besides: during a call it
makes no spans of its own, so that no attempt is there twice. This holds for the
requests of an ``api_key`` callable too.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from opentelemetry import context, metrics, trace

# Private, but the only way for all instrumentations of HTTP: their own package imports
# it from there under this name.
from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # as said
)
from opentelemetry.trace import SpanKind, Status, StatusCode

from async_refunds.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_refunds.models import Attempt, CallRecord, CallStart
    from async_refunds.workers import WorkerMetrics

_NAME = "async_refunds"
_Attributes: TypeAlias = dict[str, Any]

# The buckets that the conventions ask for.
# https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
# A call may take much longer than one request.
_CALL_SECONDS = (*_SECONDS, 20.0, 40.0, 80.0)

# Those of a worker that only grow.
_OF_WORKERS = (
    ("takeovers", "{account}", "Accounts taken from workers that had ended."),
    ("fenced", "{operation}", "Operations refused: another worker has the account."),
    ("transactions", "{transaction}", "Statements of the journal carried out."),
    ("results", "{refund}", "Refunds of which something became known."),
    ("requests", "{request}", "Requests to Stripe for those."),
    ("rate_limited", "{request}", "Of these requests, the ones answered with 429."),
)

_GOOD = frozenset({"canceled", "already_canceled", "not_cancelable", "done"})


class CallInstrumentation:
    """Traces and measures the calls of clients; an ``on_call_start`` hook.

    One may be shared by several clients.

    Args:
        tracer_provider: In place of the global one.
        meter_provider: In place of the global one.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, __version__, tracer_provider)
        self._measures = _Measures(
            metrics.get_meter(_NAME, __version__, meter_provider)
        )

    def __call__(self, start: CallStart) -> Callable[[CallRecord], None]:
        """Begin the span of a call; return what ends it."""
        span = self._tracer.start_span(
            f"{_NAME}.{start.method}", kind=SpanKind.CLIENT, attributes=_of_call(start)
        )
        within = context.set_value(
            _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
            value=True,
            context=trace.set_span_in_context(span),
        )
        token = context.attach(within)

        def end(record: CallRecord) -> None:
            context.detach(token)
            if span.is_recording():
                attributes: _Attributes = {}
                if len(record.attempts) == 1:
                    attributes = _of_request(record.attempts[0], record, start)
                else:
                    self._trace_attempts(span, start, record)
                span.set_attributes(attributes | _of_end(record))
                if record.outcome not in _GOOD:
                    span.set_status(Status(StatusCode.ERROR, record.outcome))
            span.end()
            self._measures.record(record, start.base_url)

        return end

    def _trace_attempts(
        self, span: trace.Span, start: CallStart, record: CallRecord
    ) -> None:
        parent = trace.set_span_in_context(span)
        for attempt, resend in _resends(record.attempts):
            attributes = _of_request(attempt, record, start)
            if resend:
                attributes["http.request.resend_count"] = resend
            child = self._tracer.start_span(
                f"{attempt.method} {attributes['url.template']}",
                context=parent,
                kind=SpanKind.CLIENT,
                attributes=attributes,
                start_time=int(attempt.began_at * 1e9),
            )
            if "error.type" in attributes:
                child.set_status(Status(StatusCode.ERROR))
            child.end(int((attempt.began_at + attempt.seconds) * 1e9))


class WorkerInstrumentation:
    """Measures workers of a fleet; an ``on_metrics`` hook of `work`.

    Observed when the metrics are collected: what the worker has told last. What the
    whole fleet has left to do is in the view ``async_refunds.metrics``.

    Args:
        meter_provider: In place of the global one.
    """

    def __init__(self, *, meter_provider: metrics.MeterProvider | None = None) -> None:
        self._told: dict[tuple[str, str], WorkerMetrics] = {}
        meter = metrics.get_meter(_NAME, __version__, meter_provider)
        meter.create_observable_up_down_counter(
            f"{_NAME}.worker.accounts",
            [functools.partial(self._observe, "accounts")],
            "{account}",
            "Accounts whose leases a worker holds.",
        )
        for name, unit, description in _OF_WORKERS:
            meter.create_observable_counter(
                f"{_NAME}.worker.{name}",
                [functools.partial(self._observe, name)],
                unit,
                description,
            )

    def __call__(self, told: WorkerMetrics) -> None:
        """Keep what a worker tells until the metrics are collected."""
        self._told[told.scope, told.worker] = told

    def _observe(
        self, name: str, options: metrics.CallbackOptions
    ) -> Iterator[metrics.Observation]:
        del options
        for told in list(self._told.values()):
            labels = {
                "async_refunds.scope": told.scope,
                "async_refunds.worker": told.worker,
            }
            yield metrics.Observation(getattr(told, name), labels)


class _Measures:
    """The instruments of calls."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._requests = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._calls = meter.create_histogram(
            f"{_NAME}.call.duration",
            "s",
            "Duration of calls, with all their attempts, by outcome.",
            explicit_bucket_boundaries_advisory=_CALL_SECONDS,
        )
        self._retries = meter.create_counter(
            f"{_NAME}.retries", "{retry}", "Retries, by the failure before them."
        )
        self._stops = meter.create_counter(
            f"{_NAME}.retries_stopped",
            "{call}",
            "Calls that did not retry any more, by what stopped them.",
        )
        self._slept = meter.create_histogram(
            f"{_NAME}.retry.wait",
            "s",
            "Time before a retry, by backoff and, in a batch, by its pace.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._waits = meter.create_histogram(
            f"{_NAME}.connection.wait",
            "s",
            "Waits for a connection of the client's own pool, where none was free.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        # By server. Observed when the metrics are collected, not at each call.
        self._tokens: dict[str, tuple[float, _Attributes]] = {}
        meter.create_observable_gauge(
            f"{_NAME}.retry_budget.tokens",
            [self._observe_tokens],
            "{token}",
            "Tokens left for retries.",
        )

    def _observe_tokens(
        self, options: metrics.CallbackOptions
    ) -> Iterator[metrics.Observation]:
        del options
        for tokens, server in list(self._tokens.values()):
            yield metrics.Observation(tokens, server)

    def record(self, record: CallRecord, base_url: str) -> None:
        """Record a call that ended."""
        server = _server(base_url)
        method = {"async_refunds.method": record.method}
        self._calls.record(
            record.seconds, {**method, "async_refunds.outcome": record.outcome}
        )
        if record.tokens is not None:
            self._tokens[base_url] = record.tokens, server
        before: Attempt | None = None
        for attempt, resend in _resends(record.attempts):
            labels = {**server, **_of_attempt(attempt)}
            self._requests.record(attempt.seconds, labels)
            if attempt.waited:
                self._waits.record(attempt.waited, server)
            if resend and before is not None:
                reason = before.failure or str(before.status)
                self._retries.add(1, {**method, "async_refunds.reason": reason})
                self._slept.record(attempt.slept, method)
            if attempt.stopped is not None:
                stop = {"async_refunds.stopped_by": attempt.stopped}
                self._stops.add(1, {**method, **stop})
            before = attempt


def _resends(attempts: tuple[Attempt, ...]) -> Iterator[tuple[Attempt, int]]:
    """Yield each attempt, and how often its request had been sent before.

    A settling read is another request than the cancel before it.
    """
    counts: dict[str, int] = {}
    for attempt in attempts:
        counts[attempt.method] = counts.get(attempt.method, -1) + 1
        yield attempt, counts[attempt.method]


def _of_call(start: CallStart) -> _Attributes:
    found: _Attributes = {}
    if start.refund_id is not None:
        found["stripe.refund.id"] = start.refund_id
    if start.stripe_account is not None:
        found["stripe.account"] = start.stripe_account
    if start.idempotency_key is not None:
        found["stripe.idempotency_key"] = start.idempotency_key
    return found


def _of_attempt(attempt: Attempt) -> _Attributes:
    """Return what a metric and a span have of a request."""
    found: _Attributes = {"http.request.method": attempt.method}
    if attempt.status is not None:
        found["http.response.status_code"] = attempt.status
    if attempt.failure is not None:
        found["error.type"] = attempt.failure
    elif attempt.status is not None and attempt.status >= 400:  # noqa: PLR2004 - an error by HTTP's rules
        found["error.type"] = str(attempt.status)
    return found


def _of_request(attempt: Attempt, record: CallRecord, start: CallStart) -> _Attributes:
    """Return what a span has of a request."""
    found = {
        **_server(start.base_url),
        **_of_attempt(attempt),
        "url.full": start.base_url + attempt.path,
        "url.template": _template(attempt, record.refund_id),
    }
    if attempt.request_id is not None:
        found["stripe.request_id"] = attempt.request_id
    return found


def _of_end(record: CallRecord) -> _Attributes:
    found: _Attributes = {
        "async_refunds.outcome": record.outcome,
        "async_refunds.attempts": len(record.attempts),
    }
    for attempt in record.attempts:
        if attempt.request_id is not None:
            found["stripe.request_id"] = attempt.request_id
        if attempt.stopped is not None:
            found["async_refunds.stopped_by"] = attempt.stopped
    if record.outcome not in _GOOD:
        found["error.type"] = record.error or record.outcome
    return found


@functools.cache
def _server(base_url: str) -> _Attributes:
    parts = urlsplit(base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or "", "server.port": port}


def _template(attempt: Attempt, refund_id: str | None) -> str:
    if refund_id is None:
        return attempt.path
    return attempt.path.replace(refund_id, "{refund}")
