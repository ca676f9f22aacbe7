"""The accounts that a worker holds: at work, idle, or about to be given back."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from async_refunds import telemetry

from . import notices

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.batch.execution import Execution
    from async_refunds.journal.postgres.leases import Leases

_LINGER = 1.0
"""Seconds for which an account without work is kept: more of it often follows. So long,
at most, what is added to one that waits for its last calls waits for a look at it."""


class HeldAccounts:
    """What a worker does with each account whose lease it holds.

    Args:
        leases: Which it holds.
        execution: Of the batch that works on them.
        clock: The event loop's time, in seconds.
    """

    def __init__(
        self, leases: Leases, execution: Execution, clock: Callable[[], float]
    ) -> None:
        self._leases = leases
        self._execution = execution
        self._clock = clock
        self._idle: dict[str | None, float] = {}  # and since when
        self._reopened: dict[str | None, float] = {}  # idle since then, and asked again
        self._leaving: dict[str | None, float] = {}  # and for how long nobody takes it
        self._draining: set[str | None] = set()
        self._refused: set[str | None] = set()  # of those that leave
        self._may_have_more = False
        self._looked_at = -math.inf  # for more of the accounts at work

    def at_work(self) -> list[str | None]:
        """Return the accounts that are neither idle nor about to be given back."""
        away = self._idle.keys() | self._leaving.keys() | self._draining
        return [account for account in self._leases.accounts if account not in away]

    @property
    def draining(self) -> int:
        """Accounts of which nothing more begins."""
        return len(self._draining)

    # ------------------------------------------------------------------- opening

    def open(self, account: str | None) -> None:
        """Work on an account that was just acquired."""
        self._forget(account)
        self._execution.open_account(account)

    def open_again(self) -> None:
        """Open what is held and not worked on.

        An account may be lost and won again before a result of the first time is
        refused. The batch drops it then, though the new lease is good.
        """
        for account in self.at_work():
            if not self._execution.works_on(account):
                self._execution.open_account(account)

    def note_more(self) -> None:
        """Note that there may be more of any account, before the next `release`."""
        self._may_have_more = True

    # -------------------------------------------------------------------- ending

    def decline(self, account: str | None) -> None:
        """Give back an account that was just acquired."""
        self._forget(account)
        self._leaving[account] = 0.0

    def drain(self, account: str | None) -> None:
        """Begin nothing more of an account, and give it back when its calls end."""
        self._draining.add(account)
        self._execution.drain_account(account)
        if not self._execution.works_on(account):  # it was idle, or lost and won again
            self._leaving.setdefault(account, 0.0)

    def drain_some(self, count: int) -> None:
        """Drain so many of the accounts at work."""
        held = self.at_work()
        for account in held[len(held) - count :]:
            self.drain(account)

    def keep_idle(self, account: str | None) -> bool:
        """Keep an account without work for a while, if it is not drained.

        Returns:
            Whether it is kept; one that is drained is about to be given back.
        """
        if account in self._draining:
            self._leaving[account] = 0.0
            return False
        self._idle[account] = self._reopened.pop(account, self._clock())
        return True

    def leave(
        self, account: str | None, wait: float = 0.0, *, refused: bool = False
    ) -> None:
        """Give back an account of which the batch does nothing more.

        Args:
            account: Which one.
            wait: Seconds for which nobody is to take it.
            refused: Whether its key was refused.
        """
        self._leaving[account] = wait
        if refused:
            self._refused.add(account)

    async def release(self) -> bool:
        """Give back the accounts of which nothing is left to do for now.

        Returns:
            Whether there were any.
        """
        now, held = self._clock(), set(self._leases.accounts)
        for account in (self._draining | self._reopened.keys()) - held:
            self._forget(account)  # it was lost
        for account, since in list(self._idle.items()):
            if now - since >= _LINGER:
                del self._idle[account]
                self._leaving[account] = 0.0
            elif self._may_have_more:
                del self._idle[account]
                self._reopened[account] = since
                self._execution.open_account(account)
        if self._may_have_more or now - self._looked_at >= _LINGER:
            self._may_have_more, self._looked_at = False, now
            self._execution.look_again()
        leaving = self._leaving.copy()
        left_open = await self._leases.release_all(leaving, refused=self._refused)
        if left_open and (said := notices.left_open(left_open, leaving)):
            telemetry.log(logging.WARNING, "%s", said)
        for account in leaving:
            self._forget(account)
        return bool(leaving)

    def _forget(self, account: str | None) -> None:
        self._idle.pop(account, None)
        self._reopened.pop(account, None)
        self._leaving.pop(account, None)
        self._draining.discard(account)
        self._refused.discard(account)
