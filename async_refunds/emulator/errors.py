"""Stripe's errors, in Stripe's envelope and Stripe's words.

https://docs.stripe.com/api/errors
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPPORT = "we can help at https://support.stripe.com/."


class StripeError(Exception):
    """An answer other than 200.

    Args:
        status: The HTTP status.
        message: What Stripe tells people.
        kind: The envelope's ``type``.
        code: The envelope's ``code``, with which goes a ``doc_url``.
        param: The envelope's ``param``.
        headers: What this answer carries besides every answer's headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers: Mapping[str, str] = headers or {}

    def body(self, request_log_url: str | None = None) -> bytes:
        """Return the envelope as JSON; fields with no value are left out."""
        error: dict[str, str] = {}
        if self.code is not None:
            error["code"] = self.code
            page = self.code.replace("_", "-")
            error["doc_url"] = f"https://docs.stripe.com/error-codes/{page}"
        error["message"] = _legible(self.message)
        if self.param is not None:
            error["param"] = _legible(self.param)
        if request_log_url is not None:
            error["request_log_url"] = request_log_url
        error["type"] = self.kind
        return msgspec.json.encode({"error": error})


def _legible(text: str) -> str:
    # Headers and paths that are no UTF-8 arrive with lone surrogates in them.
    return text.encode("utf-8", "backslashreplace").decode()


def unrecognized_url(method: str, path: str) -> StripeError:
    """404: there is no such endpoint."""
    trailing = (
        " If you are trying to list objects, remove the trailing slash. If you are"
        " trying to retrieve an object, make sure you passed a valid (non-empty)"
        " identifier in your code."
        if path.endswith("/")
        else ""
    )
    return StripeError(
        404,
        f"Unrecognized request URL ({method}: {path}).{trailing} Please see"
        f" https://stripe.com/docs or {SUPPORT}",
    )


def no_such(kind: str, name: str, *, status: int, param: str, hint: str) -> StripeError:
    """404 (400 for a parameter): no such object in this account and mode."""
    return StripeError(
        status,
        f"No such {kind}: '{name}'{hint}",
        code="resource_missing",
        param=param,
    )


def not_cancelable() -> StripeError:
    """400: the refund is in a state that cannot be canceled.

    No code and no param, and Stripe's own words speak of something else:
    https://github.com/stripe/stripe-node/issues/1771
    """
    return StripeError(
        400,
        "Charges must be refunded using the /v1/charges/{CHARGE_ID}/refunds endpoint.",
    )


def not_a_form() -> StripeError:
    """400: the body is something else than a form."""
    return StripeError(
        400,
        "Invalid request (check that your POST content type is"
        " application/x-www-form-urlencoded). If you have any questions,"
        f" {SUPPORT}",
    )


def too_large() -> StripeError:
    """413: the body is longer than any form of these endpoints."""
    return StripeError(413, f"The request is too large. If you need more, {SUPPORT}")


def rate_limited(reason: str) -> StripeError:
    """429: a limiter's. https://docs.stripe.com/rate-limits."""
    return StripeError(
        429,
        "Request rate limit exceeded. You can learn more about rate limits here"
        " https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        headers={"Stripe-Rate-Limited-Reason": reason},
    )


def lock_timeout() -> StripeError:
    """429 without a limiter's header: the object is locked.

    https://docs.stripe.com/rate-limits#object-lock-timeouts. The official clients
    retry no 429 by its status; that "in cases of lock timeouts" the API advises them
    to is said in `stripe._http_client.HTTPClient._should_retry`.
    """
    return StripeError(
        429,
        "This object cannot be accessed right now because another API request or"
        " Stripe process is currently accessing it. If you see this error"
        " intermittently, retry the request. If you see this error frequently and are"
        " making multiple concurrent requests to a single object, make your requests"
        " serially or at a lower rate.",
        code="lock_timeout",
        headers={"Stripe-Should-Retry": "true"},
    )


def key_in_use(key: str) -> StripeError:
    """409: a request with this key is under way."""
    return StripeError(
        409,
        "There is currently another in-progress request using this Idempotent Key"
        " (that probably means you submitted twice, and the other request is still"
        f" going through): {key}. Please try again later.",
        code="idempotency_key_in_use",
    )


def key_used_otherwise(key: str, paths: tuple[str, str] | None) -> StripeError:
    """400: the key was used with other parameters, or for another path."""
    what = "with the same parameters they were first used with"
    if paths is not None:
        what = (
            "for the same endpoint they were first used for"
            f" ('{paths[0]}' vs '{paths[1]}')"
        )
    return StripeError(
        400,
        f"Keys for idempotent requests can only be used {what}. Try using a key other"
        f" than '{key}' if you meant to execute a different request.",
        kind="idempotency_error",
    )


def key_too_long(longest: int) -> StripeError:
    """400: an idempotency key has a greatest length."""
    return StripeError(
        400, f"Idempotency keys can be at most {longest} characters long."
    )


def invalid_version(version: str) -> StripeError:
    """400: ``Stripe-Version`` is no version label."""
    return StripeError(400, f"Invalid Stripe API version: {version}")


def not_in_livemode() -> StripeError:
    """400: a test helper was asked for with a live key.

    The words are those of https://docs.stripe.com/api/test_clocks.
    """
    return StripeError(
        400,
        "This endpoint is only available in testmode. Try using your test keys"
        " instead.",
    )


def not_expirable(status: str) -> StripeError:
    """400: only a refund that waits for the customer can expire."""
    return StripeError(
        400,
        f"This refund has a status of {status}; only a refund with a status of"
        " requires_action can be expired.",
    )


def server_error(status: int, *, saved: bool = False) -> StripeError:
    """500, 503: Stripe's own trouble.

    Args:
        status: The HTTP status.
        saved: It is kept under an idempotency key, so that to retry is of no use.
            The official clients "expect the stripe-should-retry header to be false in
            most cases when a 500 is returned, since our idempotency framework would
            typically replay it" (`stripe._http_client.HTTPClient._should_retry`).
    """
    return StripeError(
        status,
        "Sorry, there was an error while talking to one of our backends. If you have"
        f" any questions, {SUPPORT}",
        kind="api_error",
        headers={"Stripe-Should-Retry": "false"} if saved else None,
    )


def dependency_failed() -> StripeError:
    """424: something Stripe depends on did not work out."""
    return StripeError(
        424,
        "The request couldn't be completed due to a failure in a dependency external"
        " to Stripe.",
        kind="api_error",
    )
