"""Prometheus: give ``note`` to a client as its ``on_call``."""

from prometheus_client import Counter, Gauge, Histogram

from async_refunds import CallRecord

CALLS = Counter("refund_calls", "Calls, by outcome.", ["method", "outcome"])
SECONDS = Histogram("refund_call_seconds", "Duration of calls.", ["method"])
FAILURES = Counter("refund_failures", "Failed attempts.", ["reason", "stopped_by"])
WAITS = Histogram("refund_connection_wait_seconds", "Waits for a connection.")
TOKENS = Gauge("refund_retry_tokens", "What is left of the retry budget.")


def note(call: CallRecord) -> None:
    CALLS.labels(call.method, call.outcome).inc()
    SECONDS.labels(call.method).observe(call.seconds)
    TOKENS.set(call.tokens or 0.0)
    for attempt in call.attempts:
        WAITS.observe(attempt.waited)
        if attempt.failure or (attempt.status or 0) >= 400:
            reason = attempt.failure or str(attempt.status)
            FAILURES.labels(reason, attempt.stopped or "").inc()
