"""Which accounts this worker holds: nobody else sends for them meanwhile.

A lease ends by the database's clock; what the worker goes by ends no later, on its own
monotonic clock, counted from when a renewal was sent. So no clock has to be right.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import msgspec

from .connection import Database, Link, describe
from .lease_statements import ACQUIRE, ACQUIRE_THESE, ACQUIRED, RELEASE, RENEW

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from types import TracebackType

    from .connection import Connection

TTL = 30.0
"""Seconds after which the account of a worker that was killed is free."""
DEADLINE = 120.0
"""Seconds that a request of a former holder may still be under way."""
SUSPICIOUS = 3
"""After so many unclean takeovers in turn a holder claims fewer at once: then few are
claimed together with the item that ends whoever has it."""
_RENEWALS = 3  # within each TTL, so that one may fail
_CLOSES_WITHIN = 5.0  # seconds
_PATIENCE = 10.0
"""Seconds for an answer at least: with less a slow database would never answer."""

_logger = logging.getLogger("async_refunds")


def monotonic() -> float:
    """Return seconds that go on while the machine is suspended, where that is known."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease(msgspec.Struct, frozen=True):
    """The right to work on an account until it ends, is released, or is taken over."""

    account: str | None
    """The connected account, ``None`` for the key's own."""
    token: str
    """A UUID of this holding: a counter would repeat after a failover."""
    rate: float | None
    """Requests a second at which the last holder was."""
    takeovers: int = 0
    """How many holders in turn ended without releasing it."""
    former: str | None = None
    """Who held it last, if that is known and did not release it."""
    left: int = 0
    """How many refunds that one has left open, counted up to a thousand."""


class Leases:
    """The accounts of one scope that this worker holds, renewed by a task.

    Args:
        database: Where the leases are.
        scope: Whose limits: ``tenant base_url mode``.
        owner: How the worker is shown.
        ttl: Seconds for which a lease is good without a renewal.
        deadline: Seconds that a request may be under way: so long after the lease of a
            worker that was killed has ended, no refund gets a new idempotency key.
        credentials: The digest of those that it sends with; empty if they may change.
        clock: Gives monotonic seconds.
        on_lost: Called with each account that somebody else has taken over.
    """

    def __init__(
        self,
        database: Database,
        scope: str,
        owner: str,
        *,
        ttl: float = TTL,
        deadline: float = DEADLINE,
        credentials: str = "",
        clock: Callable[[], float] = monotonic,
        on_lost: Callable[[str | None], object] | None = None,
    ) -> None:
        self.scope, self.owner, self.ttl = scope, owner, ttl
        self.grace = ttl + deadline
        """Seconds after an unclean takeover in which no refund gets a new key."""
        self.on_lost = on_lost
        self._credentials = credentials
        self.takeovers = 0
        """How many accounts it took from a holder that had not released them."""
        self._clock = clock
        self._link = Link(database, patience=max(ttl, _PATIENCE))
        self._held: dict[str | None, Lease] = {}
        self._good_until: dict[str | None, float] = {}
        self._rates: dict[str | None, float] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    # ------------------------------------------------------ what a batch asks

    def may_send(self, stripe_account: str | None) -> bool:
        """Tell whether certainly nobody else sends for an account now."""
        return self._clock() < self._good_until.get(stripe_account, 0.0)

    def rate(self, stripe_account: str | None) -> float | None:
        """Return the requests a second at which its former holder was."""
        lease = self._held.get(stripe_account)
        return None if lease is None else lease.rate

    def note_rate(
        self, stripe_account: str | None, rate: float, *, found: bool = True
    ) -> None:
        """Note where an account's pace is: kept with the next renewal.

        Args:
            stripe_account: The account. Nothing happens if it is not held.
            rate: Requests a second.
            found: Whether the next holder may begin there. If not, it is only shown.
        """
        if stripe_account in self._held:
            self._rates[stripe_account] = rate if found else -rate

    @property
    def accounts(self) -> list[str | None]:
        """The accounts that it holds."""
        return list(self._held)

    def get(self, stripe_account: str | None) -> Lease | None:
        """Return the lease of an account, ``None`` if it is not held."""
        return self._held.get(stripe_account)

    # ------------------------------------------------------------------- changes

    async def acquire(
        self, limit: int, *, only: Iterable[str | None] = ()
    ) -> list[Lease]:
        """Take some accounts that nobody holds and that have something to do.

        Args:
            limit: How many at most.
            only: Of these; they are taken also where they were to wait.

        Raises:
            JournalError: The tables are of another release, or it was closed.
        """
        token, sent_at, recalled = str(uuid4()), 0.0, False
        wanted = [account or "" for account in only]
        statement = ACQUIRE_THESE if wanted else ACQUIRE
        values = {
            "scope": self.scope,
            "owner": self.owner,
            "token": token,
            "ttl": self.ttl,
            "grace": self.grace,
            "limit": limit,
            "accounts": wanted,
            "credentials": self._credentials,
        }

        async def work(connection: Connection, in_doubt: bool) -> list[Any]:  # noqa: FBT001 - as Link calls it
            nonlocal sent_at, recalled
            if in_doubt:
                found = await connection.execute(ACQUIRED, values)
                if rows := await found.fetchall():
                    recalled = True
                    return rows
            sent_at = self._clock()
            held = [account or "" for account in self._held]
            cursor = await connection.execute(
                statement.encode(), {**values, "held": held}
            )
            return await cursor.fetchall()

        leases: list[Lease] = []
        for account, rate, takeovers, taken_over, *left in await self._link.repeat(
            work
        ):
            self.takeovers += taken_over
            lease = Lease(account or None, token, rate, takeovers, *left)
            self._held[lease.account] = lease
            leases.append(lease)
            if not recalled:
                self._good_until[lease.account] = sent_at + self.ttl
        if recalled:  # it was taken nobody knows when, and may have ended
            await self.renew()
        return [lease for lease in leases if self._held.get(lease.account) is lease]

    async def release(
        self,
        stripe_account: str | None,
        *,
        rate: float | None = None,
        not_before: float = 0.0,
        retry_later: bool = True,
    ) -> None:
        """Give an account back: the next worker may have it at once.

        Args:
            stripe_account: The account. Nothing happens if it is not held.
            rate: Requests a second where its pace is, for the next holder.
            not_before: Seconds for which nobody takes it: its key was refused.
            retry_later: Whether what was left open with a result waits for a while,
                longer each time.

        Raises:
            JournalError: The tables are of another release, or it was closed.
        """
        if rate is not None:
            self.note_rate(stripe_account, rate)
        await self.release_all({stripe_account: not_before}, retry_later=retry_later)

    async def release_all(
        self,
        accounts: Mapping[str | None, float],
        *,
        refused: Collection[str | None] = (),
        retry_later: bool = True,
    ) -> dict[str | None, float]:
        """Give accounts back; see `release`.

        Args:
            accounts: The accounts, and for how many seconds nobody takes each.
            refused: Those that wait because the key was refused: not for a worker that
                has another one, where it is known which one this is.
            retry_later: See `release`.

        Returns:
            Those of which something is left open with a result, and the seconds until
            that is asked for again.

        Raises:
            JournalError: The tables are of another release, or it was closed.
        """
        leases: list[tuple[Lease, float | None, float]] = []
        for account in sorted(accounts, key=lambda account: account or ""):
            lease = self._held.pop(account, None)
            self._good_until.pop(account, None)
            rate = self._rates.pop(account, None)
            if lease is not None:
                leases.append((lease, rate, accounts[account]))
        if not leases:
            return {}
        values = {
            "scope": self.scope,
            "accounts": [lease.account or "" for lease, _, _ in leases],
            "tokens": [lease.token for lease, _, _ in leases],
            "paces": [rate for _, rate, _ in leases],
            "not_before": [seconds for _, _, seconds in leases],
            "refused": [
                self._credentials or None if lease.account in refused else None
                for lease, _, _ in leases
            ],
            "credentials": self._credentials,
            "retry_later": retry_later,
            "suspicious": SUSPICIOUS,
        }

        async def work(connection: Connection, _: bool) -> list[Any]:  # noqa: FBT001 - as Link calls it
            return await (await connection.execute(RELEASE, values)).fetchall()

        released = await self._link.repeat(work)
        return {account or None: left for account, left in released if left is not None}

    def lose(self, lease: Lease) -> None:
        """Note that somebody else has taken an account over."""
        if self._held.get(lease.account) is not lease:
            return
        del self._held[lease.account]
        self._good_until.pop(lease.account, None)
        self._rates.pop(lease.account, None)
        _logger.warning(
            "%s: another worker has taken it over",
            lease.account or "the key's own account",
        )
        if self.on_lost is not None:
            self.on_lost(lease.account)

    async def renew(self) -> None:
        """Renew all leases now.

        One that ended, and that nobody has taken since, lives on.
        """
        leases = sorted(self._held.values(), key=lambda lease: lease.account or "")
        if not leases:
            return
        values = {
            "scope": self.scope,
            "ttl": self.ttl,
            "accounts": [lease.account or "" for lease in leases],
            "tokens": [lease.token for lease in leases],
            "paces": [self._rates.get(lease.account) for lease in leases],
        }
        sent_at = 0.0

        async def work(connection: Connection, _: bool) -> list[Any]:  # noqa: FBT001 - as Link calls it
            nonlocal sent_at
            sent_at = self._clock()
            return await (await connection.execute(RENEW, values)).fetchall()

        good = {
            account or None: good for account, good in await self._link.repeat(work)
        }
        for lease in leases:
            if lease.account not in good:
                self.lose(lease)
            elif good[lease.account] and self._held.get(lease.account) is lease:
                self._good_until[lease.account] = sent_at + self.ttl

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Renew the leases from now on."""
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew_on())

    async def _renew_on(self) -> None:
        closing = asyncio.ensure_future(self._closing.wait())
        while True:
            await asyncio.wait([closing], timeout=self.ttl / _RENEWALS)
            if closing.done():
                return
            try:
                await self.renew()
            except Exception as error:  # noqa: BLE001 - the leases end by themselves
                _logger.error(  # noqa: TRY400 - the text may hold too much
                    "leases could not be renewed: %s", describe(error)
                )

    async def close(self, *, within: float = _CLOSES_WITHIN) -> None:
        """Release what is held, and close. Takes no longer than so many seconds."""
        self._closing.set()
        until = self._clock() + within
        releasing = asyncio.ensure_future(
            self.release_all(dict.fromkeys(self.accounts, 0.0))
        )
        await asyncio.wait([releasing], timeout=within)
        await self._link.close(within=max(0.0, until - self._clock()))
        releasing.cancel()
        await asyncio.gather(releasing, return_exceptions=True)
        if self._renewing is not None:
            await asyncio.wait([self._renewing])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
