"""The pace of one endpoint: it finds the limit, and yields to a failing service.

Pure: no I/O, no clock, no chance. The caller gives the time, in seconds of a clock that
never goes back.

**The rate** finds the limit by the 429s (see `limit_search`). If nothing gets through
for seconds, the rate of before is remembered and sought again by doubling, as in the
slow start of RFC 5681. A run that does not use its rate does not raise it (RFC 9438,
section 5.8).

**The concurrency** is additive in both directions: one less for each refusal, which is
exactly what was too many, and one more for a hundred answers.

**Trouble**, a service that fails, is separate: a circuit breaker whose open state still
lets a trickle through (M. Nygard, *Release It!*), opened by failures that outnumber
successes two to one. Failures are no congestion, and 429s are no trouble.

The figures beside the constants are those of the simulation in
tests/unit/test_rate_control.py.
"""

from __future__ import annotations

import math

from .limit_search import LEAST, LimitSearch

_BLOCKED_REFUSALS, _BLOCKED_SECONDS = 10, 3.0
"""429s in a row, and for so long, that are no limit to a rate but a closed door."""
_BLOCKED = 0.5
"""Requests a second while it is closed: its end is seen within two seconds, and a rate
of 25/s is found again four seconds later."""
_RESUME = 2.0
"""Times the rate, for each success after it."""
_BLOCKED_CUT = 0.97
"""For each further 429, down to `LEAST`: a day of them costs few requests."""

_WINDOW = 0.5
"""Seconds after which the use of the rate is measured and the rate grows: often enough
for a smooth climb, seldom enough to cost nothing."""
_USED = 0.9
"""The share of the rate that must be in use for it to grow: it never gets further from
what is used than 1 / 0.9."""
_LATE = 0.02
"""Seconds by which a slot may be taken late without losing it: timers and busy loops
are late by milliseconds, which at 500/s would be most of the rate. No more than that is
caught up: a second that begins with a late request holds those of so much more time. By
0.05, these are 28 at a limit of 25/s, where the rate is 3 % above it."""
_STALL = 0.5
"""Seconds by which a busy machine may be late. After a longer pause nothing is caught
up: the spacing starts anew."""

_TOLERATED = 5
"""Failures, less `_FORGIVEN` for each success, before the pace comes down: with faults
in 20 % of requests so many together are one in ten thousand."""
_FORGIVEN = 2
"""Failures that a success makes up for: at a third of successes and more there is no
trouble, and three of them end the worst."""
_TROUBLED = 0.5
"""Requests a second, the least in trouble: each further failure halves the pace down to
here. A minute of it costs 30 requests, and its end is seen within two seconds."""

_PROBE = 0.01
"""Growth of the concurrency with each answer: one refusal in a hundred requests."""
_OUTGROWN = 2.0
"""Times what was refused: having got so far, the limit met then is no more."""


class RateController(LimitSearch):
    """When the next request to one endpoint may go out, and how many at once.

    Each request, the first of an item or a retry, takes a slot with `reserve`, and its
    end is reported to one of the four ``on_`` methods. A reserved slot keeps its time,
    whatever happens meanwhile. So wait until `free_at`, look at it again, since it
    moves, and reserve then.

    Args:
        rate: A fixed pace in requests a second. It is the caller's decision, so no 429
            changes it; trouble slows it as any other. ``None`` finds the limit.
        start: Requests a second with which the search begins: what another process has
            found, so that it grows from there as slowly as it would have there.
        alone: Whether no other process that finds its pace shares the limit: then what
            gets through at the first 429s is the limit, and no neighbour's share.
        now: The time.

    Raises:
        ValueError: A rate that is not a positive number.
    """

    __slots__ = (
        "_concurrency",
        "_crowd",
        "_failures",
        "_good_rate",
        "_refused_in_a_row",
        "_refused_since",
        "_requests",
        "_resume_at",
        "_slot",
        "_used",
        "_window",
    )

    def __init__(
        self,
        *,
        rate: float | None = None,
        start: float | None = None,
        alone: bool = False,
        now: float,
    ) -> None:
        for given in (rate, start):
            if given is not None and not 0 < given < math.inf:
                raise ValueError("rate must be a positive number of requests a second")
        super().__init__(rate, start, alone=alone, now=now)
        self._slot = now - 1 / self._rate  # the last one, by plan
        self._window = now  # when the rate in use was last measured
        self._requests = 0  # slots taken since
        self._used = True  # whether the rate was in use then
        self._refused_in_a_row = 0
        self._refused_since = now
        self._good_rate = self._rate  # before the 429s in a row
        self._resume_at: float | None = None  # the rate to find after a closed door
        self._failures = 0
        self._concurrency = math.inf
        self._crowd = math.inf  # how many were under way when one was refused

    @property
    def rate(self) -> float:
        """The requests a second it aims at; in trouble, those it lets go."""
        beyond = self._failures - _TOLERATED
        if beyond <= 0:
            return self._rate
        return max(min(self._rate, _TROUBLED), self._rate * 0.5**beyond)

    @property
    def found_rate(self) -> float | None:
        """The rate with which another process may begin; ``None`` if none is found yet.

        That of before, while nothing gets through or the service fails; otherwise what
        the search has found.
        """
        return self._found_rate() if self._resume_at is None else self._resume_at

    @property
    def concurrency(self) -> float:
        """The most requests under way at once: a whole number, or infinite."""
        return self._concurrency // 1 if self._concurrency < math.inf else math.inf

    @property
    def free_at(self) -> float:
        """When the next request may go out; it may lie in the past."""
        return self._slot + 1 / self.rate

    @property
    def in_trouble(self) -> bool:
        """Whether the service fails, and the pace is down for that."""
        return self._failures > _TOLERATED

    def reserve(self, now: float) -> float:
        """Take the next slot, and return when it is: now or later."""
        free = self.free_at
        slot = max(now, free)
        self._slot = max(free, slot - _LATE) if slot - free <= _STALL else slot
        self._requests += 1
        seconds = slot - self._window
        if seconds >= _WINDOW:
            self._used = self._requests >= _USED * self._rate * seconds
            self._fill(self._requests, seconds)
            if self._used and not self._mode.fixed and self._resume_at is None:
                self._grow(slot, seconds)
            if not self._refused_in_a_row and self._resume_at is None:
                self._good_rate = self._rate
            self._window = slot
            self._requests = 0
        return slot

    def on_success(self, now: float, sent_at: float = -math.inf) -> None:
        """Note an answer that is neither a 429 nor a failure of the server.

        Args:
            now: The time.
            sent_at: When the request went out; by default before the last cut.
        """
        self._note_answer(sent_at, refused=False)
        self._failures = max(0, self._failures - _FORGIVEN)
        self._refused_in_a_row = 0
        if self._resume_at is not None:
            self._rate = min(self._resume_at, _RESUME * self._rate)
            if self._rate == self._resume_at:
                self._resume_at = None
        # Only while something other than the rate holds the requests back.
        if self._concurrency < math.inf and not self._used:
            self._concurrency += _PROBE
            if self._concurrency > _OUTGROWN * self._crowd:
                self._concurrency = math.inf

    def on_rate_limit(self, now: float, sent_at: float = -math.inf) -> None:
        """Note a 429 of a rate limiter, or of an unknown kind.

        Args:
            now: The time.
            sent_at: When the request went out; by default before the last cut.
        """
        if not self._refused_in_a_row:
            self._refused_since = now
        self._refused_in_a_row += 1
        self._note_answer(sent_at, refused=True)
        if not (self._mode.fixed or self._is_blocked(now)):
            self._slow_down(now, sent_at)

    def _is_blocked(self, now: float) -> bool:
        """Tell whether nothing at all gets through, and slow down for that."""
        if self._resume_at is not None and self._rate > _BLOCKED:
            self._resume_at = None  # one step too far
            self._cut(now, 0.5)
            return True
        if self._resume_at is None:
            seconds = now - self._refused_since
            if (
                self._refused_in_a_row < _BLOCKED_REFUSALS
                or seconds < _BLOCKED_SECONDS
                or self._good_rate <= _BLOCKED
            ):
                return False
            self._resume_at = self._good_rate
            self._rate = min(self._rate, _BLOCKED)
        self._rate = max(LEAST, self._rate * _BLOCKED_CUT)
        return True

    def on_concurrency_limit(self, now: float, under_way: int) -> None:
        """Note a 429 of a limit on concurrency.

        Args:
            now: The time.
            under_way: How many requests were, this one included.
        """
        self._answers += 1
        self._crowd = max(1.0, min(self._concurrency, under_way))
        self._concurrency = max(1.0, self._crowd - 1)

    def on_failure(self, now: float) -> None:
        """Note a 5xx, an answer that was lost or came too late, or no connection."""
        self._answers += 1
        if self.rate > _TROUBLED:
            self._failures += 1
