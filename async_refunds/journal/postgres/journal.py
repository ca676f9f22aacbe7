"""A journal in PostgreSQL: what several workers on several machines share."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Self

import msgspec
import psycopg

from async_refunds.errors import JournalError
from async_refunds.journal.base import (
    BatchGuard,
    LeaseLostError,
    Run,
    RunClosedError,
    check_limits,
)

from .connection import Database, Link, describe
from .given_out import ClaimedRow, GivenOut
from .leases import SUSPICIOUS, TTL, Lease, Leases
from .missing import RUN_DELETED, MissingItems, explain_lost
from .reader import FleetReader
from .rows import KnownRow, LeasedClaim, UnsentRow, known_row, unsent_row
from .run_accounts import RunAccounts
from .statements import (
    ACCOUNTS,
    ADD,
    CLAIM,
    CLAIMED,
    ENSURE_RUN,
    GIVE_BACK,
    HAND_OVER,
    REKEY,
    RUN,
    RUNS,
    SETTLE,
)
from .writer import Operation, Writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from async_refunds.journal.base import Claim, Record, Tally
    from async_refunds.results import CancelRequest, CancelResult

MOST_CLAIMS = 8
"""After so many claims in turn without a result an item is dead: whoever has it ends.
It is not claimed again until somebody asks for that."""
_CLOSES_WITHIN = 5.0  # seconds


class PostgresJournal(BatchGuard):
    """A `Journal` of one scope. It writes for accounts whose lease is held, no others.

    `PostgresJournal.open` makes one for a run, to which a batch adds what it is given.
    Made otherwise it is a worker's: it adds nothing, and its leases are to be closed.

    When a method has returned, what it did is committed; while the database is away it
    waits, however long.

    Args:
        database: Where the tables are.
        leases: Of the worker, closed by it.
        run: What it is about, where it is for one run.
        run_id: Of that run; without it items of all open runs are claimed.

    Raises:
        JournalError: From any method, if something cannot be written, or after `close`.
        LeaseLostError: An account was taken over.
    """

    def __init__(
        self,
        database: Database,
        leases: Leases,
        *,
        run: Run | None = None,
        run_id: str | None = None,
    ) -> None:
        self.leases = leases
        self._database = database
        self._run, self._run_id = run, run_id
        super().__init__()
        self._link = Link(database)
        self._writer = Writer(self._link, leases.scope)
        self.fenced = 0
        """How many operations on an account were refused: somebody else has it now."""
        self._claims = 0
        self._given_out = GivenOut()
        self._accounts = RunAccounts(leases, self._writer)
        self._missing = MissingItems(database, run_id)
        self._closed = False

    @classmethod
    async def open(
        cls,
        conninfo: str,
        run: Run,
        *,
        name: str,
        tenant: str = "default",
        ttl: float = TTL,
    ) -> Self:
        """Open a run, or begin one, to work on it from this process alone.

        Other runs are left alone. It takes the lease of each account of which it claims
        items, so no worker of the fleet sends for it meanwhile.

        Args:
            conninfo: The database, as libpq has it.
            run: What to begin, or to go on with.
            name: Of the run.
            tenant: Whose key it is, if there are several.
            ttl: Seconds for which accounts stay taken if this process is killed.

        Raises:
            JournalError: The tables are of another release, the database cannot be
                reached, or the run is on another server or mode.
        """
        database = Database(conninfo)
        options = msgspec.json.encode(run.options).decode()
        try:
            connection = await database.connect()
            try:
                cursor = await connection.execute(
                    ENSURE_RUN,
                    {
                        "name": name,
                        "base_url": run.base_url,
                        "livemode": run.livemode,
                        "tenant": tenant,
                        "options": options,
                    },
                )
                ((run_id,),) = await cursor.fetchall()
                cursor = await connection.execute(RUN, {"run_id": run_id})
                ((scope, kept),) = await cursor.fetchall()
            finally:
                await connection.close()
        except psycopg.Error as error:
            raise JournalError(
                f"the journal cannot be opened: {describe(error)}"
            ) from None
        owner = f"{socket.gethostname()} {os.getpid()}"
        leases = Leases(database, scope, owner, ttl=ttl)
        await leases.start()
        run = msgspec.structs.replace(run, options=kept)
        return cls(database, leases, run=run, run_id=run_id)

    @property
    def run(self) -> Run | None:
        """What it is about: the run that was opened; ``None`` for a worker's."""
        return self._run

    @property
    def transactions(self) -> int:
        """How many statements were carried out so far."""
        return self._writer.transactions

    def now(self) -> float:
        """Return Unix seconds by the database's clock."""
        return self._given_out.now()

    def begin(self, credentials: str = "") -> None:
        """Begin a batch; see `Journal.begin`.

        Raises:
            JournalError: Another batch uses this object.
        """
        super().begin(credentials)
        self._accounts.begin()
        self._missing.begin()

    # --------------------------------------------------------------- operations

    async def add(self, requests: Sequence[CancelRequest]) -> None:
        """Add these items to the run that was opened.

        Raises:
            JournalError: They are none of Stripe's, no run was opened, or somebody
                has deleted it.
        """
        if self._run_id is None:
            raise JournalError(
                "a worker adds no items: enqueue them, or open a run with "
                "PostgresJournal.open"
            )
        if requests:
            values = {
                "run_id": self._run_id,
                "ids": [request.refund_id for request in requests],
                "given": [request.stripe_account for request in requests],
            }
            added = await self._writer.do(Operation(ADD, values))
            if not added:
                raise JournalError(RUN_DELETED)
            ((_, now),) = added
            self._missing.note_added(now)

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        """Give out the next open items of some accounts; see `Journal.claim`.

        Returns:
            The items of each account that is held; the others are left out.

        Raises:
            ValueError: A limit below 1.
        """
        check_limits(limits)
        claims: dict[str | None, list[Claim]] = {}
        if self._run_id is not None:
            await self._accounts.take(limits)
            claims = {account: [] for account in limits}
        self._given_out.forget_all_but(self.leases)
        wanted: dict[str | None, tuple[Lease, int]] = {}
        for account, limit in limits.items():
            if (lease := self.leases.get(account)) is not None:
                claims[account] = []
                wanted[account] = (lease, self._page(lease, limit))
        while wanted:
            wanted = await self._claim(wanted, claims)
        return claims

    async def rekey(self, claim: Claim) -> Claim:
        """Give out the same item with a new key, which is kept.

        Waits while a former holder of the account may have a request under way.

        Raises:
            LeaseLostError: The account was taken over, or the item is not there any
                more as it was claimed.
            RunClosedError: The run is closing, or closed.
        """
        claim = _leased(claim)
        number = self._next_claim()
        values = {
            "account": claim.stripe_account or "",
            "token": claim.token,
            "run_id": claim.run_id,
            "refund_id": claim.refund_id,
            "generation": claim.generation,
            "claim_number": number,
            "grace": self.leases.grace,
            "credentials": self._credentials or None,
        }
        while rows := await self._writer.do(Operation(REKEY, values)):
            ((wait, claimed_at, closing),) = rows
            if closing:
                raise RunClosedError
            if claimed_at is not None:
                same = bool(self._credentials)
                return self._given_out.next_key(
                    claim, claimed_at, number, same_credentials=same
                )
            if not wait:
                break
            await asyncio.sleep(wait)
        raise self._lost([(claim.stripe_account, claim.token)])

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Take back items that were never sent; the next holder gets them.

        Raises:
            LeaseLostError: Accounts were taken over. The others' are taken back.
        """
        leased = [_leased(claim) for claim in claims]
        await self._write(GIVE_BACK, leased, [unsent_row(claim) for claim in leased])

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Keep what became of items. An item that is settled stays as it is.

        Raises:
            LeaseLostError: Accounts were taken over. The others' are kept.
        """
        leased = [(_leased(claim), result) for claim, result in known]
        rows = [known_row(claim, result) for claim, result in leased]
        await self._write(SETTLE, [claim for claim, _ in leased], rows)

    async def hand_over(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        """Leave items that were sent, and came to no end, to the next holder.

        Their requests are counted, and their claims are not: an item is dead after
        many claims whose holders came to no end, and this one does.

        Raises:
            LeaseLostError: Accounts were taken over. The others' are left.
        """
        leased = [(_leased(claim), result) for claim, result in known]
        rows = [known_row(claim, result) for claim, result in leased]
        await self._write(HAND_OVER, [claim for claim, _ in leased], rows)

    async def accounts(self) -> list[str | None]:
        """Return the accounts that have open items, ``None`` for the key's own.

        Of a worker's journal those that it holds.
        """
        if self._run_id is None:
            return self.leases.accounts
        values = {"run_id": self._run_id}
        ((now, timeline, accounts),) = await self._writer.do(
            Operation(ACCOUNTS, values)
        )
        self._missing.note_found(now, timeline)
        return [account or None for account in accounts]

    async def explain_missing(self, *, stopped: bool) -> str | None:
        """Tell which items came to no result; see `Journal.explain_missing`.

        Items that others have added after this batch did for the last time are not
        missed.
        """
        lost = self._accounts.lost
        if stopped:
            return explain_lost(lost) if lost else None
        return await self._missing.explain(self._accounts.tokens, lost)

    # ------------------------------------------------------------------- claims

    def _page(self, lease: Lease, limit: int) -> int:
        if self._run_id is not None or lease.takeovers < SUSPICIOUS:
            return limit
        # A quarter each time: it is one before an innocent item counts as dead.
        return max(1, limit >> 2 * (lease.takeovers - SUSPICIOUS + 1))

    async def _claim(
        self,
        wanted: dict[str | None, tuple[Lease, int]],
        claims: dict[str | None, list[Claim]],
    ) -> dict[str | None, tuple[Lease, int]]:
        """Claim once, and return what is to be claimed again to fill the pages."""
        number = self._next_claim()
        pages = [
            (account or "", most, self._given_out.cursor(lease))
            for account, (lease, most) in wanted.items()
        ]
        values = {
            "accounts": [account or "" for account in wanted],
            "tokens": [lease.token for lease, _ in wanted.values()],
            "wanted": msgspec.json.encode(pages).decode(),
            "run_id": self._run_id,
            "claim_number": number,
            "grace": self.leases.grace,
            "most_claims": MOST_CLAIMS,
            "credentials": self._credentials or None,
        }
        rows = await self._writer.do(Operation(CLAIM, values, recall=CLAIMED))
        await self._learn_runs({row[1] for row in rows if row[1] is not None})
        missing: dict[str | None, int] = {}
        for account, *item in rows:
            if item[0] is not None:
                lease, _ = wanted[account or None]
                claim = self._given_out.give_out(lease, number, ClaimedRow(*item))
                if claim is None:
                    missing[lease.account] = missing.get(lease.account, 0) + 1
                else:
                    claims[lease.account].append(claim)
        held = {row[0] or None for row in rows}
        if len(held) < len(wanted):
            leases = [
                lease for lease, _ in wanted.values() if lease.account not in held
            ]
            self._lost((lease.account, lease.token) for lease in leases)
            for lease in leases:
                claims.pop(lease.account, None)
        return {each: (wanted[each][0], most) for each, most in missing.items()}

    async def _learn_runs(self, run_ids: set[str]) -> None:
        """Read the seeds of runs that are new to it."""
        if unknown := self._given_out.unknown_runs(run_ids):
            rows = await self._writer.do(Operation(RUNS, {"runs": list(unknown)}))
            self._given_out.learn_runs(rows)

    def _next_claim(self) -> int:
        self._claims += 1
        return self._claims

    # ------------------------------------------------------------------- writing

    async def _write(
        self,
        statement: str,
        claims: Sequence[LeasedClaim],
        rows: Sequence[KnownRow | UnsentRow],
    ) -> None:
        """Write rows of claims.

        Raises:
            LeaseLostError: Accounts were taken over. The others' rows are written.
        """
        if not rows:
            return
        held = {
            (account or None, token)
            for account, token in await self._writer.do(
                Operation(statement, {}, rows=rows)
            )
        }
        self._given_out.take_back(claims)
        if lost := {(claim.stripe_account, claim.token) for claim in claims} - held:
            raise self._lost(lost)

    def _lost(self, leases: Iterable[tuple[str | None, str]]) -> LeaseLostError:
        accounts: set[str | None] = set()
        for account, token in leases:
            self.fenced += 1
            accounts.add(account)
            lease = self.leases.get(account)
            if lease is not None and lease.token == token:
                self.leases.lose(lease)
        return LeaseLostError(accounts)

    # ------------------------------------------------------------------ reading

    def tally(self) -> Tally:
        """Count the items. Blocks while they are read."""
        return self._reader().tally()

    def records(self) -> Iterator[Record]:
        """Yield what is known of each item, by number. Blocks for each page."""
        return self._reader().records()

    def _reader(self) -> FleetReader:
        return FleetReader(self._database, scope=self.leases.scope, run_id=self._run_id)

    async def close(self, *, within: float = _CLOSES_WITHIN) -> None:
        """Keep what is not kept yet, and release what was opened with it.

        Args:
            within: Seconds for the writes that wait, if the database is away. Who waits
                for one then gets a `JournalError`.
        """
        if self._closed:
            return
        self._closed = True
        await self._writer.close(within=within)
        if self._run_id is not None:
            await self.leases.close(within=within)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _leased(claim: Claim) -> LeasedClaim:
    assert isinstance(claim, LeasedClaim)  # noqa: S101 - it gives out no others
    return claim
