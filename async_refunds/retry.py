"""When to ask again, after how long, and when to stop: tenacity sees only failures.

A first attempt that succeeds never comes here, since wrapping a success costs tenacity
about 20 microseconds, a tenth of the whole call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from async_refunds.protocol import validation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long a call may take, and how often it may ask.

    Raises:
        TypeError, ValueError: A number that is no number of retries or seconds.
    """

    max_retries: int = 3
    """Requests after the first one. The read that settles an unknown outcome has as
    many of its own."""
    deadline: float = 80.0
    """Seconds for the whole call, every attempt, sleep and settling read included:
    room for two attempts of 30 seconds and the read."""
    initial_delay: float = 0.5
    """Seconds: the most that the first sleep may take. It doubles each time."""
    max_delay: float = 8.0
    """Seconds: the most that any sleep may take."""

    def __post_init__(self) -> None:
        retries: object = self.max_retries
        if isinstance(retries, bool) or not isinstance(retries, int):
            raise TypeError("max_retries must be an int")
        if retries < 0:
            raise ValueError("max_retries must be 0 or more")
        for name in ("deadline", "initial_delay", "max_delay"):
            validation.seconds(name, getattr(self, name))

    def backoff(self, retry: int, chance: float) -> float:
        """Return the seconds to sleep before the ``retry``-th retry, 1 for the first.

        Full jitter: anything from nothing to an exponential bound, so that a crowd of
        clients that failed together does not come back together
        (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
        ``chance`` is a draw from [0, 1).
        """
        # The exponent is capped where any initial delay has long met the maximum, and
        # before a float overflows.
        bound = self.initial_delay * 2.0 ** min(retry - 1, 60)
        return chance * min(self.max_delay, bound)


class RetryBudget:
    """Tokens that the retries of all calls of a client share.

    In a brown-out every call wants to retry, and together they would multiply the load
    on what already fails. So a retry costs 5 of 500 tokens, 10 after a time-out (the
    costliest failure for the other side), and a success brings 1 back; with none left
    a call ends with what it knows. The figures are those of the AWS SDKs' standard mode
    (https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html).
    """

    CAPACITY = 500
    RETRY_COST = 5
    TIMEOUT_COST = 10

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens = self.CAPACITY

    @property
    def tokens(self) -> int:
        """How many are left, 0 to 500."""
        return self._tokens

    def take(self, *, timed_out: bool) -> bool:
        """Pay for a retry, and tell whether there was enough to."""
        cost = self.TIMEOUT_COST if timed_out else self.RETRY_COST
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True

    def succeeded(self) -> None:
        """Give back what a success earns."""
        if self._tokens < self.CAPACITY:
            self._tokens += 1


class Attempted(Protocol):
    """What the retries have to know of an attempt."""

    @property
    def retry(self) -> bool:
        """Whether the same request may go out again."""
        ...

    @property
    def timed_out(self) -> bool:
        """Whether it failed for want of time."""
        ...


A = TypeVar("A", bound=Attempted)


async def retried(
    first: A,
    again: Callable[[float], Awaitable[A]],
    *,
    policy: RetryPolicy,
    budget: RetryBudget,
    until: float,
    room: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    random: Callable[[], float],
    before_sleep: Callable[[A, float], None],
) -> A:
    """Return the last attempt: one that needs no retry, or after which none may come.

    Args:
        first: The attempt that failed already.
        again: Makes another attempt; is told how many seconds were slept before it.
        policy: How often, and how long to sleep.
        budget: Paid once for each retry.
        until: The time on ``clock`` at which no attempt may be under way any more.
        room: Seconds that an attempt needs; none starts with less left.
        clock: The time in seconds.
        sleep: Waits so many seconds.
        random: Draws from [0, 1).
        before_sleep: Told of each retry, with the failed attempt and the seconds.
    """
    slept: float | None = None

    async def attempt() -> A:
        # tenacity's first call is for the attempt that was made before it came in.
        return first if slept is None else await again(slept)

    def wait(state: RetryCallState) -> float:
        return policy.backoff(state.attempt_number, random())

    def stop(state: RetryCallState) -> bool:
        # Like tenacity's stop_before_delay, on our clock: a sleep that would outlive
        # the deadline is not begun. The budget comes last, since it pays.
        return (
            state.attempt_number > policy.max_retries
            or clock() + state.upcoming_sleep + room > until
            or not budget.take(timed_out=_last(state).timed_out)
        )

    def _last(state: RetryCallState) -> A:
        assert state.outcome is not None  # noqa: S101 - set before stop is asked
        result: A = state.outcome.result()
        return result

    def note(state: RetryCallState) -> None:
        nonlocal slept
        slept = state.upcoming_sleep
        before_sleep(_last(state), slept)

    controller = AsyncRetrying(
        retry=retry_if_result(lambda attempted: attempted.retry),
        wait=wait,
        stop=stop,
        sleep=sleep,
        before_sleep=note,
        retry_error_callback=_last,
    )
    return await controller(attempt)
