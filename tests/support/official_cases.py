"""What Stripe's official clients are asked, and what they must make of the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from async_refunds.emulator import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_refunds.emulator import Emulator

OFFICIAL_KEY = "sk_test_51Official"


class ErrorCase(NamedTuple):
    """A call that fails.

    Args:
        prepare: What is done to the emulator first.
        call: A method of the refunds service, and its arguments.
        python: The name of the exception in the Python client.
        node: The same in the Node client.
        status: The HTTP status.
        code: The error's code.
        param: The error's param.
    """

    prepare: Callable[[Emulator], object]
    call: tuple[Any, ...]
    python: str
    node: str
    status: int
    code: str | None = None
    param: str | None = None


_CANCEL = ("cancel", "re_1")
_BAD = ("InvalidRequestError", "StripeInvalidRequestError")
_API = ("APIError", "StripeAPIError")
_AUTHENTICATION = ("AuthenticationError", "StripeAuthenticationError")
_PERMISSION = ("PermissionError", "StripePermissionError")
_RATE = ("RateLimitError", "StripeRateLimitError")


def _nothing(_: Emulator) -> None:
    pass


def _fault(name: str) -> Callable[[Emulator], None]:
    return lambda emulator: emulator.faults.script(name)


def _add(status: str) -> Callable[[Emulator], str]:
    return lambda emulator: emulator.add_refund(refund_id="re_1", status=status)


def _restrict(emulator: Emulator) -> None:
    emulator.restrict_key(OFFICIAL_KEY, allow=["retrieve"])


def _expire_key(emulator: Emulator) -> None:
    emulator.expire_key(OFFICIAL_KEY)


def _limit(emulator: Emulator) -> None:
    emulator.limits = Limits(endpoint_concurrency=0)


ERRORS: Mapping[str, ErrorCase] = {
    "wrong state": ErrorCase(_add("succeeded"), _CANCEL, *_BAD, 400),
    "unknown refund": ErrorCase(
        _nothing, _CANCEL, *_BAD, 404, "resource_missing", "refund"
    ),
    "unknown refund to read": ErrorCase(
        _nothing, ("retrieve", "re_1"), *_BAD, 404, "resource_missing", "id"
    ),
    "expired key": ErrorCase(
        _expire_key,
        *(_CANCEL, *_AUTHENTICATION, 401, "api_key_expired"),
    ),
    "restricted key": ErrorCase(_restrict, _CANCEL, *_PERMISSION, 403),
    "unknown parameter": ErrorCase(
        _add("requires_action"),
        *((*_CANCEL, {"reason": "x"}), *_BAD, 400, "parameter_unknown", "reason"),
    ),
    "bad parameter": ErrorCase(
        _nothing,
        *(("list", {"limit": 1000}), *_BAD, 400, "parameter_invalid_integer", "limit"),
    ),
    "limiter": ErrorCase(_limit, _CANCEL, *_RATE, 429, "rate_limit"),
    "lock": ErrorCase(_fault("lock_429"), _CANCEL, *_RATE, 429, "lock_timeout"),
    "key in use": ErrorCase(
        _fault("in_use_409"), _CANCEL, *_API, 409, "idempotency_key_in_use"
    ),
    "dependency": ErrorCase(_fault("424"), _CANCEL, *_API, 424),
    "server": ErrorCase(_fault("unsaved_500"), _CANCEL, *_API, 500),
    "unavailable": ErrorCase(_fault("503"), _CANCEL, *_API, 503),
}

# How many requests a client sends that may retry.
REQUESTS_BY_FAULT: Mapping[str, int] = {
    "in_use_409": 2,
    "503": 2,
    "unsaved_500": 2,
    # Stripe advises it, since the lock will be free again.
    "lock_429": 2,
    # Stripe leaves it to the caller, who knows how much they send.
    "rate_429": 1,
    # Saved: a retry would get it again.
    "saved_500": 1,
}
