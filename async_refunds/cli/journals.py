"""The journal of a run, as the commands that cancel have it."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

import msgspec

from async_refunds.journal import SqliteJournal

from .summary import close_command, resume_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_refunds.journal import Claim


class BoundedJournal(SqliteJournal):
    """A journal that gives out a limited number of refunds."""

    limit: int | None = None
    """How many it may still give out; None: all."""
    _claiming: asyncio.Lock | None = None

    async def claim(
        self, limits: Mapping[str | None, int]
    ) -> dict[str | None, list[Claim]]:
        """Give out the next open items of accounts, as far as the limit allows."""
        if self.limit is None:
            return await super().claim(limits)
        # One at a time: what one account does not need is left for the next one.
        if self._claiming is None:
            self._claiming = asyncio.Lock()
        async with self._claiming:
            given: dict[str | None, list[Claim]] = {}
            for account, limit in limits.items():
                given[account] = []
                if self.limit:
                    given |= await super().claim({account: min(limit, self.limit)})
                    self.limit -= len(given[account])
            return given


class OpenJournal(msgspec.Struct, frozen=True):
    """The journal of a run."""

    journal: BoundedJournal
    path: str
    """As the user typed it."""

    def resume(self, limit: int | None = None) -> str:
        """Return the command that continues the run, with so many refunds."""
        return resume_command(self.path, self.journal.run, limit)

    @property
    def close(self) -> str:
        """The command that sends nothing more of the run."""
        return close_command(self.path)

    @property
    def report(self) -> str:
        """The command that shows the results."""
        return shlex.join(["async-refunds", "report", self.path])
