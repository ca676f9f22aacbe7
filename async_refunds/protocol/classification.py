"""What a reply proves, and whether the same request may be sent again.

The table of https://docs.stripe.com/error-low-level: an idempotency key makes a retry
safe, and only an answer that Stripe gave without executing the request proves a no.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from async_refunds.models import Refund

from . import validation
from .decoding import RefundPage, decode_or_none
from .redaction import excerpt
from .requests import (
    IDEMPOTENCY_KEY,
    REPLAYED,
    REQUEST_ID,
    Cause,
    Response,
    TransportFailure,
    next_page,
)

if TYPE_CHECKING:
    from .requests import Reply, Request

T = TypeVar("T", covariant=True)  # noqa: PLC0105 - one letter is the field's habit

# The next attempt would meet the same certificate, proxy, closed session or permit.
_FINAL = frozenset(
    {
        Cause.CERTIFICATE,
        Cause.CLOSED,
        Cause.PROXY_AUTHENTICATION,
        Cause.NOT_PERMITTED,
    }
)

# 408: a proxy gave up on a request that Stripe may have begun to execute.
# 409: another request with the same idempotency key is in progress.
# 424: a service that Stripe depends on failed, perhaps after it had acted.
_AMBIGUOUS_STATUSES = frozenset({408, 409, 424})


class Outcome(enum.Enum):
    """What a reply says about the request that it answers."""

    DONE = "done"
    """The request was executed: a cancel has canceled."""
    NOT_SENT = "not sent"
    REFUSED = "refused"
    """Stripe answered no: a cancel has canceled nothing."""
    AMBIGUOUS = "ambiguous"
    """A cancel may have canceled."""


class Proof(enum.Enum):
    """How well a refusal is known to answer this request, and no other one."""

    KEY = "key"
    """It repeats the idempotency key; or it is no refusal of a cancel."""
    TWICE = "twice"
    """The same came twice in a row, the second time on a connection of its own if
    the session is ours, and if it is no limit."""
    NONE = "none"
    """It came once: a late answer to another request on the connection looks alike."""


class Limit(enum.Enum):
    """What a 429 complains about."""

    RATE = "rate"
    """Too many requests per second."""
    CONCURRENCY = "concurrency"
    """Too many requests at once."""
    LOCK = "lock"
    """Another request holds the object, such as a second refund of one charge."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """The fields of Stripe's error object that an error carries, each an `excerpt`.

    All are ``None`` where the body has no error object.
    https://docs.stripe.com/api/errors
    """

    type: str | None = None
    code: str | None = None
    param: str | None = None
    message: str | None = None


class Classification(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """What is known after a reply, and whether the same request may be sent again."""

    reply: Reply
    outcome: Outcome
    retry: bool
    value: T | None = None
    """The decoded body of a successful answer."""
    envelope: Envelope = Envelope()
    """Stripe's error object."""
    proof: Proof = Proof.KEY
    """That a refusal answers this request; see `classify`."""

    @property
    def was_sent(self) -> bool:
        """Whether any byte of the request may have gone out."""
        return not isinstance(self.reply, TransportFailure) or self.reply.sent

    @property
    def timed_out(self) -> bool:
        """Whether the attempt ran out of time."""
        return isinstance(self.reply, TransportFailure) and self.reply.cause in (
            Cause.TIMEOUT,
            Cause.CONNECT_TIMEOUT,
        )

    @property
    def limit(self) -> Limit | None:
        """What a 429 complains about; ``None`` for any other reply.

        A limiter gives its reason in a header (https://docs.stripe.com/rate-limits), a
        lock gives a code (https://docs.stripe.com/error-codes#lock-timeout). Anything
        else, such as a proxy's own 429, counts as a rate limit, the most common kind.
        """
        reply = self.reply
        if isinstance(reply, TransportFailure) or reply.status != 429:  # noqa: PLR2004 - Too Many Requests
            return None
        reason = _limit_reason(reply)
        if reason is None and self.envelope.code == "lock_timeout":
            return Limit.LOCK
        if reason is not None and reason.endswith("-concurrency"):
            return Limit.CONCURRENCY
        return Limit.RATE

    @property
    def limits_account(self) -> bool:
        """Whether a 429 comes from a limit of the account over all its endpoints."""
        reply = self.reply
        reason = None if isinstance(reply, TransportFailure) else _limit_reason(reply)
        return reason is not None and reason.startswith("global-")

    @property
    def is_unauthorized(self) -> bool:
        """Whether Stripe refused the API key itself."""
        return (
            self.outcome is Outcome.REFUSED
            and isinstance(self.reply, Response)
            and self.reply.status == 401  # noqa: PLR2004 - Unauthorized
        )

    @property
    def is_first_answer(self) -> bool:
        """Whether Stripe refuses everything that comes with this key, as it did first.

        It keeps its first answer for the key, but for a limit and a refused API key
        (https://docs.stripe.com/api/idempotent_requests). It keeps none for parameters
        that are wrong, which they are each time.
        """
        return (
            self.outcome is Outcome.REFUSED
            and self.proof is Proof.KEY
            and self.limit is None
            and not self.is_unauthorized
        )

    @property
    def is_missing(self) -> bool:
        """Whether Stripe said that there is no such refund in this account and mode."""
        return (
            self.outcome is Outcome.REFUSED
            and isinstance(self.reply, Response)
            and self.reply.status == 404  # noqa: PLR2004 - Not Found
            and self.envelope.code == "resource_missing"
        )

    @property
    def is_state_refusal(self) -> bool:
        """Whether a refused cancel may be due to the refund's state.

        Stripe gives such a 400 no code and no parameter, and a misleading text. Only a
        read of the refund tells the state.
        """
        found = self.envelope
        return (
            self.outcome is Outcome.REFUSED
            and isinstance(self.reply, Response)
            and self.reply.status == 400  # noqa: PLR2004 - Bad Request
            and found.code is None
            and found.param is None
            and found.type != "idempotency_error"
        )


def classify(request: Request[T], reply: Reply) -> Classification[T]:
    """Say what a reply proves and whether to send the same request again.

    A refusal of a cancel proves a no only if it is Stripe's and an answer to this
    request:

    - It is Stripe's if it has an error object and a ``Request-Id``. A proxy may put its
      own page, of any status, in place of the answer to a request that was executed.
    - It answers this request if it repeats the idempotency key. Stripe repeats the key
      in every answer that its idempotency layer gives, refusals included (recorded
      headers of a 402: https://docs.stripe.com/api/idempotent_requests says that
      the first answer is saved "regardless of whether it succeeds or fails", and
      https://github.com/stripe/stripe-mock/pull/77 reflects the key "like the real
      Stripe API"). What is decided before that layer, such as a 401, may not repeat it.
      Such a refusal is no `Proof`: it may be a late answer to another request on
      the same connection. It is believed if a second answer, on another connection,
      says the same and the refund, as read, is in a state that is known, and not
      canceled. Or if the read is refused for the same reason.

    A no counts for the call only if no earlier attempt was ambiguous. The caller has to
    remember that.
    """
    if isinstance(reply, TransportFailure):
        return Classification(
            reply,
            Outcome.AMBIGUOUS if reply.sent else Outcome.NOT_SENT,
            retry=reply.cause not in _FINAL,
        )
    key = request.idempotency_key
    if key is not None and reply.headers.get(IDEMPOTENCY_KEY, key) != key:
        # The answer to another request. The same key will get the right one.
        return Classification(reply, Outcome.AMBIGUOUS, retry=True)
    if not is_success(reply):
        return _classify_refusal(request, reply)
    value = request.decode(reply.body)
    if value is None or (
        value.id != request.refund_id
        if isinstance(value, Refund)
        else not _leads_on(request, value)
    ):
        # Cut, mangled, or about another refund: the right answer was lost on the way,
        # and Stripe repeats it for the same key.
        return Classification(reply, Outcome.AMBIGUOUS, retry=True)
    if key is not None and getattr(value, "status", None) != "canceled":
        # No documented answer is like this, and the saved answer would come again.
        return Classification(reply, Outcome.AMBIGUOUS, retry=False)
    return Classification(reply, Outcome.DONE, False, value)  # noqa: FBT003 - keywords cost


def _leads_on(request: Request[Any], value: object) -> bool:
    """Tell whether a page that is not the last one leads to another one."""
    if isinstance(value, RefundPage) and value.has_more:
        return bool(value.data) and next_page(request, value).query != request.query
    return True


def _classify_refusal(request: Request[Any], response: Response) -> Classification[Any]:
    status, headers = response.status, response.headers
    envelope = parse_envelope(response.body)
    proof = Proof.KEY
    if status >= 500 or status < 200 or status in _AMBIGUOUS_STATUSES:  # noqa: PLR2004 - server errors, or no final answer at all
        outcome, retry = Outcome.AMBIGUOUS, True
    elif request.method == "GET":
        outcome, retry = Outcome.REFUSED, status == 429  # noqa: PLR2004 - Too Many Requests
    elif not is_from_stripe(response, envelope):
        outcome, retry = Outcome.AMBIGUOUS, status == 429  # noqa: PLR2004 - as above
    else:
        if IDEMPOTENCY_KEY not in headers:
            proof = Proof.NONE
        retry = status == 429 or proof is Proof.NONE  # noqa: PLR2004 - as above
        outcome = Outcome.REFUSED
    advised = headers.get("Stripe-Should-Retry")
    if advised in ("true", "false"):
        retry = advised == "true"
    if outcome is Outcome.AMBIGUOUS and is_replay(response):
        retry = False  # saved under the key: it will never change
    return Classification(
        response, outcome, retry=retry, envelope=envelope, proof=proof
    )


class _Body(msgspec.Struct):
    # Not typed further: one odd field must not cost the others.
    error: dict[str, Any]


_BODY = msgspec.json.Decoder(_Body)


def parse_envelope(body: bytes) -> Envelope:
    """Read Stripe's error object; all fields are ``None`` where there is none."""
    found = decode_or_none(_BODY, body)
    if found is None:
        return Envelope()
    texts = {
        name: excerpt(text)
        for name in Envelope.__struct_fields__
        if isinstance(text := found.error.get(name), str)
    }
    return Envelope(**texts)


def is_from_stripe(response: Response, envelope: Envelope) -> bool:
    """Tell whether Stripe itself gave a refusal, and nothing in front of it."""
    return envelope.type is not None and request_id(response) is not None


def is_success(response: Response) -> bool:
    """Tell whether the status says that the request was executed."""
    return 200 <= response.status < 300  # noqa: PLR2004 - the success class of HTTP


def is_replay(response: Response) -> bool:
    """Tell whether Stripe repeated an answer that it had saved under the key."""
    return response.headers.get(REPLAYED) == "true"


def request_id(response: Response) -> str | None:
    """Return Stripe's name for the exchange, ``req_...``."""
    found = response.headers.get(REQUEST_ID)
    if found is None or not validation.is_request_id(found):
        return None
    return found


def _limit_reason(response: Response) -> str | None:
    return response.headers.get("Stripe-Rate-Limited-Reason")
