"""The task that reads the input of a batch into its journal."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from . import source

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Journal
    from async_refunds.results import CancelRequest

    from .accounts import Accounts
    from .recorder import ResultRecorder
    from .source import Requests


class InputLoader:
    """Reads the input into the journal, which makes it wait for room.

    Args:
        requests: The input.
        journal: Gets what is an id of a refund.
        accounts: Learn of which account there are items.
        recorder: Hands out the results of what is no id.
        stripe_account: That of requests that name none.
        on_broken: Called with what the input raised, after what was read of it.
    """

    def __init__(
        self,
        requests: Requests,
        journal: Journal,
        accounts: Accounts,
        recorder: ResultRecorder,
        *,
        stripe_account: str | None,
        on_broken: Callable[[BaseException], object],
    ) -> None:
        self._requests = requests
        self._journal = journal
        self._accounts = accounts
        self._recorder = recorder
        self._stripe_account = stripe_account
        self._on_broken = on_broken

    async def run(self) -> None:
        """Read the input until it ends or breaks off."""
        async with aclosing(source.read_chunks(self._requests)) as chunks:
            async for chunk in chunks:
                await self._accounts.wait_for_room()
                await self._add(chunk.requests)
                if chunk.error is not None:
                    self._on_broken(chunk.error)

    async def _add(self, requests: list[str | CancelRequest]) -> None:
        good: list[CancelRequest] = []
        for request in requests:
            try:
                good.append(source.checked(request, self._stripe_account))
            except (TypeError, ValueError) as error:
                await self._recorder.wait_for_room()
                self._recorder.hand_out(source.refused(request, error))
        await self._journal.add(good)
        accounts = {request.stripe_account for request in good}
        self._accounts.extend(accounts, len(good))
