"""The accounts of a batch: they come and go, with their leases where there are some."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from async_refunds.journal import Claim
    from async_refunds.protocol.classification import Classification

    from .account_queue import AccountQueue
    from .claim_rounds import ClaimRounds, WantedClaims


class Accounts:
    """The accounts that a batch works on.

    Args:
        new_queue: Makes the queue of an account.
        rounds: In which they claim.
        on_idle: Makes accounts come and go. Called with one that then is forgotten: the
            journal has nothing more of it, or nothing of it can be canceled for now.
        on_forgotten: Called after one was forgotten.
    """

    def __init__(
        self,
        new_queue: Callable[[str | None], AccountQueue],
        rounds: ClaimRounds,
        *,
        on_idle: Callable[[str | None], object] | None,
        on_forgotten: Callable[[], object],
    ) -> None:
        self.queues: dict[str | None, AccountQueue] = {}
        """Of each account."""
        self._new_queue = new_queue
        self._rounds = rounds
        self._on_idle = on_idle
        self._on_forgotten = on_forgotten

    def extend(self, accounts: Iterable[str | None], count: int = 0) -> None:
        """Note that the journal has got items of these accounts, at most so many."""
        self._rounds.ahead += count
        for account in accounts:
            queue = self.queues.get(account)
            if queue is None:
                queue = self.queues[account] = self._new_queue(account)
            queue.extend()
            self._rounds.want(queue)

    def open(self, account: str | None) -> None:
        """Work on an account whose lease this process holds, or has got more of it.

        One that was dropped begins anew once its last call has ended. One that is
        drained goes on draining.
        """
        queue = self.queues.get(account)
        if queue is not None and queue.dropped:
            queue.reopening = True
        elif queue is None or not queue.draining:
            self.extend([account])

    def look_again(self) -> None:
        """Claim again of the accounts that had no more: others may have added some.

        One that claims just now may have missed these, too.
        """
        for queue in self.queues.values():
            claims, ending = queue.claims, queue.dropped or queue.draining
            if (claims.exhausted or claims.asked) and not ending:
                self.extend([queue.account])

    def works_on(self, account: str | None) -> bool:
        """Tell whether an account is open: neither forgotten nor dropped since."""
        queue = self.queues.get(account)
        return queue is not None and (queue.reopening or not queue.dropped)

    def found_rate(self, account: str | None) -> float | None:
        """Return the rate that the pace of an account has found, if any."""
        queue = self.queues.get(account)
        return None if queue is None else queue.found_rate

    def closing_of(self, account: str | None) -> Classification[Any] | None:
        """Return the reply after which nothing of an account can be canceled."""
        queue = self.queues.get(account)
        return None if queue is None else queue.closed_by

    # --------------------------------------------------------------------- ending

    def drop(self, accounts: Iterable[str | None]) -> None:
        """Forget accounts whose leases are lost. Another process goes on with them.

        A call under way ends without another request, and its result is not told.
        """
        for account in accounts:
            queue = self.queues.get(account)
            if queue is not None:
                queue.drop()
                self.forget_if_idle(queue)

    def drain(self, account: str | None) -> None:
        """Begin nothing more of an account; see what is under way to its end.

        One that was dropped and was to begin anew does not.
        """
        queue = self.queues.get(account)
        if queue is not None and queue.dropped:
            queue.reopening = False
        elif queue is not None and not queue.draining:
            self._rounds.give_back(queue, queue.drain())
            self.forget_if_idle(queue)

    def drain_closed(self, queue: AccountQueue) -> None:
        """Drain an account that was closed, if it may come again.

        Nothing of it is worth a claim before its lease is taken anew.
        """
        if self._on_idle is not None:
            self.drain(queue.account)

    def take_back_if_ending(self, queue: AccountQueue) -> None:
        """Remove the claims that came after an account was dropped or drained."""
        if queue.dropped:
            queue.drop()
        elif queue.draining:
            self._rounds.give_back(queue, queue.drain())

    def forget_if_idle(self, queue: AccountQueue) -> None:
        """Forget an account of which all is kept, and no more is there."""
        if self._on_idle is None or self._rounds.stopped or not queue.idle:
            return
        if not queue.dropped:
            self._on_idle(queue.account)
        if queue.idle:  # still: there may be more of it by now
            queue.scheduled_at = math.inf
            self._rounds.forget(queue)
            del self.queues[queue.account]
            self._on_forgotten()
            if queue.reopening:
                self.open(queue.account)

    # --------------------------------------------------------------------- claims

    async def claims_wanted(self) -> list[WantedClaims]:
        """Wait until accounts want claims, or return some; nothing if it is stopped."""
        return await self._rounds.wanted(self.queues)

    def add_claims(self, wanted: WantedClaims, claims: list[Claim]) -> None:
        """Take what the journal gave out for an account."""
        queue = self.queues[wanted.account]
        queue.add_claims(claims, limit=wanted.limit, version=wanted.version)
        self._rounds.note_claimed(len(claims), self.queues)
        self.take_back_if_ending(queue)
        if queue.claims.hungry:
            self._rounds.want(queue)
        self.forget_if_idle(queue)

    def claims_kept(self, claims: Iterable[Claim]) -> None:
        """Note that the journal has kept what became of claims, or lost their lease."""
        touched: set[AccountQueue] = set()
        for claim in claims:
            queue = self.queues[claim.stripe_account]
            queue.unkept -= 1
            touched.add(queue)
        for queue in touched:
            self.forget_if_idle(queue)

    def take_returned(self) -> list[Claim]:
        """Remove and return the claims that the journal is to take back."""
        return self._rounds.take_returned()

    def unsent(self) -> list[Claim]:
        """Return the claims that no worker has taken, those to be returned too."""
        queues = self.queues.values()
        pending = [claim for queue in queues for claim in queue.claims.pending]
        return self._rounds.returned + pending

    async def wait_for_room(self) -> None:
        """Wait until the journal is no longer too far ahead of what is sent."""
        await self._rounds.wait_for_room()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is claimed."""
        return self._rounds.stopped
