"""The workers of a batch, each of which makes one call at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from async_refunds.journal import LeaseLostError

from .worker import CancelWorker

if TYPE_CHECKING:
    from async_refunds.client import RefundsClient
    from async_refunds.journal import Journal
    from async_refunds.results import CancelResult

    from .item import Item
    from .recorder import ResultRecorder
    from .scheduler import Scheduler


class WorkerPool:
    """Takes items from the scheduler, and has recorded what became of each.

    Args:
        refunds: The client.
        journal: Where new keys are kept.
        scheduler: Gives out the items.
        recorder: Records the results.
        patience: Seconds for which a refund is tried again.
        timeout: Seconds for each call; ``None`` is the client's own.
        kept: Whether the journal outlasts the batch; see `CancelWorker`.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        journal: Journal,
        scheduler: Scheduler,
        recorder: ResultRecorder,
        *,
        patience: float,
        timeout: float | None,
        kept: bool,
    ) -> None:
        self._scheduler = scheduler
        self._recorder = recorder
        self._worker = CancelWorker(
            refunds,
            journal,
            scheduler,
            clock=asyncio.get_running_loop().time,
            hand_over=self._hand_over,
            patience=patience,
            timeout=timeout,
            kept=kept,
        )
        self._calling: set[asyncio.Task[None]] = set()
        self._interrupted = False

    async def work(self) -> None:
        """Work in a task of its own, until there are no more items."""
        while True:
            await self._recorder.wait_for_room()
            if (item := await self._scheduler.next_item()) is None:
                return
            await self._process(item)

    def interrupt(self) -> None:
        """End the calls under way: their outcome is unknown.

        Those of accounts that are drained are left to the next holder.
        """
        self._interrupted = True
        for task in self._calling:
            task.cancel()

    async def _process(self, item: Item) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a worker is one
        self._calling.add(task)
        try:
            result = await self._worker.process(item)
        except LeaseLostError as lost:
            self._scheduler.accounts.drop(lost.accounts)
            self._scheduler.release(item)
            return
        except BaseException as error:
            # What is known of the item is kept, whatever ended its call.
            known = self._worker.last_known(item)
            is_ours = isinstance(error, asyncio.CancelledError) and self._interrupted
            if known is None:
                self._scheduler.return_claim(item)
            elif not is_ours:
                self._record(item, known)
            elif (left := self._worker.end_interrupted(item, known)) is not None:
                self._record(item, left)
            if not is_ours:
                raise
            task.uncancel()
            return
        finally:
            self._calling.discard(task)
        if result is not None:
            self._record(item, result)

    def _record(self, item: Item, result: CancelResult) -> None:
        if self._scheduler.record_result(item):
            self._recorder.record(item.claim, result)

    def _hand_over(self, item: Item, known: CancelResult) -> None:
        if self._scheduler.record_result(item):
            self._recorder.hand_over(item.claim, known)
