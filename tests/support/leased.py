"""A journal in memory whose leases a test gives and takes away, and a batch on it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from async_refunds.batch.execution import Execution
from async_refunds.journal import LeaseLostError, MemoryJournal
from async_refunds.journal.postgres.missing import explain_lost
from async_refunds.results import CancelRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

    from async_refunds import CancelResult, RefundsClient
    from async_refunds.journal import Claim


class LeasedJournal(MemoryJournal):
    """Holds the leases that a test gives it.

    Claims, results and new keys of any other account are refused, as a database refuses
    those that come with an old token.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(window=100_000, clock=clock)
        self.leases = self
        self.on_lost: Callable[[str | None], object] | None = None
        self.held: dict[str | None, float | None] = {}
        """The accounts that it holds, and the rate that their last holder had found."""
        self.silent: set[str | None] = set()
        """Accounts whose leases could not be renewed in time: nothing may be sent."""
        self.answers: deque[Callable[[], bool]] = deque()
        """They say whether something may be sent, one each time; then the leases do."""
        self.given_back: list[Claim] = []
        self.settled: list[CancelResult] = []
        self.handed_over: list[CancelResult] = []
        self.claimed: list[str] = []
        """The ids that were given out."""
        self.answering = asyncio.Event()
        """Not set while the database is away."""
        self.answering.set()

    def may_send(self, stripe_account: str | None) -> bool:
        if self.answers:
            return self.answers.popleft()()
        return stripe_account in self.held and stripe_account not in self.silent

    def rate(self, stripe_account: str | None) -> float | None:
        return self.held.get(stripe_account)

    def hold(self, account: str | None, rate: float | None = None) -> None:
        """Give it the lease of an account: each open item may be claimed again."""
        self.held[account] = rate
        self._pending.pop(account, None)
        for (each, refund_id), number in self._numbers.items():
            if each == account:
                self._put(account, number, refund_id)

    def take_away(self, account: str | None) -> None:
        """Let somebody else have the lease, unnoticed for now."""
        del self.held[account]

    def notice(self, account: str | None) -> None:
        """Find out that the lease is lost, as a renewal does."""
        assert self.on_lost is not None
        self.on_lost(account)

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        await self.answering.wait()
        held = {each: limit for each, limit in limits.items() if each in self.held}
        claims = await super().claim(held)
        for each in claims.values():
            self.claimed += [claim.refund_id for claim in each]
        return claims

    async def rekey(self, claim: Claim) -> Claim:
        if claim.stripe_account not in self.held:
            raise LeaseLostError([claim.stripe_account])
        return await super().rekey(claim)

    async def give_back(self, claims: Sequence[Claim]) -> None:
        await self.answering.wait()
        kept = [claim for claim in claims if claim.stripe_account in self.held]
        self.given_back += kept
        await super().give_back(kept)
        self._refuse(claims)

    async def settle(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        await self.answering.wait()
        kept = [pair for pair in known if pair[0].stripe_account in self.held]
        self.settled += [result for _, result in kept]
        await super().settle(kept)
        self._refuse([claim for claim, _ in known])

    async def hand_over(self, known: Sequence[tuple[Claim, CancelResult]]) -> None:
        await self.answering.wait()
        self.handed_over += [
            result for claim, result in known if claim.stripe_account in self.held
        ]
        self._refuse([claim for claim, _ in known])

    async def explain_missing(self, *, stopped: bool) -> str | None:
        lost = {account for account, _ in self._numbers} - self.held.keys()
        return explain_lost(lost) if lost else None

    def _refuse(self, claims: Sequence[Claim]) -> None:
        lost = {claim.stripe_account for claim in claims} - self.held.keys()
        if lost:
            raise LeaseLostError(lost)

    async def enqueue(self, ids: Iterable[str], account: str | None) -> None:
        await self.add([CancelRequest(each, account) for each in ids])


class LongBatch:
    """A batch that goes on until it is stopped, and what it has told."""

    def __init__(self, refunds: RefundsClient, journal: LeasedJournal) -> None:
        self.journal = journal
        self.results: list[CancelResult] = []
        self.idle: list[str | None] = []
        """The accounts of which it said that nothing is left."""
        self.rates: dict[str | None, float | None] = {}
        self.closings: dict[str | None, object] = {}
        self.more = False
        """Whether there is more by the time that it says so."""
        self._told = asyncio.Event()
        self._refunds = refunds
        self.execution = self._execution()

    def _execution(self, **options: Any) -> Execution:  # noqa: ANN401 - passed on
        defaults: dict[str, Any] = {"concurrency": 20, "rate": None}
        defaults |= {"patience": 60.0, "timeout": None}
        return Execution(
            self._refunds,
            (),
            self.journal,
            log_untaken=False,
            on_idle=self._note_idle,
            **(defaults | options),
        )

    def configure(self, **options: Any) -> None:  # noqa: ANN401 - of the execution
        """Make it anew with these options."""
        self.execution = self._execution(**options)

    def open(self, account: str | None, rate: float | None = None) -> None:
        """Win the lease of an account, and begin with it."""
        self.journal.hold(account, rate)
        self.execution.open_account(account)

    def _note_idle(self, account: str | None) -> None:
        self.idle.append(account)
        self.rates[account] = self.execution.rate_of(account)
        self.closings[account] = self.execution.closing_of(account)
        if self.more:
            self.execution.open_account(account)
            self.more = False
        self._told.set()

    async def run(self) -> None:
        async for result in self.execution.results():
            self.results.append(result)
            self._told.set()

    async def until_idle(self, count: int = 1) -> None:
        """Wait until it has said so many times that nothing is left of an account."""
        await self._until(lambda: len(self.idle) >= count)

    async def until_told(self, count: int) -> None:
        """Wait for so many results."""
        await self._until(lambda: len(self.results) >= count)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._told.clear()
            await self._told.wait()

    @property
    def outcomes(self) -> dict[str, str]:
        """Outcome by the id; an id that is told twice is an error."""
        found = {result.refund_id: result.outcome for result in self.results}
        assert len(found) == len(self.results)
        return dict(found)


@asynccontextmanager
async def long_batch(
    refunds: RefundsClient,
    journal: LeasedJournal | None = None,
    **options: Any,  # noqa: ANN401 - of the execution
) -> AsyncGenerator[LongBatch]:
    """Run a batch while the caller does something, then stop it."""
    batch = LongBatch(refunds, journal or LeasedJournal())
    batch.configure(**options)
    batch.journal.begin()
    running = asyncio.create_task(batch.run())
    await asyncio.sleep(0)
    try:
        yield batch
    finally:
        batch.execution.stop()
        await running
        batch.journal.end()
