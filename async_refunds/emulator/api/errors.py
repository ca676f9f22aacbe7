"""Stripe's errors, in Stripe's envelope and Stripe's words.

https://docs.stripe.com/api/errors
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPPORT = "we can help at https://support.stripe.com/."


@dataclass(eq=False)
class StripeError(Exception):
    """An answer other than 200.

    Args:
        status: The HTTP status.
        message: The envelope's ``message``.
        kind: The envelope's ``type``.
        code: The envelope's ``code``, which brings a ``doc_url``.
        param: The envelope's ``param``.
        headers: Headers that only this answer carries.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def body(self, request_log_url: str | None = None) -> bytes:
        """Return the envelope as JSON; fields without a value are left out."""
        page = self.code and self.code.replace("_", "-")
        fields = {
            "code": self.code,
            "doc_url": page and f"https://docs.stripe.com/error-codes/{page}",
            "message": _encodable(self.message),
            "param": self.param and _encodable(self.param),
            "request_log_url": request_log_url,
            "type": self.kind,
        }
        error = {name: value for name, value in fields.items() if value is not None}
        return msgspec.json.encode({"error": error})


def _encodable(text: str) -> str:
    # Headers and paths that are not UTF-8 arrive with lone surrogates in them.
    return text.encode("utf-8", "backslashreplace").decode()


# Neither code nor param, and Stripe's own words speak of something else:
# https://github.com/stripe/stripe-node/issues/1771
not_cancelable = partial(
    StripeError,
    400,
    "Charges must be refunded using the /v1/charges/{CHARGE_ID}/refunds endpoint.",
)

not_a_form = partial(
    StripeError,
    400,
    "Invalid request (check that your POST content type is"
    f" application/x-www-form-urlencoded). If you have any questions, {SUPPORT}",
)

too_large = partial(
    StripeError, 413, f"The request is too large. If you need more, {SUPPORT}"
)

# https://docs.stripe.com/rate-limits#object-lock-timeouts. It carries no limiter's
# header. The official clients do not retry a 429 by its status; they say that the API
# advises them to "in cases of lock timeouts"
# (`stripe._http_client.HTTPClient._should_retry`).
lock_timeout = partial(
    StripeError,
    429,
    "This object cannot be accessed right now because another API request or Stripe"
    " process is currently accessing it. If you see this error intermittently, retry"
    " the request. If you see this error frequently and are making multiple concurrent"
    " requests to a single object, make your requests serially or at a lower rate.",
    code="lock_timeout",
    headers={"Stripe-Should-Retry": "true"},
)

dependency_failed = partial(
    StripeError,
    424,
    "The request couldn't be completed due to a failure in a dependency external to"
    " Stripe.",
    kind="api_error",
)


def unrecognized_url(method: str, path: str) -> StripeError:
    """404: no such endpoint."""
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


def no_such(
    kind: str, name: str, *, param: str, status: int = 400, hint: str = ""
) -> StripeError:
    """400 (404 for the object in the path): no such object in this account and mode."""
    message = f"No such {kind}: '{name}'{hint}"
    return StripeError(status, message, code="resource_missing", param=param)


def rate_limited(reason: str) -> StripeError:
    """429: a limiter refuses the request. https://docs.stripe.com/rate-limits."""
    message = (
        "Request rate limit exceeded. You can learn more about rate limits here"
        " https://stripe.com/docs/rate-limits."
    )
    headers = {"Stripe-Rate-Limited-Reason": reason}
    return StripeError(429, message, code="rate_limit", headers=headers)


def key_in_use(key: str) -> StripeError:
    """409: another request with this key is in flight."""
    return StripeError(
        409,
        "There is currently another in-progress request using this Idempotent Key"
        " (that probably means you submitted twice, and the other request is still"
        f" going through): {key}. Please try again later.",
        code="idempotency_key_in_use",
    )


def key_reused(key: str, paths: tuple[str, str] | None = None) -> StripeError:
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


def server_error(status: int) -> StripeError:
    """500, 503: Stripe itself fails."""
    return StripeError(
        status,
        "Sorry, there was an error while talking to one of our backends. If you have"
        f" any questions, {SUPPORT}",
        kind="api_error",
    )
