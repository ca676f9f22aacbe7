"""Results on their way to the caller: the journal has each before it is handed out."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING

from async_refunds.journal import LeaseLostError

from .endpoint import event_or

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Claim, Journal
    from async_refunds.results import CancelResult


# Seconds. Where the last commit is no longer ago than the first, more results are about
# to come, and gather for at most so long as the second: what a commit costs, most of it
# in the kernel, is then shared by three times as many as if they did not.
_BUSY, _GATHER = 0.1, 0.04


class ResultRecorder:
    """Records results, many with one commit, then queues them for the caller.

    Args:
        journal: Where they are kept.
        limit: With so many that the caller has not taken, `wait_for_room` waits: a
            caller that is slow slows the batch down. A result that is known never
            waits for room.
        on_lost: Called with the accounts whose leases are lost: what is known of their
            items is neither kept nor told.
        on_kept: Called with the claims whose results need no attention any more.
    """

    def __init__(
        self,
        journal: Journal,
        limit: int,
        *,
        on_lost: Callable[[frozenset[str | None]], object],
        on_kept: Callable[[list[Claim]], object] | None = None,
    ) -> None:
        self._on_lost = on_lost
        self._on_kept = on_kept
        self._clock = asyncio.get_running_loop().time
        self._journal = journal
        self._limit = limit
        # With so many results there is no waiting for more: workers would wait too.
        self._enough = max(1, limit // 2)
        self.outcomes: Counter[str] = Counter()
        """How many refunds came to which outcome, of those recorded."""
        self._unrecorded: list[tuple[Claim, CancelResult]] = []
        self._handed_over: list[tuple[Claim, CancelResult]] = []
        self._kept_at = -math.inf
        self._arrived = asyncio.Event()  # results, and then enough of them
        self._finishing = False
        self._recorded: asyncio.Queue[CancelResult | None] = asyncio.Queue()
        self._untaken = 0
        self._room = asyncio.Event()
        self._room.set()

    def record(self, claim: Claim, result: CancelResult) -> None:
        """Keep a result, then hand it out."""
        self._unrecorded.append((claim, result))
        if len(self._unrecorded) in {1, self._enough}:
            self._arrived.set()
        self._count_untaken(1)

    def hand_over(self, claim: Claim, known: CancelResult) -> None:
        """Leave an item to the next holder of its account, and tell nobody."""
        self._handed_over.append((claim, known))
        self._arrived.set()

    def hand_out(self, result: CancelResult) -> None:
        """Hand out a result that no journal keeps, of what is no refund's id."""
        self._count_untaken(1)
        self._publish(result)

    async def run(self) -> None:
        """Record what arrives until `finish` is called and all is recorded.

        Raises:
            JournalError: The journal could not be written.
        """
        while self._unrecorded or self._handed_over or not self._finishing:
            await self._gather()
            if self._unrecorded:
                await self._settle()
            if self._handed_over:
                await self._leave()

    async def _settle(self) -> None:
        batch, self._unrecorded = self._unrecorded, []
        lost: frozenset[str | None] = frozenset()
        try:
            await self._journal.settle(batch)
        except LeaseLostError as error:
            lost = error.accounts
            self._on_lost(lost)
        except BaseException:
            self._unrecorded = batch + self._unrecorded
            raise
        self._kept_at = self._clock()
        for claim, result in batch:
            if claim.stripe_account in lost:
                self._count_untaken(-1)
            else:
                self._publish(result)
        self._note_kept(batch)

    async def _leave(self) -> None:
        left, self._handed_over = self._handed_over, []
        try:
            await self._journal.hand_over(left)
        except LeaseLostError as error:
            self._on_lost(error.accounts)
        except BaseException:
            self._handed_over = left + self._handed_over
            raise
        self._note_kept(left)

    def _note_kept(self, known: list[tuple[Claim, CancelResult]]) -> None:
        if self._on_kept is not None:
            self._on_kept([claim for claim, _ in known])

    async def _gather(self) -> None:
        """Wait for a result, and a moment longer while others come with it."""
        if not (self._unrecorded or self._handed_over):
            self._arrived.clear()
            await self._arrived.wait()
        if (
            len(self._unrecorded) < self._enough
            and not self._finishing
            and self._clock() - self._kept_at < _BUSY
        ):
            self._arrived.clear()
            await event_or(self._arrived, _GATHER)

    def finish(self) -> None:
        """Say that no more results come: let `run` return."""
        self._finishing = True
        self._arrived.set()

    def close(self) -> None:
        """Let `take` return ``None`` after what is queued."""
        self._recorded.put_nowait(None)

    @property
    def has_recorded(self) -> bool:
        """Whether `take` has something to return at once."""
        return not self._recorded.empty()

    async def take(self) -> CancelResult | None:
        """Return the next recorded result; ``None`` if no more comes."""
        result = await self._recorded.get()
        if result is not None:
            self._count_untaken(-1)
        return result

    def unrecorded(self) -> list[CancelResult]:
        """Return the results that the journal has not kept."""
        return [result for _, result in self._unrecorded + self._handed_over]

    async def wait_for_room(self) -> None:
        """Wait until the caller has taken enough for another item to begin."""
        await self._room.wait()

    def lift_limit(self) -> None:
        """Let nothing wait for room any more: the batch ends."""
        self._limit = -1
        self._room.set()

    def _publish(self, result: CancelResult) -> None:
        self.outcomes[result.outcome] += 1
        self._recorded.put_nowait(result)

    def _count_untaken(self, more: int) -> None:
        self._untaken += more
        if self._limit < 0 or self._untaken < self._limit:
            self._room.set()
        else:
            self._room.clear()
