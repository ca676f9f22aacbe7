"""Cancel Stripe refunds from asyncio, and know what happened.

async with RefundsClient(api_key) as refunds:
    refund = await refunds.cancel("re_1Nispe2eZvKYlo2Cd31jOCgZ")
"""

from typing import TYPE_CHECKING

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
from .version import __version__
from .webhooks import RefundEvent, refund_event

if TYPE_CHECKING:
    from .batch import Batch, Progress, cancel_many
    from .journal import Journal, JournalReader, Run, SqliteJournal
else:
    # A service that cancels one refund at a time need not load what batches stand on,
    # SQLite among it: a tenth of the import (``benchmarks/bench_import.py``).
    _BATCH = ("Batch", "Progress", "cancel_many")
    _JOURNAL = ("Journal", "JournalReader", "Run", "SqliteJournal")
    _LAZY = dict.fromkeys(_BATCH, "batch") | dict.fromkeys(_JOURNAL, "journal")

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            from importlib import import_module  # noqa: PLC0415 - for that reason

            return getattr(import_module(f".{_LAZY[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})


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
