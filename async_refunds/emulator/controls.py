"""What the user of an emulator can do to it: with refunds, keys, limits and time."""

from __future__ import annotations

import time

# At run time: the admin API reads the signatures of the methods.
from collections.abc import Collection, Mapping  # noqa: TC003  # as said
from typing import TYPE_CHECKING, Annotated

import msgspec

from async_refunds.emulator.api.events import subscribe
from async_refunds.emulator.api.serialization import refund_object
from async_refunds.emulator.state.refunds import SAMPLE_EMAIL, Refund
from async_refunds.emulator.state.stripe_state import StripeState
from async_refunds.emulator.state.webhooks import DEFAULT_EVENT_TYPES, Webhook

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from async_refunds.emulator.api.serialization import Json
    from async_refunds.emulator.state.books import ReceivedRequest
    from async_refunds.emulator.state.limits import Limits

# What the admin API accepts at most: more would take minutes, and fill the memory.
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Controls:
    """The state of an emulator, in the hands of its user.

    See `Emulator` for the arguments and attributes.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
        latency: float = 0.0,
        lock_wait: float = 0.0,
    ) -> None:
        self._state = StripeState(
            seed=seed, clock=clock, limits=limits, latency=latency, lock_wait=lock_wait
        )
        self.clock = self._state.clock
        self.faults = self._state.faults
        self.books = self._state.books

    @property
    def requests(self) -> deque[ReceivedRequest]:
        """The last 1,000 requests, oldest first; another deque may take its place."""
        return self._state.requests

    @requests.setter
    def requests(self, requests: deque[ReceivedRequest]) -> None:
        self._state.requests = requests

    @property
    def limits(self) -> Limits | None:
        """What an account may send; may be set and changed while serving."""
        return self._state.limiter.limits

    @limits.setter
    def limits(self, limits: Limits | None) -> None:
        self._state.limiter.limits = limits

    @property
    def latency(self) -> float:
        """How many seconds each execution takes; may be set while serving."""
        return self._state.latency

    @latency.setter
    def latency(self, latency: float) -> None:
        self._state.latency = latency

    @property
    def lock_wait(self) -> float:
        """How many seconds a write waits for a lock; may be set while serving."""
        return self._state.lock_wait

    @lock_wait.setter
    def lock_wait(self, lock_wait: float) -> None:
        self._state.lock_wait = lock_wait

    @property
    def on_request(self) -> Callable[[ReceivedRequest], None] | None:
        """A function that is called with each request once it has ended.

        It may be set while serving. It is called in the serving thread, also for
        requests that got no answer; `ReceivedRequest.line` makes a line of a log.
        """
        return self._state.on_request

    @on_request.setter
    def on_request(self, on_request: Callable[[ReceivedRequest], None] | None) -> None:
        self._state.on_request = on_request

    def add_refund(
        self,
        *,
        status: str = "requires_action",
        amount: int = 5000,
        currency: str = "jpy",
        livemode: bool = False,
        account: str | None = None,
        created: int | None = None,
        expires_at: int | None = None,
        instructions_email: str | None = SAMPLE_EMAIL,
        charge: str | None = None,
        payment_intent: str | None = None,
        metadata: Mapping[str, str] | None = None,
        refund_id: str | None = None,
    ) -> str:
        """Add a refund and return its id.

        Args:
            status: ``requires_action`` can be canceled, any other cannot.
            amount: In the currency's smallest unit.
            currency: Three small letters; ``jpy``, ``thb``, ``brl``, ``eur``, ``gbp``
                and ``usd`` have a bank transfer as their destination.
            livemode: Which keys see it: ``sk_live_`` or ``sk_test_``.
            account: The connected account that it belongs to; None is the platform.
            created: Unix seconds. Default: now.
            expires_at: Until when the customer may give bank details, in Unix seconds;
                a refund still in ``requires_action`` then is ``failed``. Default: 45
                days from ``created``, or from now if those are over.
            instructions_email: Where the customer was asked for bank details.
            charge: The refunded charge. Writes on refunds of one charge exclude each
                other. Default: a charge of its own.
            payment_intent: The refunded payment intent. Default: one of its own.
            metadata: The merchant's own.
            refund_id: Default: drawn.

        Raises:
            ValueError: The id is taken, or a refund in ``requires_action`` has no
                e-mail address.
        """
        state = self._state
        refund = Refund(
            refund_id or state.refunds.new_id("re"),
            state.refunds.partition(account, livemode=livemode),
            status,
            amount,
            currency,
            int(self.clock.time()) if created is None else created,
            instructions_email,
            charge=charge or "",
            payment_intent=payment_intent or "",
            metadata=dict(metadata) if metadata else None,
            expires_at=expires_at,
        )
        state.refunds.add(refund)
        return refund.id

    def seed_refunds(
        self,
        count: Count,
        *,
        per_charge: int = 1,
        livemode: bool = False,
        account: str | None = None,
    ) -> list[str]:
        """Add refunds in ``requires_action``, spread over time and currencies.

        Args:
            count: How many.
            per_charge: How many consecutive refunds share a charge.
            livemode: Which keys see them.
            account: The connected account that they belong to; None is the platform.

        Returns:
            Their ids, oldest first.

        Raises:
            ValueError: ``per_charge`` is less than one.
        """
        if per_charge < 1:
            raise ValueError(f"per_charge must be 1 or more, not {per_charge!r}")
        refunds = self._state.refunds
        partition = refunds.partition(account, livemode=livemode)
        return refunds.seed(partition, count, per_charge)

    def add_account(self, account: str) -> None:
        """Add a connected account that has no refunds yet."""
        self._state.refunds.add_account(account)

    def refund(self, refund_id: str) -> Json:
        """Return the refund's JSON object as it is now.

        Raises:
            KeyError: No refund has that id.
        """
        return refund_object(self._state.refunds.get(refund_id))

    def latest_refunds(self) -> list[Json]:
        """Return a hundred refunds at most, as they are now, of all accounts and modes.

        Those that changed last come first, and then the newest.
        """
        return [refund_object(refund) for refund in self._state.refunds.latest()]

    def give_details(self, refund_id: str) -> None:
        """Let the customer give bank details: ``requires_action`` to ``pending``.

        Raises:
            KeyError: No refund has that id.
            ValueError: The refund has another status.
        """
        self._step(refund_id, "give_details")

    def succeed(self, refund_id: str) -> None:
        """Let the money arrive: ``pending`` to ``succeeded``.

        Raises the exceptions of `give_details`.
        """
        self._step(refund_id, "succeed")

    def return_money(self, refund_id: str) -> None:
        """Let the bank return the money: back to ``requires_action``.

        From ``pending`` or ``succeeded``. The customer is asked for other bank details
        and has 45 days again. Raises the exceptions of `give_details`.
        """
        self._step(refund_id, "return_money")

    def expire(self, refund_id: str) -> None:
        """Let the customer's time run out: ``requires_action`` to ``failed``.

        The clock does the same when the time is over. Raises the exceptions of
        `give_details`.
        """
        self._step(refund_id, "expire")

    def set_status(self, refund_id: str, status: str) -> None:
        """Give a refund any status, even where Stripe never would.

        Raises:
            KeyError: No refund has that id.
            ValueError: ``requires_action`` needs an e-mail address.
        """
        refunds = self._state.refunds
        refunds.set_status(refunds.get(refund_id), status)

    def webhook(
        self,
        url: str,
        *,
        secret: str | None = None,
        events: Collection[str] = DEFAULT_EVENT_TYPES,
    ) -> Webhook:
        """Post a signed event to an endpoint whenever a refund is new or changes.

        Events are sent while the emulator serves, and up to four times until the
        endpoint answers with a 2xx. A refund that expires by itself is noticed when
        the clock is advanced, or when the refund is next read.

        Args:
            url: The endpoint.
            secret: The key of the signatures. Default: a new one.
            events: The types of events: ``refund.created``, ``refund.updated`` (a
                cancel and every other change), ``refund.failed`` and
                ``charge.refund.updated``, which is not sent by default.

        Returns:
            The endpoint, with its ``secret`` and the ``attempts`` made so far.

        Raises:
            ValueError: The URL is not http or https, or there is no such event.
        """
        return subscribe(self._state, url, secret, events)

    def expire_key(self, key: str) -> None:
        """Refuse an API key from now on as expired."""
        self._state.expired_keys.add(key)

    def restrict_key(self, key: str, *, allow: Collection[str] = ()) -> None:
        """Let an API key use only some of the endpoints.

        They are ``cancel``, ``retrieve``, ``list`` and ``expire``.
        """
        self._state.restricted_keys[key] = frozenset(allow)

    def _step(self, refund_id: str, name: str) -> None:
        refunds = self._state.refunds
        refund = refunds.get(refund_id)
        if not refunds.step(refund, name):
            raise ValueError(f"a refund that is {refund.status} cannot {name}")
