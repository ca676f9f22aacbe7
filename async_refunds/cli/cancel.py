"""Cancel the refunds named on the command line, and account for every one."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from async_refunds.errors import (
    OutcomeUnknownError,
    RefundNotCancelableError,
    RefundsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from async_refunds.client import RefundsClient
    from async_refunds.models import Attempt, Refund

STOPPING = (
    "interrupted: nothing more is begun, what is under way comes to its end "
    "(interrupt again to report it as unknown)"
)

CANCELED = frozenset({"canceled", "already_canceled"})
"""The outcomes that leave the refund as it was asked for."""


class CancelResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one refund."""

    refund_id: str
    stripe_account: str | None
    outcome: str
    """``canceled``, ``already_canceled``, ``not_cancelable``, ``failed`` (nothing was
    canceled), or ``unknown``."""
    status: str | None = None
    idempotency_key: str | None
    """None if nothing was sent. To ask again with where the outcome is unknown."""
    attempts: int | None = 0
    """Requests sent; None if nobody can tell."""
    request_id: str | None = None
    error: str | None = None


class Cancellations:
    """A bounded number of cancels at a time, which a signal can end early.

    The first SIGINT or SIGTERM lets what is under way come to its end and starts
    nothing more; the second one stops waiting, and reports as unknown what was sent.

    Args:
        refunds: The client.
        report: Told of each result as it comes.
        say: Told what people should know meanwhile.
        stripe_account: The connected account, for the report.
        timeout: Seconds for each refund.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        report: Callable[[CancelResult], object],
        say: Callable[[str], object],
        *,
        stripe_account: str | None,
        timeout: float | None,
    ) -> None:
        self._refunds = refunds
        self._report = report
        self._say = say
        self._account = stripe_account
        self._timeout = timeout
        self._stopping = False
        self._workers: list[asyncio.Task[None]] = []
        self.outcomes: Counter[str] = Counter()
        """How many refunds came to which outcome."""

    @contextlib.contextmanager
    def interruptible(self) -> Generator[None]:
        """Take the signals, until all that is known has been told."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            with contextlib.suppress(NotImplementedError):  # Windows has none
                loop.add_signal_handler(number, self._interrupt)
        try:
            yield
        finally:
            for number in signals:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)

    async def run(self, refund_ids: Sequence[str], *, concurrency: int) -> None:
        """Cancel them all, or report what kept one from it."""
        waiting = iter(refund_ids)
        self._workers = [
            asyncio.create_task(self._work(waiting))
            for _ in range(min(concurrency, len(refund_ids)))
        ]
        ended = await asyncio.gather(*self._workers, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):  # a fault of ours, never of a refund
                raise error
        for refund_id in waiting:
            self._end(refund_id, None, "failed", error="interrupted, nothing was sent")

    def _interrupt(self) -> None:
        if self._stopping:
            for worker in self._workers:
                worker.cancel()
            return
        self._stopping = True
        self._say(STOPPING)

    async def _work(self, waiting: Iterator[str]) -> None:
        while not self._stopping:
            refund_id = next(waiting, None)
            if refund_id is None:
                return
            await self._cancel(refund_id)

    async def _cancel(self, refund_id: str) -> None:
        key = secrets.token_hex(16)
        try:
            refund = await self._refunds.cancel(
                refund_id, idempotency_key=key, timeout=self._timeout
            )
        except RefundsError as error:
            self._end_badly(refund_id, key, error)
        except asyncio.CancelledError:
            self._end(refund_id, key, "unknown", attempts=None, error="interrupted")
            raise
        else:
            attempts = refund.last_response.attempts
            self._end(refund_id, key, "canceled", refund=refund, attempts=attempts)

    def _end_badly(self, refund_id: str, key: str, error: RefundsError) -> None:
        refund: Refund | None = None
        text: str | None
        outcome, text = "failed", str(error)
        if isinstance(error, OutcomeUnknownError):
            outcome, refund = "unknown", error.refund
        elif isinstance(error, RefundNotCancelableError):
            refund = error.refund
            outcome = "not_cancelable"
            if refund.status == "canceled":
                outcome, text = "already_canceled", None  # as was asked for
        self._end(
            refund_id,
            key,
            outcome,
            refund=refund,
            attempts=error.attempts,
            error=text,
        )

    def _end(
        self,
        refund_id: str,
        key: str | None,
        outcome: str,
        *,
        refund: Refund | None = None,
        attempts: tuple[Attempt, ...] | None = (),
        error: str | None = None,
    ) -> None:
        self.outcomes[outcome] += 1
        named = [each.request_id for each in attempts or () if each.request_id]
        self._report(
            CancelResult(
                refund_id=refund_id,
                stripe_account=self._account,
                outcome=outcome,
                status=None if refund is None else refund.status,
                idempotency_key=key,
                attempts=None if attempts is None else len(attempts),
                request_id=named[-1] if named else None,
                error=error,
            )
        )


def exit_code(outcomes: Counter[str]) -> int:
    """Return 0 if all are canceled, 3 if one is unknown, 1 for anything else."""
    if outcomes["unknown"]:
        return 3
    return 0 if outcomes.keys() <= CANCELED else 1
