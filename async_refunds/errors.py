"""What can go wrong, and whether the refund was canceled.

    RefundsError
      OutcomeUnknownError            the refund may be canceled: ask with the same key
      APIConnectionError             no connection: nothing was sent
        APITimeoutError
      APIStatusError                 Stripe, or a server in front of it, said no
        InvalidRequestError          400 and similar
          RefundNotCancelableError   the refund's state forbids it
          RefundNotFoundError        404: no such refund, or one of the other mode
        AuthenticationError          401
        PermissionDeniedError        403
        IdempotencyError             the key was used for another request
        RateLimitError               429
        APIError                     a 5xx or an unreadable answer to a read
      JournalError                   from ``cancel_many``: its journal cannot be used
      WebhookError                   from ``refund_event``: no refund event
        SignatureVerificationError   not signed by Stripe, or too long ago

From ``cancel``, every one except `OutcomeUnknownError` means that this call canceled
nothing. All of them pickle and copy, ``type(error)(*error.args)`` rebuilds one with its
message, and none holds the API key or an e-mail address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from .models import Attempt, Refund


class CallDetails(TypedDict, total=False):
    """What every error knows about its call."""

    idempotency_key: str | None
    attempts: tuple[Attempt, ...]
    retries_stopped_by: str | None


class StatusDetails(CallDetails, total=False):
    """What Stripe's error object and its headers say."""

    status_code: int
    type: str | None
    code: str | None
    param: str | None
    request_id: str | None


class RefundsError(Exception):
    """Base of all errors of this package."""

    def __init__(self, message: str, **details: Unpack[CallDetails]) -> None:
        super().__init__(message)
        self.message = message
        self.idempotency_key = details.get("idempotency_key")
        """The key that a cancel sent; ``None`` for a read."""
        self.attempts: tuple[Attempt, ...] = details.get("attempts", ())
        """Every request of the call, oldest first."""
        self.retries_stopped_by = details.get("retries_stopped_by")
        """Why a failure that may be retried was not: ``"count"`` (the policy's
        ``max_retries``), ``"deadline"`` or ``"budget"``. ``None`` if the last failure
        is final."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception pickles as ``cls(*args)``, which loses keyword arguments.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    cls: type[RefundsError], args: tuple[str, ...], state: dict[str, Any]
) -> RefundsError:
    error = cls.__new__(cls)
    error.args = args  # not through __new__: OSError overrides it and drops them
    error.retries_stopped_by = None  # missing in pickles of version 0.1.0
    error.__dict__.update(state)
    return error


class OutcomeUnknownError(RefundsError):
    """The refund may or may not be canceled, and a read did not settle it.

    Raised by ``cancel`` only: an answer was lost, or Stripe answered that it does not
    know. Call ``cancel`` again with ``idempotency_key`` within 24 hours: if the lost
    request was executed, Stripe repeats its answer, and nothing is done twice. The
    message contains the key.
    """

    idempotency_key: str

    def __init__(
        self,
        message: str,
        *,
        refund: Refund | None = None,
        **details: Unpack[CallDetails],
    ) -> None:
        super().__init__(message, **details)
        self.refund = refund
        """The refund as last seen, or ``None`` if it could not be read."""


class APIConnectionError(RefundsError, ConnectionError):
    """There was no connection, so the last attempt sent nothing.

    Stripe refused whatever earlier attempts sent. From a read, which puts nothing at
    risk, also an answer that never arrived.
    """


class APITimeoutError(APIConnectionError, TimeoutError):
    """The time ran out before there was a connection (a read: before the answer)."""


class APIStatusError(RefundsError):
    """Stripe, or a server in front of it, refused or failed.

    ``status_code`` is the answer's. ``type``, ``code`` and ``param`` are those of
    Stripe's error object (https://docs.stripe.com/api/errors), and ``request_id`` is
    ``req_...``; each is ``None`` where the answer had none.
    """

    def __init__(self, message: str, **details: Unpack[StatusDetails]) -> None:
        super().__init__(
            message,
            idempotency_key=details.get("idempotency_key"),
            attempts=details.get("attempts", ()),
            retries_stopped_by=details.get("retries_stopped_by"),
        )
        self.status_code = details.get("status_code", 0)
        self.type = details.get("type")
        self.code = details.get("code")
        self.param = details.get("param")
        self.request_id = details.get("request_id")


class InvalidRequestError(APIStatusError):
    """Stripe cannot do this, now or later: the request has to change."""


class RefundNotCancelableError(InvalidRequestError):
    """The refund's state forbids a cancel: only ``requires_action`` allows it."""

    refund: Refund
    """The refund as a read after the refusal found it."""

    def __init__(
        self,
        message: str,
        *,
        refund: Refund | None = None,
        **details: Unpack[StatusDetails],
    ) -> None:
        super().__init__(message, **details)
        if refund is not None:
            self.refund = refund


class RefundNotFoundError(InvalidRequestError):
    """No such refund for this key: a wrong id, account, or mode (test or live)."""


class AuthenticationError(APIStatusError):
    """Stripe does not know the API key, or it has expired."""


class PermissionDeniedError(APIStatusError):
    """The API key may not do this: a restricted key, or an account out of reach."""


class IdempotencyError(APIStatusError):
    """The idempotency key was used for another request."""


class RateLimitError(APIStatusError):
    """Too many requests, or another request holds the refund's charge.

    ``code`` is ``lock_timeout`` in the second case.
    """


class APIError(APIStatusError):
    """Stripe failed, or its answer to a read could not be read.

    Never from ``cancel``, where the same is an `OutcomeUnknownError`.
    """


class JournalError(RefundsError):
    """The journal of a batch cannot be used, or can no longer be written.

    The batch sends nothing more. The keys of what was under way are on disk, and a
    resumed run sends them again.
    """


class WebhookError(RefundsError):
    """A webhook that Stripe signed is no event of a refund.

    An endpoint that Stripe sends other events to answers 200 to it: another answer
    would make Stripe send the same again for days.
    """

    def __init__(
        self,
        message: str,
        *,
        event_type: str | None = None,
        **details: Unpack[CallDetails],
    ) -> None:
        super().__init__(message, **details)
        self.event_type = event_type
        """Such as ``"charge.refunded"``; ``None`` if it is no event at all."""


class SignatureVerificationError(WebhookError):
    """The ``Stripe-Signature`` of a webhook proves nothing: answer 400.

    The secret is another endpoint's, the body was changed on its way (parsed and
    written again, for example), the time has passed, or Stripe did not send it.
    """
