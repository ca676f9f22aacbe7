"""One request on its way through the API."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from async_refunds.emulator.state.books import ReceivedRequest
from async_refunds.emulator.state.refunds import Cause

from . import errors
from .auth import authenticate, check_permission, named_account
from .errors import StripeError
from .params import parse_form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_refunds.emulator.state.idempotency import KeyUse, Params
    from async_refunds.emulator.state.refunds import ListQuery, Partition
    from async_refunds.emulator.state.stripe_state import StripeState

    from .serialization import Expansion

    # A charge of one account in one mode: what a write locks.
    LockName = tuple[Partition, str]

# The version of an account that has not pinned another.
DEFAULT_VERSION = "2026-10-28.endive"

# A date, since 2024 with a name, and perhaps with previews after a semicolon.
# https://docs.stripe.com/sdks/set-version
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?(;[ -~]*)?", re.ASCII)

# The longest idempotency key that Stripe accepts.
LONGEST_KEY = 255

NO_PARAMS: Params = ()
NO_HEADERS: Mapping[str, str] = {}

# A retry would only get the saved answer again. Recorded answers to a POST with a key
# carry it, and the official clients "expect the stripe-should-retry header to be false
# in most cases when a 500 is returned, since our idempotency framework would typically
# replay it" (`stripe._http_client.HTTPClient._should_retry`).
SAVED: Mapping[str, str] = {"Stripe-Should-Retry": "false"}


@lru_cache
def _is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


@dataclass(slots=True)
class RawRequest:
    """A request as it came over the wire.

    Args:
        method: In capitals.
        path: Percent-encoded.
        query: What follows the question mark, percent-encoded.
        headers: By name, in any case.
        body: The whole body.
        malformed: Why the body could not be read.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    malformed: StripeError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One endpoint of the API.

    Args:
        name: As it stands in `Books` and `ReceivedRequest`.
        prepare: Checks the parameters and keeps what they say in the context.
        execute: Does the work and returns the JSON.
        writes: Whether it changes the refund.
    """

    name: str
    prepare: Callable[[RequestContext], None]
    execute: Callable[[RequestContext], bytes]
    writes: bool = False


class RequestContext:
    """One request: `admit`, `execute` and `finish`, in this order.

    Until `finish`, its idempotency key is in flight and it counts for the limiters.

    Attributes:
        admitted: Whether `admit` was called.
        status: The status of the answer; 0 while there is none.
        body: The body of the answer.
        refund: The refund that the path names, in whatever account or mode.
        partition: The refunds of the account and mode of the API key; set by `admit`.
        expand: What to expand; set by the endpoint.
        query: Which refunds to list; set by the endpoint.
        record: The entry in the log of requests.
    """

    partition: Partition
    query: ListQuery
    expand: Expansion | None = None
    admitted = False
    status = 0
    body = b""
    _authenticated = False
    _entered = False
    _executed = False
    _replayed = False
    _key_use: KeyUse | None = None
    _original_request: str | None = None
    _extra_headers = NO_HEADERS

    def __init__(
        self,
        state: StripeState,
        raw: RawRequest,
        endpoint: Endpoint | None,
        refund_id: str,
    ) -> None:
        headers = raw.headers
        self.state = state
        self.raw = raw
        self.endpoint = endpoint
        self.refund_id = refund_id
        self.refund = state.refunds.peek(refund_id) if refund_id else None
        self.request_id = state.new_request_id()
        self.idempotency_key = headers.get("Idempotency-Key") or None
        self._version = headers.get("Stripe-Version") or DEFAULT_VERSION
        self._malformed = raw.malformed
        self.params = self._read_params() if raw.body or raw.query else NO_PARAMS
        self.record = ReceivedRequest(
            raw.method,
            raw.path,
            "other" if endpoint is None else endpoint.name,
            self.params,
            self.idempotency_key,
            named_account(headers),
            self.request_id,
            state.clock.time(),
        )

    @property
    def cause(self) -> Cause:
        """This request as the cause of a change."""
        return Cause(self.request_id, self.idempotency_key)

    @property
    def lock(self) -> LockName | None:
        """What no other request may hold while this one executes, if anything."""
        refund, endpoint = self.refund, self.endpoint
        if (
            self.status
            or refund is None
            or endpoint is None
            or not endpoint.writes
            or refund.partition is not self.partition
        ):
            return None
        return refund.partition, refund.charge_id

    def admit(self) -> None:
        """Decide whether the request may execute, or answer it."""
        self.admitted = True
        try:
            endpoint = self._authenticate()
            self._check_version()
            self._enter_limiter()
            self._take_idempotency_key()
            if not self.status:
                endpoint.prepare(self)
        except StripeError as error:
            self.refuse(error)

    def execute(self, *, fail: bool = False) -> None:
        """Do the work, unless the request is answered already.

        Args:
            fail: Do the work, but answer with a 500.
        """
        if self.status:
            return
        self._executed = True
        endpoint = self.endpoint
        assert endpoint is not None  # noqa: S101  # `admit` has refused the others
        try:
            self.body = endpoint.execute(self)
            self.status = 200
        except StripeError as error:
            self.refuse(error)
        if fail:
            self.refuse(errors.server_error(500))

    def finish(self) -> None:
        """End the request; save its answer under the key if it executed."""
        use, self._key_use = self._key_use, None
        if use is not None and self._executed:
            extra = self._extra_headers
            self._extra_headers = {**extra, **SAVED} if extra else SAVED
            use.status, use.body = self.status, self.body
            use.request_id, use.headers = self.request_id, self._extra_headers
            self._original_request = self.request_id
        elif use is not None:
            self.state.idempotency.release(self.partition, self.idempotency_key or "")
        if self._entered:
            self.state.limiter.leave(self.partition, self.record.endpoint)
            self._entered = False

    def refuse(self, error: StripeError) -> None:
        """Answer with an error."""
        log_url = None
        if self._authenticated:
            mode = "" if self.partition.livemode else "test/"
            log_url = f"https://dashboard.stripe.com/{mode}logs/{self.request_id}"
        self.status = error.status
        self.body = error.body(log_url)
        self._extra_headers = error.headers
        if error.code in {"rate_limit", "lock_timeout"}:
            reason = error.headers.get("Stripe-Rate-Limited-Reason", error.code)
            self.state.books.rate_limited[reason] += 1

    def response_headers(self) -> dict[str, str]:
        """Return the headers of the answer as it stands.

        Every answer has a ``Request-Id``. Stripe repeats the idempotency key of a POST
        in what its idempotency layer answers, errors included: recorded headers show
        it, and https://github.com/stripe/stripe-mock/pull/77 does it "like the real
        Stripe API". No record shows what Stripe does before that layer (401, 403, the
        429 of a limiter, parameter errors). The emulator repeats the key there too; a
        client must not depend on it.
        """
        version = self._version
        headers = {
            "Content-Type": "application/json",
            "Request-Id": self.request_id,
            "Stripe-Version": version if _is_version(version) else DEFAULT_VERSION,
        }
        if self._authenticated and self.partition.account is not None:
            headers["Stripe-Account"] = self.partition.account
        key = self.idempotency_key
        if key is not None and self.raw.method == "POST":
            # Other bytes cannot be sent back as they came.
            if key.isascii() and key.isprintable():
                headers["Idempotency-Key"] = key
            if self._original_request is not None:
                headers["Original-Request"] = self._original_request
            if self._replayed:
                headers["Idempotent-Replayed"] = "true"
        if self._extra_headers:
            headers.update(self._extra_headers)
        return headers

    def _read_params(self) -> Params:
        """Return the parameters; errors are kept until the API key is checked."""
        raw = self.raw
        body = raw.body if raw.method == "POST" else b""
        try:
            kind = raw.headers.get("Content-Type", "").partition(";")[0].strip()
            if body and kind and kind.lower() != "application/x-www-form-urlencoded":
                self._malformed = errors.not_a_form()
                body = b""
            return parse_form(raw.query) + parse_form(body.decode())
        except ValueError:
            self._malformed = errors.not_a_form()
            return NO_PARAMS

    def _authenticate(self) -> Endpoint:
        state, raw, endpoint = self.state, self.raw, self.endpoint
        if not raw.path.startswith("/v1/"):
            raise errors.unrecognized_url(raw.method, raw.path)
        account = self.record.stripe_account
        key, self.partition = authenticate(state, raw.headers, account)
        self._authenticated = True
        if endpoint is None:
            raise errors.unrecognized_url(raw.method, raw.path)
        if state.restricted_keys:
            check_permission(state, key, endpoint.name, account)
        return endpoint

    def _check_version(self) -> None:
        if not _is_version(self._version):
            raise StripeError(400, f"Invalid Stripe API version: {self._version}")

    def _enter_limiter(self) -> None:
        limiter, now = self.state.limiter, self.record.received_at
        if limiter.limits is None:
            return
        endpoint = self.record.endpoint
        reason = limiter.enter(limiter.limits, self.partition, endpoint, now=now)
        if reason is not None:
            raise errors.rate_limited(reason)
        self._entered = True

    def _take_idempotency_key(self) -> None:
        if self._malformed is not None:
            raise self._malformed
        key, path = self.idempotency_key, self.raw.path
        if key is None or self.raw.method != "POST":
            return
        if len(key) > LONGEST_KEY:
            message = f"Idempotency keys can be at most {LONGEST_KEY} characters long."
            raise StripeError(400, message)
        keys, now = self.state.idempotency, self.record.received_at
        # The order of parameters does not matter.
        params = tuple(sorted(self.params)) if self.params else NO_PARAMS
        use = keys.find(self.partition, key, now=now)
        if use is None:
            self._key_use = keys.begin(self.partition, key, path, params, now=now)
        elif use.path != path:
            raise errors.key_reused(key, (use.path, path))
        elif use.params != params:
            raise errors.key_reused(key)
        elif not use.status:
            raise errors.key_in_use(key)
        else:
            self._replay(use)

    def _replay(self, use: KeyUse) -> None:
        self.status, self.body = use.status, use.body
        self._original_request = use.request_id
        self._extra_headers = use.headers or NO_HEADERS
        self._replayed = self.record.replayed = True
        self.state.books.replays += 1
