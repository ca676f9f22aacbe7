"""The rows of a journal, each with a checksum over all that it says.

SQLite's own check finds a damaged page structure, but not a flipped bit within a value,
which would cancel a refund that is not in the input.
"""

from __future__ import annotations

import secrets
import zlib
from collections import Counter
from typing import Any, Self

import msgspec

from async_refunds.journal.base import Record, Run, Tally
from async_refunds.journal.facts import Facts
from async_refunds.journal.keys import DERIVATION, derive_key
from async_refunds.results import CancelOutcome  # noqa: TC001 - a struct's field

_SEED = 16  # bytes
# Stand among the options of the run.
_CREDENTIALS = "async_refunds.credentials"
_UNTOLD, _UNCOUNTED = "async_refunds.untold", "async_refunds.uncounted"
_CLOSED = "async_refunds.closed"

_encode = msgspec.msgpack.Encoder().encode


class DamagedRowError(Exception):
    """A row is not as it was written."""


def checksum(*values: object) -> int:
    """Return the checksum of the values of a row."""
    return zlib.crc32(_encode(values))


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


class RunState(msgspec.Struct):
    """The one row of ``run``: what it is about, and sums over its items."""

    base_url: str
    livemode: int
    options: str
    """JSON: those of the run, and what `credentials`, `untold`, `uncounted`,
    `closed` are."""
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
    def commit(self) -> tuple[bytes, int]:
        """Which run it is, by its seed, and how many commits changed it."""
        return self.seed, self.commits

    @property
    def run(self) -> Run:
        """What the journal is about."""
        options = self._options()
        for ours in (_CREDENTIALS, _UNTOLD, _UNCOUNTED, _CLOSED):
            options.pop(ours, None)
        return Run(self.base_url, bool(self.livemode), options)

    @property
    def credentials(self) -> str:
        """The digest of those that all open items were sent with, if any was.

        Empty if it is not known, or if there were several.
        """
        found: str = self._options().get(_CREDENTIALS, "")
        return found

    def note_credentials(self, digest: str) -> None:
        """Set `credentials`."""
        self._note(_CREDENTIALS, digest, "")

    @property
    def untold(self) -> int:
        """How many items are given out by the batch that has told of no request yet."""
        found: int = self._options().get(_UNTOLD, 0)
        return found

    def note_untold(self, items: int) -> None:
        """Set `untold`."""
        self._note(_UNTOLD, items, 0)

    def begin_batch(self) -> None:
        """Note that a batch begins: one that has left items untold did not end."""
        if self.untold:
            self._note(_UNCOUNTED, True, False)  # noqa: FBT003 - the value itself
            self.note_untold(0)

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent but what was perhaps sent."""
        return bool(self._options().get(_CLOSED))

    def close(self) -> None:
        """Set `closed`, for good."""
        self._note(_CLOSED, True, False)  # noqa: FBT003 - the value itself

    def _note(self, name: str, value: object, absent: object) -> None:
        options = self._options()
        if value != options.get(name, absent):
            self.options = msgspec.json.encode({**options, name: value}).decode()

    def _options(self) -> dict[str, Any]:
        return msgspec.json.decode(self.options, type=dict[str, Any])

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
        ours = self._options()
        return Tally(
            open=self.open,
            outcomes=+outcomes,
            requests=self.requests,
            rate_limited=self.rate_limited,
            uncounted=bool(ours.get(_UNTOLD) or ours.get(_UNCOUNTED)),
            seconds=self.seconds,
        )
