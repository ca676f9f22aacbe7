"""The rows of a journal, each with a checksum over all that it says.

SQLite's own check finds a damaged page structure, but not a flipped bit within a value,
which would cancel a refund that is not in the input.
"""

from __future__ import annotations

import secrets
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import msgspec

from async_refunds.journal.base import Record, Run, Tally
from async_refunds.journal.keys import DERIVATION, derive_key
from async_refunds.models import id_of
from async_refunds.protocol.redaction import scrub
from async_refunds.results import CancelOutcome  # noqa: TC001 - a struct's field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_refunds.models import Refund
    from async_refunds.results import CancelResult

_LONGEST = 500  # characters of an error's text; Stripe's are a sentence or two
_SEED = 16  # bytes

_encode = msgspec.msgpack.Encoder().encode


class DamagedRowError(Exception):
    """A row is not as it was written."""


def checksum(*values: object) -> int:
    """Return the checksum of the values of a row."""
    return zlib.crc32(_encode(values))


class Facts(msgspec.Struct, array_like=True, gc=False):
    """What is known of an item. A row has them as one value, MessagePack's array.

    One value is bound and read faster than twenty columns are, and its checksum needs
    no second encoding.
    """

    settled: bool = False
    maybe_sent: bool = False
    generation: int = 0
    """How many keys it had."""
    idempotency_key: str | None = None
    key_created_at: float | None = None
    attempts: int = 0
    outcome: CancelOutcome | None = None
    status: str | None = None
    amount: int | None = None
    currency: str | None = None
    created: int | None = None
    charge: str | None = None
    payment_intent: str | None = None
    failure_balance_transaction: str | None = None
    request_id: str | None = None
    error: str | None = None
    seconds: float | None = None
    known_at: float | None = None

    @property
    def failed_at(self) -> float:
        """When it failed, if it was asked for and failed, and is open; else 0."""
        if self.outcome != "failed" or self.settled or not self.attempts:
            return 0.0
        return self.known_at or 0.0

    @property
    def known(self) -> CancelOutcome | None:
        """What became of it; ``unknown`` if a key may have been sent since."""
        if self.maybe_sent and self.outcome in {None, "failed"}:
            return "unknown"
        return self.outcome

    def learn(self, result: CancelResult, now: float, *, claimed_as_sent: bool) -> None:
        """Take over what a batch found out.

        Args:
            result: What became of it. What it does not say stays as it was.
            now: Unix seconds.
            claimed_as_sent: Whether its key may have been sent before that batch.
        """
        error, key = result.error, result.idempotency_key
        # After a definite no the next claim makes a new key: Stripe may have saved the
        # answer to this one. But if nothing was sent now, what an earlier process
        # sent with it may still land.
        refused = result.outcome == "failed" and not (key is None and claimed_as_sent)
        self.outcome, self.settled = result.outcome, result.settled
        self.maybe_sent = not refused
        self.idempotency_key = key or self.idempotency_key
        self.attempts += len(result.attempts)
        for attempt in result.attempts:
            self.request_id = attempt.request_id or self.request_id
        self.error = None if error is None else _text(error)
        self.seconds, self.known_at = float(result.seconds), float(now)
        refund = result.refund or getattr(error, "refund", None)
        if refund is not None:
            self._see(refund)

    def _see(self, refund: Refund) -> None:
        # Whatever a server puts into an answer has to fit into a row.
        self.amount, self.created = _number(refund.amount), _number(refund.created)
        status, self.currency, charge, payment_intent, transaction = _words(
            refund.status,
            refund.currency,
            id_of(refund.charge),
            id_of(refund.payment_intent),
            id_of(refund.failure_balance_transaction),
        )
        self.status = status or self.status
        self.charge = charge or self.charge
        self.payment_intent = payment_intent or self.payment_intent
        self.failure_balance_transaction = (
            transaction or self.failure_balance_transaction
        )


_decode = msgspec.msgpack.Decoder(Facts).decode


class Item(msgspec.Struct, gc=False):
    """A row of ``items``: one refund of one account."""

    number: int
    refund_id: str
    stripe_account: str | None
    facts: Facts
    identity: int
    """The checksum of the id and the account: that of a row without facts."""
    crc: int
    """The checksum of the row as it was written: over the identity, then the facts.
    Without the number, which SQLite gives a new row; that none is missing is checked
    for the table as a whole."""

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Self:
        """Return the item of a row, whose columns are `ITEM_COLUMNS`.

        Raises:
            DamagedRowError: It is not what was written.
        """
        number, refund_id, stripe_account, settled, failed_at, facts, crc = row
        identity = checksum(refund_id, stripe_account)
        known = Facts()
        sound = identity == crc
        if facts is not None:
            # Without the first check, no bytes at all would match.
            sound = bool(facts) and type(facts) is bytes
            sound = sound and zlib.crc32(facts, identity) == crc
            known = _decode(facts) if sound else known
        if not sound or (settled, failed_at) != (known.settled, known.failed_at):
            raise DamagedRowError(f"item {number} does not match its checksum")
        return cls(number, refund_id, stripe_account, known, identity, crc)

    @property
    def has_facts(self) -> bool:
        """Whether anything is known of it but that it may have been given out."""
        return self.facts.generation > 0 or self.facts.outcome is not None

    def new_key(self, seed: bytes, now: float) -> None:
        """Give it the next key, or the same one again if that was never sent."""
        facts = self.facts
        if not facts.generation or facts.maybe_sent or facts.outcome is not None:
            facts.generation += 1
        facts.idempotency_key = derive_key(
            seed, self.stripe_account, self.refund_id, facts.generation
        )
        facts.key_created_at, facts.maybe_sent = now, True

    def row(self) -> tuple[Any, ...]:
        """Return what to write: `WRITTEN_COLUMNS`, the number, and the id."""
        facts = self.facts
        # Of these types alone, sqlite3 looks for no adapter, which takes longer than
        # all else (https://docs.python.org/3/library/sqlite3.html#sqlite3-adapters).
        encoded = bytearray(_encode(facts))
        self.crc = zlib.crc32(encoded, self.identity)
        settled = 1 if facts.settled else 0
        return (
            settled,
            facts.failed_at,
            encoded,
            self.crc,
            self.number,
            self.refund_id,
        )

    def record(self) -> Record:
        """Return it as a reader sees it."""
        facts = self.facts
        return Record(
            number=self.number,
            refund_id=self.refund_id,
            stripe_account=self.stripe_account,
            outcome=facts.known,
            status=facts.status,
            idempotency_key=facts.idempotency_key,
            attempts=facts.attempts,
            request_id=facts.request_id,
            error=facts.error,
            seconds=facts.seconds,
            settled=facts.settled,
            amount=facts.amount,
            currency=facts.currency,
            created=facts.created,
            charge=facts.charge,
            payment_intent=facts.payment_intent,
            failure_balance_transaction=facts.failure_balance_transaction,
            known_at=facts.known_at,
        )


WRITTEN_COLUMNS = ("settled", "failed_at", "facts", "crc")
"""What changes in a row. The first two, which are in the facts too, are for queries."""
ITEM_COLUMNS = ", ".join(("number", "refund_id", "stripe_account", *WRITTEN_COLUMNS))


def new_row(refund_id: str, stripe_account: str | None) -> tuple[Any, ...]:
    """Return what to insert of a new item: its id, its account, its checksum."""
    return refund_id, stripe_account, checksum(refund_id, stripe_account)


def _number(value: int) -> int | None:
    """Return a number that SQLite can hold."""
    return value if abs(value) < 2**63 else None


def _words(*values: str | None) -> Sequence[str | None]:
    """Return words of Stripe's, with nothing in them that must not be kept."""
    # One look at all of them: nearly always there is nothing to find.
    text = " ".join([value for value in values if value])
    if len(text) <= _LONGEST and scrub(text) == text:
        return values
    return [None if value is None else scrub(value)[:_LONGEST] for value in values]


def _text(error: Exception) -> str:
    text = scrub(str(error))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return text.encode(errors="replace").decode()


class RunState(msgspec.Struct):
    """The one row of ``run``: what it is about, and sums over its items."""

    base_url: str
    livemode: int
    options: str
    """JSON."""
    seed: bytes
    """Of the keys."""
    created_at: float
    """Unix seconds: no key is older. 0 if that is not known."""
    derivation: int = DERIVATION
    commits: int = 0
    """How many changed the file. Of two states the one with more is the later one."""
    items: int = 0
    open: int = 0
    outcomes: str = "{}"
    """JSON: how many items are known by which outcome, without those never sent."""
    crc_sum: int = 0
    """The sum of the checksums of all items and claims."""
    requests: int = 0
    rate_limited: int = 0
    """Of the requests, those answered 429."""
    seconds: float = 0.0
    """For which batches were at work."""
    crc: int = 0

    @classmethod
    def begin(cls, run: Run, now: float) -> Self:
        """Return the state of a run without items.

        Raises:
            TypeError: The run's options are not what JSON has.
        """
        options = msgspec.json.encode(run.options).decode()
        seed = secrets.token_bytes(_SEED)
        return cls(run.base_url, int(run.livemode), options, seed, float(now))

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Self:
        """Return the state that a row holds.

        Raises:
            DamagedRowError: It is not what was written.
        """
        state = cls(*row)
        if state.crc != state._checksum():
            raise DamagedRowError("the run does not match its checksum")
        return state

    def row(self) -> tuple[Any, ...]:
        """Return what to write, with the checksum."""
        self.crc = self._checksum()
        return msgspec.structs.astuple(self)

    def _checksum(self) -> int:
        return checksum(*msgspec.structs.astuple(self)[:-1])

    @property
    def run(self) -> Run:
        """What the journal is about."""
        options = msgspec.json.decode(self.options, type=dict[str, Any])
        return Run(self.base_url, bool(self.livemode), options)

    @property
    def counts(self) -> Counter[CancelOutcome]:
        """How many items are known by which outcome."""
        return Counter(msgspec.json.decode(self.outcomes, type=dict[Any, int]))

    @property
    def tally(self) -> Tally:
        """How far the run is."""
        outcomes: Counter[CancelOutcome | None] = Counter()
        outcomes.update(self.counts)
        outcomes[None] = self.items - outcomes.total()
        return Tally(
            open=self.open,
            outcomes=+outcomes,
            requests=self.requests,
            rate_limited=self.rate_limited,
            seconds=self.seconds,
        )
