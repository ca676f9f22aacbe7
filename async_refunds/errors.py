"""What can go wrong, and whether the refund was canceled.

    RefundsError
      OutcomeUnknownError            the refund may be canceled: ask with the same key
      APIConnectionError             no connection: nothing was sent
        APITimeoutError
      APIStatusError                 Stripe, or something before it, said no
        InvalidRequestError          400 and its like
          RefundNotCancelableError   the refund's state forbids it
          RefundNotFoundError        404: no such refund, or one of the other mode
        AuthenticationError          401
        PermissionDeniedError        403
        IdempotencyError             the key was used for another request
        RateLimitError               429
        APIError                     5xx, or an unreadable answer, to a read
      JournalError                   from ``cancel_many``: its journal is of no use

From ``cancel``, every one but `OutcomeUnknownError` means that this call canceled
nothing. All pickle and copy, and none holds the API key or an e-mail address: what
Stripe wrote is scrubbed before it gets here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from .models import Attempt, Refund


class CallDetails(TypedDict, total=False):
    """What every error knows of its call."""

    idempotency_key: str | None
    attempts: tuple[Attempt, ...]


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

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception pickles as ``cls(*args)``, which knows no keyword arguments.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    cls: type[RefundsError], args: tuple[str, ...], state: dict[str, Any]
) -> RefundsError:
    error = cls.__new__(cls)
    error.args = args  # not by __new__, which OSError overrides to drop them
    error.__dict__.update(state)
    return error


class OutcomeUnknownError(RefundsError):
    """The refund may or may not be canceled, and nobody can tell now.

    Raised by ``cancel`` only: a request was lost on the way, or Stripe answered that
    it does not know, and a read of the refund did not settle it. Call ``cancel`` again
    with ``idempotency_key`` within 24 hours: if the lost request did land, the answer
    is its answer, and nothing is done twice.
    """

    idempotency_key: str

    def __init__(
        self, message: str, *, refund: Refund | None, **details: Unpack[CallDetails]
    ) -> None:
        super().__init__(message, **details)
        self.refund = refund
        """The refund as last seen, or ``None`` if it could not be read."""


class APIConnectionError(RefundsError, ConnectionError):
    """No connection came about: nothing was sent by the last attempt.

    What the attempts before it sent, if anything, Stripe had refused. For a read, where
    nothing is at stake, also an answer that never came.
    """


class APITimeoutError(APIConnectionError, TimeoutError):
    """The time ran out before there was a connection (a read: before the answer)."""


class APIStatusError(RefundsError):
    """An answer that is a refusal, in Stripe's terms.

    https://docs.stripe.com/api/errors
    """

    def __init__(self, message: str, **details: Unpack[StatusDetails]) -> None:
        call = CallDetails(
            idempotency_key=details.get("idempotency_key"),
            attempts=details.get("attempts", ()),
        )
        super().__init__(message, **call)
        self.status_code = details.get("status_code", 0)
        self.type = details.get("type")
        self.code = details.get("code")
        self.param = details.get("param")
        self.request_id = details.get("request_id")


class InvalidRequestError(APIStatusError):
    """Stripe cannot do what was asked, now or ever: the request has to change."""


class RefundNotCancelableError(InvalidRequestError):
    """The refund's state forbids a cancel: only ``requires_action`` allows it."""

    def __init__(
        self, message: str, *, refund: Refund, **details: Unpack[StatusDetails]
    ) -> None:
        super().__init__(message, **details)
        self.refund = refund
        """The refund as the read after the refusal found it."""


class RefundNotFoundError(InvalidRequestError):
    """No such refund for this key: a wrong id, account, or mode (test or live)."""


class AuthenticationError(APIStatusError):
    """Stripe does not know the API key, or it has expired."""


class PermissionDeniedError(APIStatusError):
    """The API key may not do this: a restricted key, or an account out of reach."""


class IdempotencyError(APIStatusError):
    """The idempotency key stands for another request."""


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

    Nothing more is sent then. What was under way has its key on disk, and is asked
    again with it when the batch is resumed.
    """
