"""All that the emulator holds and that can be done to it but for requests."""

from __future__ import annotations

import time
from collections import deque
from random import Random
from typing import TYPE_CHECKING

from .clock import Clock
from .faults import Faults
from .ledger import Ledger
from .limiter import Limiter, Limits
from .objects import Json, refund_object
from .refunds import SAMPLE_EMAIL
from .service import Service
from .timing import Timing, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from .books import Books, ReceivedRequest

# How many requests the log remembers.
LOGGED = 1000


class World:
    """Stripe's refunds and its rules, and what customers, banks and time do.

    See `Emulator`, which serves it, for the arguments and attributes.
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
        # Ids and faults are drawn apart, so that another refund is not another storm.
        ids = Random(seed)  # noqa: S311  # ids and storms are no secrets
        self.clock = Clock(clock)
        self.faults = Faults(Random(seed))  # noqa: S311  # the same
        self.requests: deque[ReceivedRequest] = deque(maxlen=LOGGED)
        self._timing = Timing(latency=latency, lock_wait=lock_wait)
        self._ledger = Ledger(ids, self.clock)
        self._limiter = Limiter(limits)
        self._service = Service(
            clock=self.clock,
            random=ids,
            ledger=self._ledger,
            limiter=self._limiter,
            timing=self._timing,
        )

    @property
    def books(self) -> Books:
        """Counts of what happened."""
        return self._service.books

    @property
    def limits(self) -> Limits | None:
        """What an account may ask for; may be set and changed while serving."""
        return self._limiter.limits

    @limits.setter
    def limits(self, limits: Limits | None) -> None:
        self._limiter.limits = limits

    @property
    def latency(self) -> float:
        """Seconds that each execution takes; may be changed while serving."""
        return self._timing.latency

    @latency.setter
    def latency(self, latency: float) -> None:
        self._timing.latency = seconds("latency", latency)

    @property
    def lock_wait(self) -> float:
        """Seconds that a write waits for a locked charge; may be changed as well."""
        return self._timing.lock_wait

    @lock_wait.setter
    def lock_wait(self, lock_wait: float) -> None:
        self._timing.lock_wait = seconds("lock_wait", lock_wait)

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
            account: The connected account it belongs to; None is the platform.
            created: Unix seconds; now unless told otherwise.
            expires_at: Until when the customer may give bank details, in Unix seconds;
                45 days from ``created`` unless told otherwise, or from now if those
                are over. A refund still in ``requires_action`` then is ``failed``.
            instructions_email: Where the customer was asked for bank details.
            charge: The charge refunded; one of its own unless told otherwise. Writes
                on refunds of one charge exclude each other.
            payment_intent: The payment intent refunded; the same.
            metadata: The merchant's own.
            refund_id: The id; drawn unless told otherwise.

        Raises:
            ValueError: The id is taken, or a refund in ``requires_action`` has no
                e-mail address.
        """
        refund = self._ledger.add(
            self._ledger.shelf(account, livemode=livemode),
            created=int(self.clock.time()) if created is None else created,
            amount=amount,
            currency=currency,
            status=status,
            refund_id=refund_id,
            instructions_email=instructions_email,
            charge=charge or "",
            payment_intent=payment_intent or "",
            metadata=metadata,
            expires_at=expires_at,
        )
        return refund.id

    def seed_refunds(
        self,
        count: int,
        *,
        per_charge: int = 1,
        livemode: bool = False,
        account: str | None = None,
    ) -> list[str]:
        """Add refunds in ``requires_action``, spread over time and currencies.

        Args:
            count: How many.
            per_charge: How many neighbours are refunds of the same charge.
            livemode: Which keys see them.
            account: The connected account they belong to; None is the platform.

        Returns:
            Their ids, oldest first.

        Raises:
            ValueError: ``per_charge`` is less than one.
        """
        if per_charge < 1:
            raise ValueError(f"per_charge must be 1 or more, not {per_charge!r}")
        shelf = self._ledger.shelf(account, livemode=livemode)
        return self._ledger.seed(shelf, count, per_charge)

    def add_account(self, account: str) -> None:
        """Make a connected account known that has no refunds yet."""
        self._ledger.add_account(account)

    def refund(self, refund_id: str) -> Json:
        """Return the refund's JSON object as it is now.

        Raises:
            KeyError: There is none of that id.
        """
        return refund_object(self._ledger.get(refund_id))

    def give_details(self, refund_id: str) -> None:
        """Let the customer give bank details: ``requires_action`` to ``pending``.

        Raises:
            KeyError: There is none of that id.
            ValueError: It is in another state.
        """
        self._step(refund_id, "give_details")

    def succeed(self, refund_id: str) -> None:
        """Let the money arrive: ``pending`` to ``succeeded``. Raises as the former."""
        self._step(refund_id, "succeed")

    def return_money(self, refund_id: str) -> None:
        """Let the bank return the money: back to ``requires_action``.

        From ``pending`` or ``succeeded``; the customer is asked for other details, and
        has 45 days again. Raises as the former.
        """
        self._step(refund_id, "return_money")

    def expire(self, refund_id: str) -> None:
        """Let the customer's time run out: ``requires_action`` to ``failed``.

        It happens by itself as the clock goes. Raises as the former.
        """
        self._step(refund_id, "expire")

    def set_status(self, refund_id: str, status: str) -> None:
        """Give a refund any status, possible or not.

        Raises:
            KeyError: There is none of that id.
            ValueError: It would be in ``requires_action`` with no e-mail address.
        """
        self._ledger.move(self._ledger.get(refund_id), status)

    def expire_key(self, key: str) -> None:
        """Refuse an API key from now on as expired."""
        self._service.keys.expired.add(key)

    def restrict_key(self, key: str, *, allow: Collection[str] = ()) -> None:
        """Let an API key use only some endpoints.

        They are ``cancel``, ``retrieve``, ``list`` and ``expire``.
        """
        self._service.keys.restricted[key] = frozenset(allow)

    def _step(self, refund_id: str, name: str) -> None:
        refund = self._ledger.get(refund_id)
        was = refund.status
        if not self._ledger.step(refund, name):
            raise ValueError(f"a refund that is {was} cannot {name}")
