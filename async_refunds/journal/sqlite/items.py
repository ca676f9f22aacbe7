"""What the operations of a journal do to its tables, within a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from async_refunds.errors import JournalError
from async_refunds.journal.base import Claim
from async_refunds.journal.facts import Facts
from async_refunds.journal.keys import derive_key

from .bulk import write_rows
from .errors import closed, damaged
from .open_items import OpenItems, open_accounts
from .rows import ITEM_COLUMNS, WRITTEN_COLUMNS, DamagedRowError, Item, checksum
from .schema import create, write_state

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from async_refunds.journal.base import Tally
    from async_refunds.results import CancelOutcome, CancelResult

    from .claim_pages import ClaimPages
    from .open_items import NextItem
    from .rows import RunState

_ADD = "INSERT OR IGNORE INTO items (refund_id, stripe_account, crc)"
_ADDED = "SELECT count(*), coalesce(sum(crc), 0) FROM items WHERE number > ?"
_ONE = f"SELECT {ITEM_COLUMNS} FROM items WHERE number = ?"  # noqa: S608 - our own names
# The row is there: of what is inserted only the number counts.
_WRITE = f"INSERT INTO items ({', '.join(WRITTEN_COLUMNS)}, number, refund_id)"
_WRITTEN = "ON CONFLICT (number) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in WRITTEN_COLUMNS
)
_OPEN = f"""SELECT {ITEM_COLUMNS} FROM items WHERE settled = 0 AND number > ?
    ORDER BY number LIMIT ?"""  # noqa: S608 - our own names
_PAGE = 1000  # rows that are settled at once: some milliseconds, and little memory
_TOO_MANY = 429


class Items:
    """The tables of an open journal, and the sums that go with each commit.

    Args:
        place: Its name.
        state: Of its run.
        pages: Of its claims.
        made: Whether the file has the tables yet.
        clock: Gives Unix seconds.
    """

    def __init__(
        self,
        place: str,
        state: RunState,
        pages: ClaimPages,
        *,
        made: bool,
        clock: Callable[[], float],
    ) -> None:
        self._place = place
        self._state = state
        self._pages = pages
        self._clock = clock
        self.made = made
        state.begin_batch()
        self.kept: Tally = state.tally
        """As of the last commit."""
        self.last_commit = state.commit
        """See `RunState.commit`."""
        self._closed = self.closed = state.closed
        """Whether the run takes no more items, as of the last commit."""
        self._counts = state.counts
        self._open_items = OpenItems(clock())
        self._claimed: dict[int, Item] = {}  # as written, of those that have facts
        # The checksums of those that were given out for the first time, by number.
        self._first: dict[int, int] = {}
        self._untold: set[int] = set()  # those given out that nothing is known of since
        self._at_work_since: float | None = None
        self._credentials = ""  # of the batch; empty if they may change

    def now(self) -> float:
        """Return Unix seconds."""
        return self._clock()

    def start(self, credentials: str) -> None:
        """Begin a batch: claims begin again with the oldest items."""
        self._credentials = credentials
        self._open_items.begin(self._clock())
        self._claimed.clear()
        self._first.clear()
        self._untold.clear()
        self._state.begin_batch()
        self._pages.begin()
        self._at_work_since = None

    # ----------------------------------------------------------- a transaction

    def begin(self, db: sqlite3.Connection) -> None:
        """Make the tables, if this is the first transaction."""
        if not self.made:
            create(db, self._state)

    def finish(self, db: sqlite3.Connection) -> None:
        """Write the sums, before the commit."""
        state, now = self._state, self._clock()
        state.commits += 1
        state.outcomes = msgspec.json.encode(self._counts).decode()
        state.note_untold(len(self._untold))
        if self._at_work_since is not None:
            state.seconds += max(0.0, now - self._at_work_since)
        self._at_work_since = now
        write_state(db, state)

    def committed(self) -> None:
        """Take what was written as kept."""
        self.made = True
        self.kept, self.last_commit = self._state.tally, self._state.commit
        self.closed = self._closed

    # -------------------------------------------------------------- operations

    def insert(self, db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert the rows of new items, those that are there already left out.

        Raises:
            JournalError: The run is closed.
        """
        if self._closed:
            raise closed(self._place, self._state.open)
        write_rows(db, _ADD, rows)

    def count_new(self, db: sqlite3.Connection) -> int:
        """Count the items inserted since the last time, and return how many."""
        ((count, total),) = db.execute(_ADDED, (self._state.items,))
        self._state.items += count
        self._state.open += count
        self._state.crc_sum += total
        added: int = count
        return added

    def add(self, db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add items, those that are there already left out."""
        self.insert(db, rows)
        self.count_new(db)

    def claim(
        self, db: sqlite3.Connection, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        """Give out the next open items of some accounts.

        What failed in an earlier batch comes last: a refund that Stripe refuses each
        time must not keep the others from their turn.
        """
        now = self._clock()
        self._note_credentials()
        again: list[Item] = []
        begun: list[str | None] = []
        claims: dict[str | None, list[Claim]] = {}
        for account, limit, rows in self._open_items.next(db, limits):
            given = self._claim_rows(account, rows, now, again, begun)
            if len(given) < limit:
                more = limit - len(given)
                rows_failed = self._open_items.next_failed(db, account, more, now)
                failed = [self._checked(row) for row in rows_failed]
                given += [self._claim_again(item, now) for item in failed]
                again += failed
            claims[account] = given
            self._untold.update([claim.number for claim in given])
        self._write(db, again)
        self._state.crc_sum += self._pages.write(db, begun)
        return claims

    def _note_credentials(self) -> None:
        """Note with which credentials the claims of this batch are sent."""
        state, mine = self._state, self._credentials
        # While nothing is open that another batch may have sent, its own do not matter.
        if not self._counts["unknown"]:
            state.note_credentials(mine)
        elif state.credentials != mine:
            state.note_credentials("")

    def _claim_rows(
        self,
        account: str | None,
        rows: list[NextItem],
        now: float,
        again: list[Item],
        begun: list[str | None],
    ) -> list[Claim]:
        """Give out items of an account.

        Args:
            account: ``None`` for the key's own.
            rows: The items.
            now: Unix seconds.
            again: Gets the items that have facts now, to be written.
            begun: Gets the account if its row in ``claims`` is to be written.
        """
        last, seed, first = self._pages.last(account), self._state.seed, 0
        same = bool(self._credentials)
        claims: list[Claim] = []
        for number, refund_id, settled, facts, crc in rows:
            if facts or number <= last or crc != checksum(refund_id, account):
                row = (number, refund_id, account, settled, 0.0)
                item = self._checked((*row, bytes.fromhex(facts) or None, crc))
                claims.append(self._claim_again(item, now))
                again.append(item)
                continue
            # For the first time: the row of its account tells that.
            self._first[number] = crc
            key = derive_key(seed, account, refund_id, 1)
            claims.append(
                Claim(number, refund_id, account, key, now, False, now, same)  # noqa: FBT003 - by place is faster: maybe_sent
            )
            first += 1
        if first:
            self._counts["unknown"] += first
            self._pages.add(account, rows[-1][0], first, now)
            begun.append(account)
        return claims

    def _claim_again(self, item: Item, now: float) -> Claim:
        self._claimed[item.number] = item
        if not item.facts.maybe_sent:
            self._rekey(item, now)
            return self._new_claim(item)
        claim = msgspec.structs.replace(
            self._new_claim(item),
            maybe_sent=True,
            key_unused_until=self._state.created_at,  # no key is older than the run
            same_credentials=bool(self._state.credentials),
        )
        # It is about to be sent again: that is what its age counts from.
        item.facts.key_created_at = now
        return claim

    def _new_claim(self, item: Item) -> Claim:
        """Return the claim of an item that got its key just now."""
        facts = item.facts
        assert facts.idempotency_key is not None  # noqa: S101 - it has one
        assert facts.key_created_at is not None  # noqa: S101 - the same
        return Claim(
            item.number,
            item.refund_id,
            item.stripe_account,
            facts.idempotency_key,
            facts.key_created_at,
            maybe_sent=False,
            key_unused_until=facts.key_created_at,
            same_credentials=bool(self._credentials),
        )

    def rekey(self, db: sqlite3.Connection, claim: Claim) -> Claim:
        """Give out the same item with a new key."""
        item = self._found(db, claim)
        if item.facts.settled:
            raise JournalError(
                f"item {claim.number} is settled: it gets no other idempotency key"
            )
        self._rekey(item, self._clock())
        self._write(db, [item])
        return self._new_claim(item)

    def give_back(self, db: sqlite3.Connection, claims: Sequence[Claim]) -> None:
        """Take back items that were never sent."""
        items: list[Item] = []
        for claim in claims:
            self._untold.discard(claim.number)
            item = self._found(db, claim)
            if not (claim.maybe_sent or item.facts.settled):
                before = item.facts.known
                item.facts.maybe_sent = False
                self._count(before, item.facts.known)
                items.append(item)
        self._write(db, items)

    def settle(
        self, db: sqlite3.Connection, known: Sequence[tuple[Claim, CancelResult]]
    ) -> None:
        """Keep what became of items."""
        now, state = self._clock(), self._state
        items: list[Item] = []
        for claim, result in known:
            self._untold.discard(claim.number)
            item = self._found(db, claim)
            if item.facts.settled:
                continue
            before = item.facts.known
            item.facts.learn(result, now, claimed_as_sent=claim.maybe_sent)
            self._close_and_count(item, before)
            items.append(item)
            for attempt in result.attempts:
                state.requests += attempt.sent
                state.rate_limited += attempt.status == _TOO_MANY
        self._write(db, items)
        for item in items:
            self._claimed.pop(item.number, None)

    def close(self, db: sqlite3.Connection) -> int:
        """Close the run: settle as failed what was not perhaps sent.

        Returns:
            How many items that were.
        """
        last, before = 0, self._state.open
        if not self._closed:
            self._closed = True
            self._state.close()
            write_state(db, self._state)  # a change, also if nothing is open
        while rows := db.execute(_OPEN, (last, _PAGE)).fetchall():
            last = rows[-1][0]
            items = [self._checked(row) for row in rows]
            for item in items:
                self._close_and_count(item, item.facts.known)
            self._write(db, [item for item in items if item.facts.settled])
        return before - self._state.open

    def accounts(self, db: sqlite3.Connection) -> list[str | None]:
        """Return the accounts that have open items."""
        return open_accounts(db)

    # ------------------------------------------------------------------- items

    def _checked(self, row: tuple[Any, ...]) -> Item:
        """Return the item of a row, with its key if an earlier batch gave it out."""
        try:
            item = Item.read(row)
        except DamagedRowError as error:
            raise damaged(self._place, str(error)) from error
        if not item.has_facts:
            claimed_at = self._pages.claimed_at(item.stripe_account, item.number)
            if claimed_at is not None:
                item.new_key(self._state.seed, claimed_at)
        return item

    def _found(self, db: sqlite3.Connection, claim: Claim) -> Item:
        """Return the item of a claim."""
        number = claim.number
        if (crc := self._first.get(number)) is not None:
            facts = Facts(
                maybe_sent=True,
                generation=1,
                idempotency_key=claim.idempotency_key,
                key_created_at=claim.key_created_at,
            )
            account = claim.stripe_account
            return Item(number, claim.refund_id, account, facts, identity=crc, crc=crc)
        item = self._claimed.get(number)
        if item is None:
            rows = db.execute(_ONE, (number,)).fetchall()
            if not rows:
                raise damaged(self._place, f"item {number} is missing")
            item = self._claimed[number] = self._checked(rows[0])
        return item

    def _rekey(self, item: Item, now: float) -> None:
        before = item.facts.known
        item.new_key(self._state.seed, now)
        self._count(before, item.facts.known)

    def _close_and_count(self, item: Item, before: CancelOutcome | None) -> None:
        """Count what is known of an open item now; in a closed run a no is its end."""
        if self._closed:
            item.facts.close(item.refund_id, self._clock())
        self._count(before, item.facts.known)
        self._state.open -= item.facts.settled

    def _count(self, before: CancelOutcome | None, after: CancelOutcome | None) -> None:
        if before is not None:
            self._counts[before] -= 1
        if after is not None:
            self._counts[after] += 1

    def _write(self, db: sqlite3.Connection, items: list[Item]) -> None:
        change = -sum([item.crc for item in items])
        rows = [item.row() for item in items]
        self._state.crc_sum += change + sum([item.crc for item in items])
        write_rows(db, _WRITE, rows, _WRITTEN)
        for item in items:
            if self._first.pop(item.number, None) is not None:
                self._pages.leave(item.stripe_account, item.number)
