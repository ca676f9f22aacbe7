"""What a call tells its client's hooks and the log when it begins and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_refunds import telemetry
from async_refunds.models import CallRecord, CallStart
from async_refunds.protocol.outcome import conclude_interrupted

if TYPE_CHECKING:
    from async_refunds.errors import RefundsError
    from async_refunds.protocol.requests import Request
    from async_refunds.telemetry import CallStartHook

    from .attempts import CallAttempts


def report_start(
    call: CallAttempts, request: Request[Any], hook: CallStartHook
) -> None:
    """Tell the outside that a call begins."""
    call.on_end = telemetry.call_started(
        hook,
        CallStart(
            method=request.endpoint,
            base_url=call.context.session.origin,
            refund_id=request.refund_id or None,
            stripe_account=request.stripe_account,
            idempotency_key=request.idempotency_key,
        ),
    )


def report_end(
    call: CallAttempts, request: Request[Any], outcome: str, error: RefundsError | None
) -> None:
    """Tell the outside that a call is over; raise nothing."""
    try:
        _report_end(call, request, outcome, error)
    except Exception:  # noqa: BLE001 - such as a `RecursionError` on a full stack
        return


def _report_end(
    call: CallAttempts, request: Request[Any], outcome: str, error: RefundsError | None
) -> None:
    in_progress, on_call = call.context.in_progress, call.context.on_call
    if in_progress.idle is not None and not in_progress.calls:
        in_progress.idle.set()
    if outcome == "unknown":
        telemetry.log_unknown(request, error, call.attempts)
    elif outcome == "interrupted" and call.may_have_canceled:
        why = "its task was cancelled"
        unknown = conclude_interrupted(request, call.attempts, why).error
        telemetry.log_unknown(request, unknown, call.attempts)
    if on_call is None and call.on_end is None:
        return
    budget = call.context.budget
    record = CallRecord(
        method=request.endpoint,
        refund_id=request.refund_id or None,
        stripe_account=request.stripe_account,
        idempotency_key=request.idempotency_key,
        outcome=outcome,
        error=None if error is None else type(error).__name__,
        seconds=call.clock() - call.began,
        attempts=call.attempts,
        tokens=None if budget is None else budget.tokens,
    )
    if on_call is not None:
        telemetry.call_hook("on_call", on_call, record)
    if call.on_end is not None:
        telemetry.call_hook("the end of on_call_start", call.on_end, record)
