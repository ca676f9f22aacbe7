"""The emulator as its user holds it."""

from __future__ import annotations

import time
from collections import deque
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

from .clock import Clock
from .faults import Faults
from .limiter import Limiter, Limits
from .objects import Json, refund_object
from .refunds import SAMPLE_EMAIL, Ledger
from .server import Server
from .service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping

    from .books import Books, ReceivedRequest
    from .visit import Visit

# How many requests the log remembers.
LOGGED = 1000

NEEDS_EMAIL = "a refund in requires_action needs an instructions_email"


class Emulator:
    """A local Stripe for refunds, with its state, its limits and its moods.

    ```python
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with emulator.serve() as base_url:
        ...  # any Stripe client, any key such as sk_test_123
    assert emulator.refund(refund_id)["status"] == "canceled"
    ```

    Args:
        seed: The same seed draws the same ids and the same faults.
        clock: Gives the time in Unix seconds; ``clock.advance`` adds to it.
        limits: What an account may ask for; None is no limit.

    Attributes:
        clock: The emulator's time.
        faults: What goes wrong.
        requests: The last requests received, oldest first.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
    ) -> None:
        # Ids and faults are drawn apart, so that another refund is not another storm.
        ids = Random(seed)  # noqa: S311  # ids and storms are no secrets
        self.clock = Clock(clock)
        self.faults = Faults(Random(seed))  # noqa: S311  # the same
        self.requests: deque[ReceivedRequest] = deque(maxlen=LOGGED)
        self._ledger = Ledger(ids)
        self._limiter = Limiter(limits)
        self._service = Service(
            clock=self.clock, random=ids, ledger=self._ledger, limiter=self._limiter
        )
        self._serving = False

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

    def add_refund(
        self,
        *,
        status: str = "requires_action",
        amount: int = 5000,
        currency: str = "jpy",
        livemode: bool = False,
        account: str | None = None,
        created: int | None = None,
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
            instructions_email: Where the customer was asked for bank details.
            charge: The charge refunded; one of its own unless told otherwise.
            payment_intent: The payment intent refunded; the same.
            metadata: The merchant's own.
            refund_id: The id; drawn unless told otherwise.

        Raises:
            ValueError: The id is taken, or a refund in ``requires_action`` has no
                e-mail address.
        """
        if status == "requires_action" and instructions_email is None:
            raise ValueError(NEEDS_EMAIL)
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
        )
        return refund.id

    def seed_refunds(
        self, count: int, *, livemode: bool = False, account: str | None = None
    ) -> list[str]:
        """Add refunds in ``requires_action``, spread over time and currencies.

        Returns:
            Their ids, oldest first.
        """
        shelf = self._ledger.shelf(account, livemode=livemode)
        return self._ledger.seed(shelf, count, now=int(self.clock.time()))

    def add_account(self, account: str) -> None:
        """Make a connected account known that has no refunds yet."""
        self._ledger.add_account(account)

    def refund(self, refund_id: str) -> Json:
        """Return the refund's JSON object as it is now.

        Raises:
            KeyError: There is none of that id.
        """
        return refund_object(self._ledger.get(refund_id))

    def set_status(self, refund_id: str, status: str) -> None:
        """Do what Stripe, a bank or a customer does to a refund by itself.

        Raises:
            KeyError: There is none of that id.
            ValueError: It would be in ``requires_action`` with no e-mail address.
        """
        refund = self._ledger.get(refund_id)
        if status == "requires_action" and refund.instructions_email is None:
            raise ValueError(NEEDS_EMAIL)
        self._ledger.move(refund, status)

    def expire_key(self, key: str) -> None:
        """Refuse an API key from now on as expired."""
        self._service.keys.expired.add(key)

    def restrict_key(self, key: str, *, allow: Collection[str] = ()) -> None:
        """Let an API key use only some of ``cancel``, ``retrieve`` and ``list``."""
        self._service.keys.restricted[key] = frozenset(allow)

    @asynccontextmanager
    async def serve(
        self, *, host: str = "127.0.0.1", port: int = 0
    ) -> AsyncGenerator[str]:
        """Serve over HTTP and give the base URL, without a slash at its end.

        Everything is closed at the end, whatever is under way.

        Args:
            host: A loopback address, unless others shall reach it.
            port: 0 takes any free one.

        Raises:
            OSError: The address cannot be had.
            RuntimeError: The emulator is being served already.
        """
        if self._serving:
            raise RuntimeError("this emulator is being served already")
        self._serving = True
        server = Server(self._service, self.faults, self._log)
        try:
            yield server.open(host, port)
        finally:
            self._serving = False
            await server.close()

    def _log(self, visit: Visit) -> None:
        self.requests.append(visit.record)
