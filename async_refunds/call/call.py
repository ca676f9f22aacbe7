"""One call: its deadline, its attempts, the settling read, and its conclusion.

A cancel may take several requests under one key, and a read that settles them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from async_refunds.errors import APIConnectionError, RefundsError
from async_refunds.protocol.classification import Classification, Outcome, Proof
from async_refunds.protocol.error_mapping import error_for, subject
from async_refunds.protocol.outcome import (
    Conclusion,
    conclude,
    conclude_interrupted,
    needs_read,
)
from async_refunds.protocol.requests import settling_read

from .attempts import CallAttempts
from .reporting import report_end, report_start
from .retries import retry
from .stack import need_stack

if TYPE_CHECKING:
    from async_refunds.models import Refund
    from async_refunds.protocol.requests import Request

T = TypeVar("T")


class Call(CallAttempts, eq=False):
    """One awaited method of the client."""

    async def cancel(self, request: Request[Refund]) -> Conclusion:
        """Send a cancel, retry and settle it, and conclude what became of it.

        Raises:
            asyncio.CancelledError: The task was cancelled; the refund may be canceled.
        """
        context, conclusion = self.context, None
        context.in_progress.calls += 1
        try:
            need_stack()
            if context.on_call_start is not None:
                report_start(self, request, context.on_call_start)
            if context.credentials is not None:
                await context.credentials.load(self.timeout)
            until = self.settling_from
            last = await self.attempt(request, until)
            if last.value is None:
                last = await self._follow_up(last, request, until)
            if last.value is not None:
                self.attach_last_response(
                    last.value, last.reply, request.idempotency_key
                )
                conclusion = Conclusion("canceled", last.value)
            else:
                conclusion = await self._settle(request, last)
            return conclusion  # noqa: TRY300 - type checkers follow no `finally`
        except Exception as error:  # noqa: BLE001 - only our own errors may come out
            conclusion = self._conclude_unexpected(request, error)
            return conclusion
        finally:
            # Without a function call, which could fail where the stack is nearly full.
            context.in_progress.calls -= 1
            if conclusion is None:
                report_end(self, request, "interrupted", None)
            elif (
                context.on_call is not None
                or self.on_end is not None
                or context.in_progress.idle is not None
                or conclusion.outcome == "unknown"
            ):
                report_end(self, request, conclusion.outcome, conclusion.error)

    async def read(self, request: Request[T]) -> Classification[T]:
        """Send a read and retry it.

        Raises:
            RefundsError: Something unexpected went wrong on this side.
            asyncio.CancelledError: The task was cancelled.
        """
        context, outcome = self.context, "interrupted"
        error: RefundsError | None = None
        context.in_progress.calls += 1
        try:
            need_stack()
            if context.on_call_start is not None:
                report_start(self, request, context.on_call_start)
            if context.credentials is not None:
                await context.credentials.load(self.timeout)
            last = await self._read(request)
            outcome = "done"
            if last.value is None:
                outcome = "failed"
                error = error_for(request, last, self.attempts, self.stopped)
        except Exception as raised:  # noqa: BLE001 - only our own errors may come out
            outcome, error = "failed", self._read_error(request, raised)
            raise error from None
        finally:
            context.in_progress.calls -= 1
            if (
                context.on_call is not None
                or self.on_end is not None
                or context.in_progress.idle is not None
            ):
                report_end(self, request, outcome, error)
            error = None  # it leads through its traceback to this frame, and so back
        return last

    def _read_error(self, request: Request[Any], error: Exception) -> RefundsError:
        if isinstance(error, RefundsError):  # there is no API key to send
            return error
        return APIConnectionError(
            f"{subject(request)}: an unexpected {type(error).__name__}",
            attempts=self.attempts,
        )

    async def _read(self, request: Request[T]) -> Classification[T]:
        last = await self.attempt(request, self.deadline)
        if last.value is None:
            last = await self._follow_up(last, request, self.deadline)
        return last

    async def _settle(
        self, request: Request[Refund], last: Classification[Refund]
    ) -> Conclusion:
        """Conclude a cancel whose last answer was not ``canceled``."""
        stopped, read = self.stopped, None
        # A refusal without proof stays a doubt until Stripe's own no follows.
        maybe_sent = self.maybe_sent or (
            self.unconfirmed and last.outcome is not Outcome.REFUSED
        )
        in_doubt = maybe_sent or self.sent_before is not None
        if needs_read(last, maybe_sent=in_doubt):
            limited = last.limit is not None and not in_doubt
            read = await self._read_to_settle(request, once=limited)
        return conclude(
            request,
            last,
            read,
            maybe_sent=maybe_sent,
            before=self.sent_before,
            attempts=self.attempts,
            stopped=stopped,
        )

    async def _read_to_settle(
        self, request: Request[Refund], *, once: bool
    ) -> Classification[Refund] | None:
        """Read the refund of a cancel; ``None`` if the gate lets no read out.

        Args:
            request: The cancel.
            once: Whether a limiter, which may refuse the read too, is spared retries.
        """
        reading, gate = settling_read(request), self.retry_gate
        if gate is not None and not await gate.wait(reading, 0.0, self.deadline):
            return None
        read = await (
            self.attempt(reading, self.deadline) if once else self._read(reading)
        )
        if read.value is not None:
            self.attach_last_response(read.value, read.reply, request.idempotency_key)
        return read

    def _conclude_unexpected(
        self, request: Request[Refund], error: Exception
    ) -> Conclusion:
        """Conclude a cancel that an unforeseen error broke off.

        Such as a `RecursionError` deep in the caller's own awaits, or a `MemoryError`.
        """
        maybe_sent = self.may_have_canceled
        if isinstance(error, RefundsError):  # there is no API key to send
            if not maybe_sent:
                error.idempotency_key = request.idempotency_key
                return Conclusion("failed", error=error, settled=False)
            what = str(error)
        else:
            what = f"an unexpected {type(error).__name__}"
        why = f"{what} broke it off"
        return conclude_interrupted(request, self.attempts, why, maybe_sent=maybe_sent)

    async def _follow_up(
        self, last: Classification[T], request: Request[T], until: float
    ) -> Classification[T]:
        """Return the last attempt after a first one that did not succeed."""
        credentials = self.context.credentials
        if last.retry:
            last = await retry(self, last, request, until)
        if (
            credentials is not None
            and last.is_unauthorized
            and self.evidence is not None
            and await credentials.renew(
                self.evidence.key_generation, until - self.clock()
            )
        ):
            last = await self.attempt(request, until)
            if last.retry:
                last = await retry(self, last, request, until)
        spent = last.retry and self.stopped == "count"
        if spent and last.proof is Proof.NONE and last.limit is None:
            last = await self._confirm(last, request, until)
        return last

    async def _confirm(
        self, last: Classification[T], request: Request[T], until: float
    ) -> Classification[T]:
        """Ask once more, where the retries are spent, whether a refusal is ours.

        A second answer is the only proof; without it a wrong API key would leave the
        outcome unknown.
        """
        gate = self.retry_gate
        if until - self.clock() < self.room or (
            gate is not None and not await gate.wait(request, 0.0, until)
        ):
            return last
        return await self.attempt(request, until)
