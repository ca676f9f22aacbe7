"""Every refund, by id and by shelf: how they come, change and are listed."""

from __future__ import annotations

import string
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from .markets import MARKETS
from .refunds import EXPIRES_AFTER, NEEDS_EMAIL, STEPS, ListQuery, Refund, Shelf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from .clock import Clock

# Seeded refunds are younger than that, so that all of them are still open.
SEEDED_SPAN = 40 * 24 * 3600

# How many signs of an id are drawn.
ID_SIGNS = 23

# Every byte as one of the signs that ids are made of: quicker than drawing signs.
SIGNS = (string.digits + string.ascii_letters).encode()
BYTES_TO_SIGNS = bytes(SIGNS[byte % len(SIGNS)] for byte in range(256))


def _age(refund: Refund) -> tuple[int, int]:
    return refund.age


def _created(refund: Refund) -> int:
    return refund.created


class Ledger:
    """Every refund, by id and by shelf.

    Args:
        random: Draws the ids and the seeded amounts.
        clock: Tells when refunds expire.
    """

    def __init__(self, random: Random, clock: Clock) -> None:
        self._random = random
        self._clock = clock
        self._refunds: dict[str, Refund] = {}
        self._shelves: dict[tuple[str | None, bool], Shelf] = {}
        self._accounts: set[str] = set()

    def draw_id(self, prefix: str) -> str:
        """Return a new id such as ``re_1...``."""
        signs = self._random.randbytes(ID_SIGNS).translate(BYTES_TO_SIGNS)
        return f"{prefix}_1{signs.decode()}"

    def add_account(self, account: str) -> None:
        """Make a connected account known."""
        self._accounts.add(account)

    def knows(self, account: str) -> bool:
        """Return whether the account was added, or given a refund."""
        return account in self._accounts

    def shelf(self, account: str | None, *, livemode: bool) -> Shelf:
        """Return the shelf of one account (None: the platform) in one mode."""
        shelf = self._shelves.get((account, livemode))
        if shelf is None:
            shelf = Shelf(account, livemode)
            self._shelves[account, livemode] = shelf
        return shelf

    def add(
        self,
        shelf: Shelf,
        *,
        created: int,
        amount: int,
        currency: str,
        status: str,
        refund_id: str | None = None,
        instructions_email: str | None = None,
        charge: str = "",
        payment_intent: str = "",
        metadata: Mapping[str, str] | None = None,
        expires_at: int | None = None,
    ) -> Refund:
        """Put a refund on a shelf and return it.

        Raises:
            ValueError: The id is taken, or nobody can be asked for bank details.
        """
        if status == "requires_action" and instructions_email is None:
            raise ValueError(NEEDS_EMAIL)
        # Who is added in that state still has time, however long ago it began.
        now = self._clock.time()
        asked_at = created if created + EXPIRES_AFTER > now else int(now)
        refund_id = refund_id or self.draw_id("re")
        if refund_id in self._refunds:
            msg = f"there is a refund {refund_id!r} already"
            raise ValueError(msg)
        refund = Refund(
            refund_id,
            shelf,
            len(self._refunds),
            amount,
            currency,
            created,
            status,
            instructions_email,
            charge,
            payment_intent,
            dict(metadata) if metadata else None,
            asked_at,
            expires_at,
        )
        self._refunds[refund_id] = refund
        _place(shelf.refunds, refund)
        if charge:
            _place(shelf.by_charge.setdefault(charge, []), refund)
        if payment_intent:
            _place(shelf.by_intent.setdefault(payment_intent, []), refund)
        if shelf.account is not None:
            self._accounts.add(shelf.account)
        return refund

    def seed(self, shelf: Shelf, count: int, per_charge: int) -> list[str]:
        """Add refunds in ``requires_action`` and return their ids, oldest first."""
        now = int(self._clock.time())
        ids: list[str] = []
        currencies = tuple(MARKETS)
        currency, customer, related = currencies[0], 0, ""
        for number in range(count):
            if number % per_charge == 0:
                currency, customer = self._random.choice(currencies), number
                # A charge of its own is derived, which takes no memory.
                related = self.draw_id("") if per_charge > 1 else ""
            refund = self.add(
                shelf,
                # In the order of their age each is an append.
                created=now - SEEDED_SPAN + (number + 1) * SEEDED_SPAN // count,
                amount=self._random.randint(*MARKETS[currency].amounts),
                currency=currency,
                status="requires_action",
                instructions_email=f"customer{customer}@example.com",
                charge=related and f"ch{related}",
                payment_intent=related and f"pi{related}",
            )
            ids.append(refund.id)
        return ids

    def get(self, refund_id: str) -> Refund:
        """Return any refund, whatever its account and mode.

        Raises:
            KeyError: There is none of that id.
        """
        return self.as_of_now(self._refunds[refund_id])

    def look(self, refund_id: str) -> Refund | None:
        """Return any refund, whatever its account and mode, as it was last seen."""
        return self._refunds.get(refund_id)

    def find(self, shelf: Shelf, refund_id: str) -> Refund | None:
        """Return the refund if it stands on that shelf."""
        refund = self._refunds.get(refund_id)
        return refund if refund is not None and refund.shelf is shelf else None

    def cancel(self, refund: Refund) -> bool:
        """Cancel the refund if its state allows, and return whether it did.

        Only a refund in ``requires_action`` can be canceled; its money returns to
        the balance: https://docs.stripe.com/api/refunds/cancel
        """
        if refund.status != "requires_action":
            return False
        self.move(refund, "canceled")
        return True

    def step(self, refund: Refund, name: str) -> bool:
        """Let one of `STEPS` happen, and return whether it could."""
        possible, status = STEPS[name]
        if refund.status not in possible:
            return False
        self.move(refund, status)
        return True

    def move(self, refund: Refund, status: str) -> None:
        """Give the refund a status, and the marks that come with it.

        Raises:
            ValueError: It would be in ``requires_action``, and has no e-mail address.
        """
        if status == "requires_action":
            if refund.instructions_email is None:
                raise ValueError(NEEDS_EMAIL)
            # The customer is asked again, and has as long again.
            refund.asked_at, refund.expires_at = int(self._clock.time()), None
        refund.status = status
        # Another one each time the customer has been asked.
        refund.failure_transaction = (
            f"txn_{refund.suffix}{refund.asked_at:x}"
            if status in {"canceled", "failed"}
            else None
        )

    def page(self, shelf: Shelf, query: ListQuery) -> tuple[list[Refund], bool]:
        """Return one page, newest first, and whether more follow.

        https://docs.stripe.com/api/pagination
        """
        rows = self._rows(shelf, query)
        low, high = 0, len(rows)
        if query.created_from is not None:
            low = bisect_left(rows, query.created_from, key=_created)
        if query.created_to is not None:
            high = bisect_right(rows, query.created_to, key=_created)
        if query.starting_after is not None:
            high = min(high, bisect_left(rows, query.starting_after.age, key=_age))
        if query.ending_before is not None:
            low = max(low, bisect_right(rows, query.ending_before.age, key=_age))
            found = rows[low : min(high, low + query.limit)]
        else:
            found = rows[max(low, high - query.limit) : high]
        found.reverse()
        for refund in found:
            self.as_of_now(refund)
        return found, high - low > query.limit

    def as_of_now(self, refund: Refund) -> Refund:
        """Let the refund expire if its time has come.

        Whoever looks at a refund calls this, so that nobody has to wait for a time at
        which nobody may look.
        """
        if refund.status == "requires_action" and refund.deadline <= self._clock.time():
            self.move(refund, "failed")
        return refund

    def charged(self, shelf: Shelf, charge: str) -> list[Refund]:
        """Return the refunds of one charge, oldest first."""
        return self._related(shelf, shelf.by_charge.get(charge, []), charge, "ch")

    def intended(self, shelf: Shelf, payment_intent: str) -> list[Refund]:
        """Return the refunds of one payment intent, oldest first."""
        given = shelf.by_intent.get(payment_intent, [])
        return self._related(shelf, given, payment_intent, "pi")

    def _rows(self, shelf: Shelf, query: ListQuery) -> list[Refund]:
        if query.charge is None and query.payment_intent is None:
            return shelf.refunds
        if query.charge is None:
            return self.intended(shelf, query.payment_intent or "")
        rows = self.charged(shelf, query.charge)
        if query.payment_intent is None:
            return rows
        return [row for row in rows if row.payment_intent_id == query.payment_intent]

    def _related(
        self, shelf: Shelf, given: list[Refund], related: str, prefix: str
    ) -> list[Refund]:
        """Return the refunds that name the object, and the one derived from it."""
        rows = list(given)
        kind, _, suffix = related.partition("_")
        if kind != prefix:
            return rows
        for refund_prefix in ("re", "pyr"):
            refund = self.find(shelf, f"{refund_prefix}_{suffix}")
            if refund is not None and not (
                refund.charge if prefix == "ch" else refund.payment_intent
            ):
                insort(rows, refund, key=_age)
        return rows


def _place(rows: list[Refund], refund: Refund) -> None:
    if not rows or rows[-1].age < refund.age:
        rows.append(refund)
    else:
        insort(rows, refund, key=_age)
