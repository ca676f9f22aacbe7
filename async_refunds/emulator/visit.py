"""One request on its way through the API, with no socket in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors
from .books import ReceivedRequest
from .errors import StripeError
from .idempotency import LONGEST_KEY, NOTHING, Standing
from .incoming import DEFAULT_VERSION, is_version
from .keys import no_access
from .params import Params, parse_form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .idempotency import Entry
    from .incoming import Incoming
    from .refunds import Refund, Shelf
    from .state import State

    # Checks a request, and returns what carries it out.
    Endpoint = Callable[["Visit"], Callable[[], bytes]]

    # An account's charge in one mode: what a write locks.
    LockName = tuple[Shelf, str]

# The account that the keys themselves belong to; only messages name it.
PLATFORM = "acct_1Platform00000000"

NO_PARAMS: Params = ()


class Visit:
    """One request on its way: `admit`, `execute`, `finish`, in this order.

    Between `execute` and `finish` the request is under way: its idempotency key is in
    flight and it counts for the limiters.

    Attributes:
        admitted: Whether `admit` was called.
        status: What to answer; 0 while nothing is decided.
        body: The answer's bytes.
        record: The entry for the emulator's log.
        shelf: The refunds of the account and mode that the request was let in to;
            there is none before.
        named: The refund in the path, if there is one, whoever may see it.
        writes: Whether the request changes it; set by its endpoint.
    """

    shelf: Shelf
    admitted = False
    status = 0
    body = b""
    writes = False
    _found = False
    _entered = False
    _begun = False
    _replayed = False
    _held: Entry | None = None
    _original: str | None = None
    _extra: Mapping[str, str] = NOTHING
    _work: Callable[[], bytes] | None = None

    def __init__(
        self,
        state: State,
        incoming: Incoming,
        *,
        run: Endpoint | None,
        endpoint: str,
        refund_id: str,
        named: Refund | None,
        number: int,
    ) -> None:
        headers = incoming.headers
        self._state = state
        self._run = run
        self._headers = headers
        self._malformed = incoming.malformed
        self._version = headers.get("Stripe-Version") or DEFAULT_VERSION
        self.incoming = incoming
        self.endpoint = endpoint
        self.refund_id = refund_id
        self.request_id = f"req_{number:014x}"
        self.idempotency_key = headers.get("Idempotency-Key") or None
        self.named = named
        self.params = (
            self._read_params() if incoming.body or incoming.query else NO_PARAMS
        )
        self.record = ReceivedRequest(
            incoming.method,
            incoming.path,
            endpoint,
            self.params,
            self.idempotency_key,
            self._account(),
            self.request_id,
            state.clock.time(),
        )

    @property
    def lock(self) -> LockName | None:
        """What nobody else may hold while this request is carried out."""
        refund = self.named
        if refund is None or not self.writes or refund.shelf is not self.shelf:
            return None
        return refund.shelf, refund.charge_id

    def admit(self) -> None:
        """Decide whether the request is let in, or already answered."""
        self.admitted = True
        try:
            self._authenticate()
            self._check_version()
            self._enter()
            self._take_key()
            if not self.status:
                run = self._run
                assert run is not None  # noqa: S101 - refused by now if there is none
                self._work = run(self)
        except StripeError as error:
            self.refuse(error)

    def execute(self, *, broken: bool = False) -> None:
        """Do what is asked for, unless the answer is decided already.

        Args:
            broken: Do it, but answer a 500 in place of the result.
        """
        if self.status:
            return
        self._begun = True
        # It is forgotten, since it knows the visit: circles are left to the garbage
        # collector, which takes its time for them.
        work, self._work = self._work, None
        assert work is not None  # noqa: S101 - who is admitted has some
        try:
            self.body = work()
            self.status = 200
        except StripeError as error:
            self.refuse(error)
        if broken:
            self.refuse(errors.server_error(500, saved=self._held is not None))

    def finish(self) -> None:
        """End the request: its answer is kept under the key if it executed."""
        held, self._held = self._held, None
        if held is not None and self._begun:
            held.save(self.status, self.body, self.request_id, self._extra)
            self._original = self.request_id
        elif held is not None:
            self._state.idempotency.release(self.shelf, self.idempotency_key or "")
        if self._entered:
            self._state.limiter.leave(self.shelf, self.endpoint)
            self._entered = False

    def refuse(self, error: StripeError) -> None:
        """Answer with an error."""
        log_url = None
        if self._found:
            mode = "" if self.shelf.livemode else "test/"
            log_url = f"https://dashboard.stripe.com/{mode}logs/{self.request_id}"
        self.status = error.status
        self.body = error.body(log_url)
        self._extra = error.headers
        if error.code in {"rate_limit", "lock_timeout"}:
            reason = error.headers.get("Stripe-Rate-Limited-Reason", error.code)
            self._state.books.rate_limited[reason] += 1

    def answer_headers(self) -> dict[str, str]:
        """Return the headers of the answer as it stands."""
        version = self._version
        headers = {
            "Content-Type": "application/json",
            "Request-Id": self.request_id,
            "Stripe-Version": version if is_version(version) else DEFAULT_VERSION,
        }
        if self._found and self.shelf.account is not None:
            headers["Stripe-Account"] = self.shelf.account
        key = self.idempotency_key
        if key is not None and self.incoming.method == "POST":
            # Bytes that are no ASCII cannot be sent back as they came.
            if key.isascii() and key.isprintable():
                headers["Idempotency-Key"] = key
            if self._original is not None:
                headers["Original-Request"] = self._original
            if self._replayed:
                headers["Idempotent-Replayed"] = "true"
        if self._extra:
            headers.update(self._extra)
        return headers

    def _read_params(self) -> Params:
        """Return what can be read; what is wrong is told once the key is good."""
        incoming = self.incoming
        body = incoming.body if incoming.method == "POST" else b""
        try:
            kind = self._headers.get("Content-Type", "").partition(";")[0].strip()
            if body and kind and kind.lower() != "application/x-www-form-urlencoded":
                self._malformed = errors.not_a_form()
                return parse_form(incoming.query)
            return parse_form(incoming.query) + parse_form(body.decode())
        except ValueError:
            self._malformed = errors.not_a_form()
            return ()

    def _account(self) -> str | None:
        """Return the account asked for; a context is a path that ends in one.

        https://docs.stripe.com/context
        """
        account = self._headers.get("Stripe-Account")
        if not account:
            context = self._headers.get("Stripe-Context")
            account = context.rpartition("/")[2] if context else None
        return account or None

    def _authenticate(self) -> None:
        incoming, state = self.incoming, self._state
        if not incoming.path.startswith("/v1/"):
            raise errors.unrecognized_url(incoming.method, incoming.path)
        key, livemode = state.keys.read(self._headers.get("Authorization"))
        account = self.record.stripe_account
        if account == PLATFORM:
            account = None
        if account is not None and not state.ledger.knows(account):
            raise no_access(key, account)
        self.shelf = state.ledger.shelf(account, livemode=livemode)
        self._found = True
        if self.endpoint == "other":
            raise errors.unrecognized_url(incoming.method, incoming.path)
        if state.keys.restricted:
            state.keys.permit(key, self.endpoint, account or PLATFORM)

    def _check_version(self) -> None:
        if not is_version(self._version):
            raise errors.invalid_version(self._version)

    def _enter(self) -> None:
        limiter, now = self._state.limiter, self.record.received_at
        if limiter.limits is None:
            return
        reason = limiter.enter(limiter.limits, self.shelf, self.endpoint, now=now)
        if reason is not None:
            raise errors.rate_limited(reason)
        self._entered = True

    def _take_key(self) -> None:
        if self._malformed is not None:
            raise self._malformed
        key = self.idempotency_key
        if key is None or self.incoming.method != "POST":
            return
        if len(key) > LONGEST_KEY:
            raise errors.key_too_long(LONGEST_KEY)
        path = self.incoming.path
        params = tuple(sorted(self.params)) if self.params else ()
        standing, entry = self._state.idempotency.begin(
            self.shelf, key, path, params, now=self.record.received_at
        )
        if standing is Standing.FRESH:
            self._held = entry
        elif standing is Standing.ANSWERED:
            self._replay(entry)
        elif standing is Standing.IN_FLIGHT:
            raise errors.key_in_use(key)
        elif standing is Standing.OTHER_PATH:
            raise errors.key_used_otherwise(key, (entry.path, path))
        else:
            raise errors.key_used_otherwise(key, None)

    def _replay(self, entry: Entry) -> None:
        self.status = entry.status
        self.body = entry.body
        self._extra = entry.headers
        self._original = entry.request_id
        self._replayed = True
        self.record.replayed = True
        self._state.books.replays += 1
