"""What a call tells its surroundings: log records, the caller's hooks, call records.

Nothing here may change what the caller learns about money. So whatever a hook or a
logging handler raises is logged, if that works, and dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .protocol.error_mapping import describe_failure
from .protocol.redaction import escape_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .errors import RefundsError
    from .models import Attempt, CallRecord, CallStart
    from .protocol.classification import Classification
    from .protocol.requests import Request

T = TypeVar("T")

CallEndHook: TypeAlias = "Callable[[CallRecord], object]"
CallStartHook: TypeAlias = "Callable[[CallStart], CallEndHook | None]"
"""Called when a call begins; what it returns is called with the record at its end."""

logger = logging.getLogger("async_refunds")

LOG_VARIABLE = "ASYNC_REFUNDS_LOG"


def set_up_logging() -> None:
    """Log to stderr if ``ASYNC_REFUNDS_LOG`` is ``debug`` or ``info``.

    As ``STRIPE_LOG`` does for Stripe's client.
    """
    level = os.environ.get(LOG_VARIABLE, "").lower()
    if level not in ("debug", "info") or logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())


@contextlib.contextmanager
def _dropping(logged_as: str | None) -> Generator[None]:
    """Drop what the caller's code raises, except what is meant for the process.

    Args:
        logged_as: What the log says of it; ``None`` if it is the logging that raises.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a hook may raise anything
        if logged_as is not None:
            log(logging.ERROR, logged_as, exc_info=True)


def log(
    level: int,
    message: str,
    *values: object,
    extra: dict[str, object] | None = None,
    exc_info: bool = False,
) -> None:
    """Log, whatever the caller's own handlers raise.

    Names that a database or a caller gave begin no line of their own.
    """
    with _dropping(None):
        shown = [escape_controls(v) if isinstance(v, str) else v for v in values]
        logger.log(level, message, *shown, extra=extra, exc_info=exc_info)


def call_hook(name: str, hook: Callable[[T], object], value: T) -> None:
    """Call one of the caller's hooks; log and drop what it raises.

    Except for `KeyboardInterrupt` and `SystemExit`, which are meant for the process.
    """
    with _dropping(f"{name} raised; the call goes on"):
        hook(value)


def call_started(hook: CallStartHook, start: CallStart) -> CallEndHook | None:
    """Call an ``on_call_start``; return what is to be called at the end of the call."""
    ends: list[CallEndHook | None] = [None]

    def begin(start: CallStart) -> None:
        ends[0] = hook(start)

    call_hook("on_call_start", begin, start)
    return ends[0]


def log_attempt(request: Request[Any], attempt: Attempt) -> None:
    """Log one attempt, for debugging."""
    _log_request(
        logging.DEBUG,
        "%s %s: attempt %d: %s in %.3f s",
        (
            request.method,
            request.path,
            attempt.number,
            attempt.failure or attempt.status,
            attempt.seconds,
        ),
        request,
        attempt,
    )


def log_retry(
    request: Request[Any], attempt: Attempt, failed: Classification[Any], pause: float
) -> None:
    """Log that a failed attempt will be retried."""
    _log_request(
        logging.INFO,
        "%s %s: attempt %d failed (%s), next in %.2f s [key %s]",
        (
            request.method,
            request.path,
            attempt.number,
            describe_failure(failed),
            pause,
            request.idempotency_key,
        ),
        request,
        attempt,
    )


def log_unknown(
    request: Request[Any], error: RefundsError | None, attempts: tuple[Attempt, ...]
) -> None:
    """Log that the outcome of a cancel stays unknown; the message has the key."""
    stopped = None if error is None else error.retries_stopped_by
    last = attempts[-1] if attempts else None
    _log_request(logging.WARNING, "%s", (error,), request, last, stopped=stopped)


def log_no_key(error: Exception) -> None:
    """Log that there is no other API key in place of one that was refused."""
    text = "the API key was refused, and there is no other: %r"
    log(logging.WARNING, text, error)


def _log_request(
    level: int,
    text: str,
    values: tuple[object, ...],
    request: Request[Any],
    attempt: Attempt | None,
    *,
    stopped: str | None = None,
) -> None:
    extra: dict[str, object] = {
        "refund_id": request.refund_id or None,
        "stripe_account": request.stripe_account,
        "idempotency_key": request.idempotency_key,
    }
    if attempt is not None:
        extra |= {
            "request_id": attempt.request_id,
            "attempt": attempt.number,
            "failure": attempt.failure,
            "status": attempt.status,
            "seconds": attempt.seconds,
            "stopped": stopped,
        }
    log(level, text, *values, extra=extra)
