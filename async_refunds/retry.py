"""When to retry, after how long, and when to stop. The only module that uses tenacity.

A first attempt that succeeds never enters tenacity: wrapping a success costs about 20
microseconds, a tenth of the whole call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    stop_any,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from .protocol import validation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .protocol.classification import Classification

StopReason: TypeAlias = Literal["count", "deadline", "budget"]
"""Why a failure that may be retried was not retried."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often a call tries, and how long it may take.

    Raises:
        TypeError, ValueError: ``max_retries`` is not a whole number from 0 on, or a
            time is not a positive number.
    """

    max_retries: int = 3
    """Requests after the first one. The read that settles an unknown outcome has as
    many of its own."""
    deadline: float = 80.0
    """Seconds for the whole call, including every attempt, sleep and settling read:
    room for two attempts of 30 seconds and the read."""
    initial_delay: float = 0.5
    """Seconds: the upper bound of the first sleep. It doubles with each retry."""
    max_delay: float = 8.0
    """Seconds: the upper bound of any sleep."""

    def __post_init__(self) -> None:
        validation.whole("max_retries", self.max_retries)
        for name in ("deadline", "initial_delay", "max_delay"):
            validation.seconds(name, getattr(self, name))

    @property
    def wait(self) -> wait_random_exponential:
        """The sleep before a retry: full jitter from the first one on.

        Clients that failed together do not come back together
        (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
        """
        return wait_random_exponential(
            multiplier=self.initial_delay, max=self.max_delay
        )

    def backoff(self, retry: int) -> float:
        """Draw the seconds to sleep before the ``retry``-th retry, 1 for the first."""
        state = RetryCallState(_NO_RETRYING, None, (), {})
        state.attempt_number = retry
        return self.wait(state)


_NO_RETRYING = AsyncRetrying()


class RetryBudget:
    """Tokens for retries, shared by all calls of a client or of several clients.

    When a service fails, every call wants to retry, and together they would multiply
    the load on it. So each retry takes a token, and a retry after a time-out two. A
    call that finds no token does not retry: it ends with the failure that it has. A
    request that provably was not sent is retried without a token, since it loads
    nobody, and the read that settles a cancel needs none.

    The budget follows the traffic: it holds as many tokens as calls begin in
    ``seconds``, and at least ``min_tokens``. All calls may retry through a failure of a
    second; in a longer one the retries cannot outnumber the calls of those seconds.
    Tokens come back with each success (half a token), with each call (a fiftieth) and
    with time (``min_tokens`` a minute).

    The figures are from a simulation: at 200 calls a second, a second in which every
    answer is a 503 leaves fewer than 1 % of the calls unknown; at 25 a second, ten such
    seconds cost 2.3 requests per call, settling reads included, where unlimited
    retries cost 7. Finagle's ``RetryBudget`` and gRPC's retry throttling (gRFC A6) tie
    retries to traffic and to successes in the same way.

    Args:
        min_tokens: How many tokens it holds if there is hardly any traffic. The default
            is enough for six calls with three retries.
        seconds: It holds as many tokens as calls begin in so many seconds.

    Raises:
        TypeError, ValueError: An argument is not a positive number.
    """

    PER_SUCCESS = 0.5
    PER_CALL = 0.02
    TIMEOUT_COST = 2.0

    __slots__ = ("_calls", "_min", "_per_second", "_seconds", "_since", "_spent")

    def __init__(self, *, min_tokens: int = 20, seconds: float = 2.4) -> None:
        self._min = validation.whole("min_tokens", min_tokens, least=1)
        self._seconds = validation.seconds("seconds", seconds)
        self._spent = 0.0
        self._calls = 0  # since `_since`
        self._since = 0.0
        self._per_second = 0.0  # over the second before that

    @property
    def tokens(self) -> float:
        """How many are left."""
        return max(0.0, self._capacity - self._spent)

    @property
    def _capacity(self) -> float:
        calls = max(self._per_second, float(self._calls))
        return max(float(self._min), self._seconds * calls)

    def record(self, now: float, *, first: bool, succeeded: bool) -> None:
        """Note an attempt that ended at a time in seconds.

        Args:
            now: The time.
            first: Whether it is the first attempt of a call.
            succeeded: Whether it got what it wanted.
        """
        if now - self._since >= 1.0:
            self._turn_second(now)
        if first:
            self._calls += 1
        if self._spent > 0.0:
            self._spent -= self.PER_CALL * first + self.PER_SUCCESS * succeeded

    def take(self, now: float, *, timed_out: bool) -> bool:
        """Take the tokens for a retry; return whether there were enough."""
        if now - self._since >= 1.0:
            self._turn_second(now)
        cost = self.TIMEOUT_COST if timed_out else 1.0
        spent = max(0.0, self._spent)
        if spent + cost > self._capacity:
            return False
        self._spent = spent + cost
        return True

    def _turn_second(self, now: float) -> None:
        passed = now - self._since
        self._per_second = self._calls / passed if passed < 2.0 else 0.0  # noqa: PLR2004 - a whole second without a call
        self._calls = 0
        self._since = now
        self._spent = max(0.0, self._spent - passed * self._min / 60.0)


class stop_before_deadline(stop_base):  # noqa: N801 - tenacity's own style
    """Stop if the sleep would leave too little time for an attempt.

    tenacity's ``stop_before_delay`` on the call's own clock.
    """

    def __init__(self, until: float, room: float, clock: Callable[[], float]) -> None:
        self.until = until
        self.room = room
        self.clock = clock

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Return whether to stop."""
        return self.clock() + retry_state.upcoming_sleep + self.room > self.until


class stop_without_budget(stop_base):  # noqa: N801 - tenacity's own style
    """Stop if the budget has no token for a retry of what was sent; else take it."""

    def __init__(self, budget: RetryBudget | None, clock: Callable[[], float]) -> None:
        self.budget = budget
        self.clock = clock

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Return whether to stop."""
        failed = _result(retry_state)
        if self.budget is None or not failed.was_sent:
            return False
        return not self.budget.take(self.clock(), timed_out=failed.timed_out)


def retrying(
    *,
    policy: RetryPolicy,
    budget: RetryBudget | None,
    until: float,
    room: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    before_sleep: Callable[[Classification[Any], float], None],
    on_stop: Callable[[StopReason], None],
) -> AsyncRetrying:
    """Return the tenacity controller for the attempts of one call.

    Args:
        policy: How often, and how long to sleep.
        budget: Where each retry of what was sent takes its tokens; ``None`` for none.
        until: The time on ``clock`` at which no attempt may be in progress any more.
        room: Seconds that an attempt needs; none starts with less left.
        clock: The time in seconds.
        sleep: Waits that many seconds.
        before_sleep: Called with each failed attempt and the seconds of sleep.
        on_stop: Called with the reason when a failure is not retried.
    """
    stops: dict[StopReason, stop_base] = {
        "count": stop_after_attempt(policy.max_retries + 1),
        "deadline": stop_before_deadline(until, room, clock),
        # Last, because it takes tokens when it does not stop.
        "budget": stop_without_budget(budget, clock),
    }
    return AsyncRetrying(
        retry=retry_if_result(lambda result: result.retry),
        wait=policy.wait,
        stop=stop_any(
            *(_reporting(stop, reason, on_stop) for reason, stop in stops.items())
        ),
        sleep=sleep,
        before_sleep=lambda state: before_sleep(_result(state), state.upcoming_sleep),
        retry_error_callback=_result,
    )


def _reporting(
    stop: stop_base, reason: StopReason, on_stop: Callable[[StopReason], None]
) -> Any:  # noqa: ANN401 - tenacity takes any callable as a stop
    def stops(retry_state: RetryCallState) -> bool:
        stopped = stop(retry_state)
        if stopped:
            on_stop(reason)
        return stopped

    return stops


def _result(retry_state: RetryCallState) -> Classification[Any]:
    assert retry_state.outcome is not None  # noqa: S101 - tenacity sets it first
    result: Classification[Any] = retry_state.outcome.result()
    return result
