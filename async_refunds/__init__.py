"""Cancel Stripe refunds from asyncio, and know what happened.

async with RefundsClient(api_key) as refunds:
    refund = await refunds.cancel("re_1Nispe2eZvKYlo2Cd31jOCgZ")
"""

from .version import __version__

TYPE_CHECKING = False  # as type checkers know it, without the import of `typing`
if TYPE_CHECKING:
    from .batch import Batch, Progress, cancel_many
    from .client import STRIPE_VERSION, RefundsClient
    from .errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        IdempotencyError,
        InvalidRequestError,
        JournalError,
        OutcomeUnknownError,
        PermissionDeniedError,
        RateLimitError,
        RefundNotCancelableError,
        RefundNotFoundError,
        RefundsError,
        SignatureVerificationError,
        WebhookError,
    )
    from .journal import Journal, JournalReader, Run, SqliteJournal
    from .models import (
        Attempt,
        BankDestination,
        CallRecord,
        CallStart,
        CardDestination,
        CryptoDestination,
        DestinationDetails,
        DisplayDetails,
        EmailSent,
        LastResponse,
        NetworkDestination,
        NextAction,
        PaypalDestination,
        PlainDestination,
        PresentmentDetails,
        Refund,
        id_of,
    )
    from .protocol.requests import CreatedRange
    from .results import CancelOutcome, CancelRequest, CancelResult
    from .retry import RetryBudget, RetryPolicy
    from .webhooks import RefundEvent, refund_event
else:
    # Each name is imported when it is first asked for. A receiver of webhooks loads no
    # aiohttp and a service that cancels one refund at a time no SQLite
    # (``benchmarks/bench_import.py``), and Ctrl-C finds the command line's own handler
    # in place before the long imports begin.
    _NAMES = {
        "batch": ("Batch", "Progress", "cancel_many"),
        "client": ("STRIPE_VERSION", "RefundsClient"),
        "errors": (
            *("APIConnectionError", "APIError", "APIStatusError", "APITimeoutError"),
            *("AuthenticationError", "IdempotencyError", "InvalidRequestError"),
            *("JournalError", "OutcomeUnknownError", "PermissionDeniedError"),
            *("RateLimitError", "RefundNotCancelableError", "RefundNotFoundError"),
            *("RefundsError", "SignatureVerificationError", "WebhookError"),
        ),
        "journal": ("Journal", "JournalReader", "Run", "SqliteJournal"),
        "models": (
            *("Attempt", "BankDestination", "CallRecord", "CallStart"),
            *("CardDestination", "CryptoDestination", "DestinationDetails"),
            *("DisplayDetails", "EmailSent", "LastResponse", "NetworkDestination"),
            *("NextAction", "PaypalDestination", "PlainDestination"),
            *("PresentmentDetails", "Refund", "id_of"),
        ),
        "protocol.requests": ("CreatedRange",),
        "results": ("CancelOutcome", "CancelRequest", "CancelResult"),
        "retry": ("RetryBudget", "RetryPolicy"),
        "webhooks": ("RefundEvent", "refund_event"),
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> object:
        from importlib import import_module  # noqa: PLC0415 - for that reason

        if name in _MODULES:
            found = getattr(import_module(f".{_MODULES[name]}", __name__), name)
            globals()[name] = found
            return found
        if name in _NAMES:
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Attempt",
    "AuthenticationError",
    "BankDestination",
    "Batch",
    "CallRecord",
    "CallStart",
    "CancelOutcome",
    "CancelRequest",
    "CancelResult",
    "CardDestination",
    "CreatedRange",
    "CryptoDestination",
    "DestinationDetails",
    "DisplayDetails",
    "EmailSent",
    "IdempotencyError",
    "InvalidRequestError",
    "Journal",
    "JournalError",
    "JournalReader",
    "LastResponse",
    "NetworkDestination",
    "NextAction",
    "OutcomeUnknownError",
    "PaypalDestination",
    "PermissionDeniedError",
    "PlainDestination",
    "PresentmentDetails",
    "Progress",
    "RateLimitError",
    "Refund",
    "RefundEvent",
    "RefundNotCancelableError",
    "RefundNotFoundError",
    "RefundsClient",
    "RefundsError",
    "RetryBudget",
    "RetryPolicy",
    "Run",
    "STRIPE_VERSION",
    "SignatureVerificationError",
    "SqliteJournal",
    "WebhookError",
    "__version__",
    "cancel_many",
    "id_of",
    "refund_event",
]
