"""The main job, on the emulator: cancel everything in a storm, then check the books."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from async_refunds.client import RefundsClient
from async_refunds.emulator import Emulator
from async_refunds.errors import RefundsError
from async_refunds.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from async_refunds.models import Attempt, Refund

# Many at once, each with short waits: a demonstration of what goes wrong in a week
# should not last one. The stalls last as long as an attempt may.
CONCURRENCY = 25
POLICY = RetryPolicy(deadline=10.0, initial_delay=0.05, max_delay=0.4)
ATTEMPT_TIMEOUT = 1.0
# How often to ask again about one refund, with its key, before giving up on it. At the
# default storm one call in a few hundred stays open, so this many never do.
ROUNDS = 20


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, from the client's side and from the emulator's."""

    refunds: int
    canceled: int
    """As the client reports."""
    canceled_exactly_once: int
    """As the emulator's books have it."""
    requests: int
    retries: int
    settled_by_a_read: int
    asked_again: int
    """Calls that ended open, and were repeated with the key from their error."""
    replays: int
    """Answers that the emulator had saved under a key."""
    faults: dict[str, int]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether both sides agree that each refund was canceled exactly once."""
        return self.refunds == self.canceled == self.canceled_exactly_once


class Demo:
    """One run of the demonstration.

    Args:
        refunds: How many to cancel.
        faults: The weather, as `Faults.load` takes it.
        seed: The same seed draws the same refunds and the same weather.

    Raises:
        ValueError: Weather that there is not.
    """

    def __init__(self, *, refunds: int, faults: str, seed: int) -> None:
        self._emulator = Emulator(seed=seed)
        self._ids = self._emulator.seed_refunds(refunds)
        self._emulator.faults.load(faults)
        self._attempts: list[Attempt] = []
        self._canceled: list[Refund] = []
        self._asked_again = 0
        self._random = Random(seed)  # noqa: S311 - a pause is no secret

    async def run(self, people: Console) -> DemoReport:
        """Cancel them all, with a progress bar for people, and return what happened."""
        began = time.perf_counter()
        waiting = iter(self._ids)
        async with (
            self._emulator.serve() as base_url,
            RefundsClient(
                "sk_test_demo",
                base_url=base_url,
                retry=POLICY,
                attempt_timeout=ATTEMPT_TIMEOUT,
                on_attempt=self._attempts.append,
                app_info="demo",
            ) as refunds,
        ):
            with _progress(people) as progress:
                bar = progress.add_task("canceling", total=len(self._ids))

                async def work() -> None:
                    for refund_id in waiting:
                        await self._insist(refunds, refund_id)
                        progress.advance(bar)

                await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return self._report(time.perf_counter() - began)

    async def _insist(self, refunds: RefundsClient, refund_id: str) -> None:
        key: str | None = None
        for again in range(1, ROUNDS + 1):
            try:
                refund = await refunds.cancel(refund_id, idempotency_key=key)
            except RefundsError as error:
                # The same key again: what did land is answered, and nothing done twice.
                key = error.idempotency_key
                self._asked_again += 1
                # The client gave up for a reason, such as its spent retry budget.
                await asyncio.sleep(POLICY.backoff(again, self._random.random()))
            else:
                self._canceled.append(refund)
                return

    def _report(self, seconds: float) -> DemoReport:
        books = self._emulator.books
        settled = sum(
            refund.last_response.attempts[-1].method == "GET"
            for refund in self._canceled
        )
        return DemoReport(
            refunds=len(self._ids),
            canceled=len({refund.id for refund in self._canceled}),
            canceled_exactly_once=sum(
                books.cancellations[refund_id] == 1 for refund_id in self._ids
            ),
            requests=len(self._attempts),
            retries=sum(attempt.slept > 0 for attempt in self._attempts),
            settled_by_a_read=settled,
            asked_again=self._asked_again,
            replays=books.replays,
            faults=dict(sorted(books.faults.items())),
            seconds=round(seconds, 2),
        )


def story(report: DemoReport) -> Iterator[str]:
    """Tell the report to people, a line at a time."""
    faults = ", ".join(f"{name} {count}" for name, count in report.faults.items())
    yield f"{report.canceled} of {report.refunds} refunds canceled"
    yield f"  requests         {report.requests}, of which {report.retries} retries"
    yield f"  settled by read  {report.settled_by_a_read}"
    yield f"  asked again      {report.asked_again}, with the same key"
    yield f"  replayed         {report.replays} answers saved under a key"
    yield f"  faults met       {sum(report.faults.values())} ({faults or 'none'})"
    yield f"  seconds          {report.seconds}"
    if report.good:
        yield "The emulator's books agree: each refund was canceled exactly once."
    else:
        yield (
            f"The emulator's books DISAGREE: {report.canceled_exactly_once} of "
            f"{report.refunds} were canceled exactly once."
        )


def _progress(people: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=people,
        transient=True,
        disable=not people.is_terminal,
    )
