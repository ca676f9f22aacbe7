"""Every refund, by id and by account: how refunds are added, changed and listed."""

from __future__ import annotations

import string
from bisect import bisect_left, bisect_right, insort
from copy import copy
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from .refunds import (
    EXPIRES_AFTER,
    MARKETS,
    NO_REQUEST,
    STEPS,
    ListQuery,
    Partition,
    Refund,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from .clock import Clock
    from .refunds import Cause

# Seeded refunds are younger than this, so that none has expired.
SEEDED_SPAN = 40 * 24 * 3600

# How many characters of an id are drawn.
ID_LENGTH = 23

# Maps every byte to a character of an id: faster than drawing characters.
ID_CHARACTERS = (string.digits + string.ascii_letters).encode()
BYTE_TO_CHARACTER = bytes(ID_CHARACTERS[n % len(ID_CHARACTERS)] for n in range(256))

# How many refunds `RefundStore.latest` returns at most.
LATEST = 100

NEEDS_EMAIL = "a refund in requires_action needs an instructions_email"

_age = attrgetter("age")
_created = attrgetter("created")


class RefundStore:
    """Every refund, by id and by account.

    Args:
        random: Draws the ids and the seeded amounts.
        clock: Tells when refunds expire.

    Attributes:
        on_change: Called with each refund that is new or has changed: as it was, None
            if it is new; as it is; and the cause.
    """

    def __init__(self, random: Random, clock: Clock) -> None:
        self._random = random
        self._clock = clock
        self._refunds: dict[str, Refund] = {}
        self._partitions: dict[tuple[str | None, bool], Partition] = {}
        self._accounts: set[str] = set()
        # The last ones that changed, oldest first.
        self._changed: dict[str, Refund] = {}
        self.on_change: Callable[[Refund | None, Refund, Cause], None] | None = None

    def new_id(self, prefix: str) -> str:
        """Return a new id such as ``re_1...``."""
        drawn = self._random.randbytes(ID_LENGTH).translate(BYTE_TO_CHARACTER)
        return f"{prefix}_1{drawn.decode()}"

    def add_account(self, account: str) -> None:
        """Add a connected account."""
        self._accounts.add(account)

    def has_account(self, account: str) -> bool:
        """Return whether the account was added, or a refund of it."""
        return account in self._accounts

    def partition(self, account: str | None, *, livemode: bool) -> Partition:
        """Return the refunds of one account (None: the platform) in one mode."""
        partition = self._partitions.get((account, livemode))
        if partition is None:
            partition = self._partitions[account, livemode] = Partition(
                account, livemode
            )
        return partition

    def add(self, refund: Refund) -> None:
        """Add a refund.

        Raises:
            ValueError: The id is taken, or the refund needs an e-mail address.
        """
        if refund.status == "requires_action" and refund.instructions_email is None:
            raise ValueError(NEEDS_EMAIL)
        if refund.id in self._refunds:
            raise ValueError(f"there is a refund {refund.id!r} already")
        # The customer still has time to answer, however old the refund is.
        now, created = self._clock.time(), refund.created
        refund.email_sent_at = created if created + EXPIRES_AFTER > now else int(now)
        refund.number = len(self._refunds)
        self._refunds[refund.id] = refund
        partition = refund.partition
        _insert(partition.refunds, refund)
        if refund.charge:
            _insert(partition.by_charge.setdefault(refund.charge, []), refund)
        if refund.payment_intent:
            _insert(partition.by_intent.setdefault(refund.payment_intent, []), refund)
        if partition.account is not None:
            self._accounts.add(partition.account)
        if self.on_change is not None:
            self.on_change(None, refund, NO_REQUEST)

    def seed(self, partition: Partition, count: int, per_charge: int) -> list[str]:
        """Add refunds in ``requires_action``; return their ids, oldest first."""
        now = int(self._clock.time())
        ids: list[str] = []
        currencies = tuple(MARKETS)
        currency, customer, suffix = currencies[0], 0, ""
        for number in range(count):
            if number % per_charge == 0:
                currency, customer = self._random.choice(currencies), number
                # The id of a charge of its own is derived, and takes no memory.
                suffix = self.new_id("") if per_charge > 1 else ""
            amount = self._random.randint(*MARKETS[currency].amounts)
            refund = Refund(
                self.new_id("re"),
                partition,
                "requires_action",
                amount,
                currency,
                # Oldest first, so that each insertion is an append.
                now - SEEDED_SPAN + (number + 1) * SEEDED_SPAN // count,
                f"customer{customer}@example.com",
                suffix and f"ch{suffix}",
                suffix and f"pi{suffix}",
            )
            self.add(refund)
            ids.append(refund.id)
        return ids

    def get(self, refund_id: str) -> Refund:
        """Return a refund of any account and mode as it is now.

        Raises:
            KeyError: No refund has that id.
        """
        return self.expire_if_due(self._refunds[refund_id])

    def peek(self, refund_id: str) -> Refund | None:
        """Return a refund of any account and mode, which may have expired since."""
        return self._refunds.get(refund_id)

    def latest(self) -> list[Refund]:
        """Return the refunds that changed last, then the newest, of all accounts."""
        newest = islice(reversed(self._refunds.values()), LATEST)
        for refund in [*self._changed.values(), *newest]:
            self.expire_if_due(refund)  # which makes it one that changed
        newest = islice(reversed(self._refunds.values()), LATEST)
        found = {each.id: each for each in [*reversed(self._changed.values()), *newest]}
        return list(found.values())[:LATEST]

    def find(self, partition: Partition, refund_id: str) -> Refund | None:
        """Return the refund if it is in the partition."""
        refund = self._refunds.get(refund_id)
        if refund is not None and refund.partition is partition:
            return refund
        return None

    def step(self, refund: Refund, name: str, cause: Cause = NO_REQUEST) -> bool:
        """Apply one of `STEPS` if the refund's status allows it; return whether."""
        allowed, status = STEPS[name]
        if refund.status not in allowed:
            return False
        self.set_status(refund, status, cause)
        return True

    def set_status(
        self, refund: Refund, status: str, cause: Cause = NO_REQUEST
    ) -> None:
        """Set the status and the fields that go with it.

        Raises:
            ValueError: ``requires_action`` needs an e-mail address.
        """
        before = None if self.on_change is None else copy(refund)
        if status == "requires_action":
            if refund.instructions_email is None:
                raise ValueError(NEEDS_EMAIL)
            # The customer gets another e-mail, and as much time again.
            refund.email_sent_at, refund.expires_at = int(self._clock.time()), None
        refund.status = status
        # A new transaction for each e-mail.
        refund.failure_transaction = (
            f"txn_{refund.suffix}{refund.email_sent_at:x}"
            if status in {"canceled", "failed"}
            else None
        )
        self._changed.pop(refund.id, None)
        self._changed[refund.id] = refund
        if len(self._changed) > LATEST:
            del self._changed[next(iter(self._changed))]
        if self.on_change is not None:
            self.on_change(before, refund, cause)

    def page(self, partition: Partition, query: ListQuery) -> tuple[list[Refund], bool]:
        """Return one page, newest first, and whether more follow.

        https://docs.stripe.com/api/pagination
        """
        refunds = self._matching(partition, query)
        low, high = 0, len(refunds)
        if query.created_from is not None:
            low = bisect_left(refunds, query.created_from, key=_created)
        if query.created_to is not None:
            high = bisect_right(refunds, query.created_to, key=_created)
        if query.starting_after is not None:
            high = min(high, bisect_left(refunds, query.starting_after.age, key=_age))
        if query.ending_before is not None:
            low = max(low, bisect_right(refunds, query.ending_before.age, key=_age))
            found = refunds[low : min(high, low + query.limit)]
        else:
            found = refunds[max(low, high - query.limit) : high]
        found.reverse()
        for refund in found:
            self.expire_if_due(refund)
        return found, high - low > query.limit

    def expire_if_due(self, refund: Refund) -> Refund:
        """Let the refund expire if its time has come, and return it.

        Every read calls this, so that no timer has to run for each refund.
        """
        if refund.status == "requires_action" and refund.deadline <= self._clock.time():
            self.set_status(refund, "failed")
        return refund

    def expire_all_due(self) -> None:
        """Let every refund expire whose time has come."""
        for refund in list(self._refunds.values()):
            self.expire_if_due(refund)

    def of_charge(self, partition: Partition, charge: str) -> list[Refund]:
        """Return the refunds of a charge, oldest first."""
        return self._related(partition, partition.by_charge, charge, "ch")

    def of_payment_intent(self, partition: Partition, intent: str) -> list[Refund]:
        """Return the refunds of a payment intent, oldest first."""
        return self._related(partition, partition.by_intent, intent, "pi")

    def _matching(self, partition: Partition, query: ListQuery) -> list[Refund]:
        charge, intent = query.charge, query.payment_intent
        if charge is None:
            if intent is None:
                return partition.refunds
            return self.of_payment_intent(partition, intent)
        refunds = self.of_charge(partition, charge)
        if intent is None:
            return refunds
        return [refund for refund in refunds if refund.payment_intent_id == intent]

    def _related(
        self,
        partition: Partition,
        given: dict[str, list[Refund]],
        related_id: str,
        prefix: str,
    ) -> list[Refund]:
        """Return the refunds that name the object, and the one it is derived from."""
        refunds = list(given.get(related_id, ()))
        kind, _, suffix = related_id.partition("_")
        if kind != prefix:
            return refunds
        for refund_prefix in ("re", "pyr"):
            refund = self.find(partition, f"{refund_prefix}_{suffix}")
            if refund is not None and not (
                refund.charge if prefix == "ch" else refund.payment_intent
            ):
                insort(refunds, refund, key=_age)
        return refunds


def _insert(refunds: list[Refund], refund: Refund) -> None:
    if not refunds or refunds[-1].age < refund.age:
        refunds.append(refund)
    else:
        insort(refunds, refund, key=_age)
