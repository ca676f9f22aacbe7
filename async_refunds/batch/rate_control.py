"""The pace of one account: it finds the limiter's rate and yields to a failing service.

Pure: no I/O, no clock, no chance. It is told the time, in seconds of a clock that never
goes back.

**The rate** is AIMD on evenly spaced requests (Chiu and Jain, 1989), with the increase
of a binomial scheme, inverse to the rate (Bansal and Balakrishnan, INFOCOM 2001), so
that two processes on one account come to share it. After a long time without congestion
the increase accelerates with that time, as in CUBIC (RFC 9438) and H-TCP
(draft-leith-tcp-htcp). The 429s of one moment are one congestion event with one cut, as
in RFC 9002, section 7.3.2. If they go on after it the limit itself has fallen: then the
cuts are deeper, and the way back to the middle of a cut that was too deep is short, as
in BIC (Xu, Harfoush and Rhee, INFOCOM 2004). A run that does not use its rate does not
raise it (RFC 9438, section 5.8). CUBIC as in botocore's adaptive mode was not taken: it
cuts to 0.7, and its sawtooth averages 0.92 of the limit.

**The concurrency** is AIMD without the M: one less for each refusal, which is just what
was too many, and one more for a hundred answers.

**Trouble**, a service that fails, is a matter of its own: a circuit breaker whose open
state still lets a trickle through (M. Nygard, *Release It!*), opened by failures that
outnumber successes two to one. Failures are no congestion, and 429s are no trouble.

The figures beside the constants are those of the simulation in tests/test_pacing.py.
"""

from __future__ import annotations

import math

_START = 20.0
"""Requests a second before anything is known: below what Stripe documents."""
_DOCUMENTED = 25.0
"""Requests a second of one endpoint (https://docs.stripe.com/rate-limits): the search
goes there at once and only then feels its way."""
_LEAST = 0.1
"""Requests a second that no 429 cuts further: ten seconds until a new limit is seen."""

_CUT = 0.975
"""For congestion. Half of it is what the sawtooth loses on average, so that 95 % of the
limit have room for noise; 0.99 lets two processes drift apart before it tells."""
_PERSISTENT_CUT = 0.9
"""If more than `_SOME` were refused after a cut."""
_DEEP_CUT = 0.7
"""If more than `_MOST` were refused after a cut: the beta of RFC 9438. Half the limit
is found in some five cuts, a second or two each."""
_SOME, _MOST = 0.1, 0.5
"""Shares of the answers, each at least as large as its cut: a rate of which a tenth is
refused is a tenth too high, and a cut by that cannot go below the limit. Sooner than
at a half two processes, who judge by a dozen answers each, come apart."""
_EVENT = 1.0
"""Seconds that one congestion event lasts: answers of requests that went out before the
cut come in until then (they take 0.1 to 1 s)."""

_SLOPE = 0.045
"""Requests a second, per second, that the rate grows by at `_KNEE`. With `_CUT` it
makes a 429 every 55 requests there and every 870 at 25/s, below the 2 % allowed."""
_KNEE = 10.0
"""Requests a second. Above, the slope falls as 1 / rate: the faster of two processes
grows more slowly. Below, both axes of the growth shrink with the rate, so that the
share of 429s stays what it is here."""
_STEADY = 30.0
"""Seconds after which growth accelerates: longer than what lies between two events at
25/s (a bucket of one second's requests takes that long to run dry)."""
_CURVE = 0.0008
"""Requests a second, per second and second squared: where there is no limit any more,
100/s are reached some 95 s after the last cut, and 500/s after 150."""
_RETURN = 2.0
"""Requests a second, per second, on the way to `_DOCUMENTED` or back into the middle of
a cut that was too deep."""
_PENANCE = 100.0
"""Requests without growth for each further 429 of one event: where a little too fast
means many refusals, as with a bucket of one token, the next try has to wait."""

_WINDOW = 0.5
"""Seconds after which the use of the rate is measured and the rate grows: often enough
for a smooth climb, seldom enough to cost nothing."""
_USED = 0.9
"""The share of the rate that must be in use for it to grow: it never gets further from
what is used than 1 / 0.9."""
_LATE = 0.05
"""Seconds by which a turn may be taken late without losing it: timers and busy loops
are late by milliseconds, which at 500/s would be most of the rate. After a longer pause
the spacing starts anew, so that nothing is caught up in a burst."""

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


class RateController:
    """When the next request of one account may go out, and how many may be under way.

    Each request, the first of an item or a retry, takes a turn with `reserve`, and its
    end is told to one of the five that follow. A turn that was booked keeps its time,
    whatever is learnt meanwhile, so book when it has come, not ahead: wait until
    `free_at`, look at it again, since it moves, and then `reserve`.

    Args:
        rate: A fixed pace in requests a second. It is the caller's decision, so no 429
            changes it; trouble slows it as any other. None finds the limit.
        now: The time.

    Raises:
        ValueError: A rate that is not a positive number.
    """

    __slots__ = (
        "_answers",
        "_calm",
        "_ceiling",
        "_concurrency",
        "_crowd",
        "_cut_at",
        "_failures",
        "_fixed",
        "_rate",
        "_refused",
        "_requests",
        "_turn",
        "_used",
        "_window",
    )

    def __init__(self, *, rate: float | None = None, now: float) -> None:
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError("rate must be a positive number of requests a second")
        self._fixed = rate is not None
        self._rate = _START if rate is None else rate
        self._turn = now - 1 / self._rate  # the last one, by plan
        self._window = now  # when the rate in use was last measured
        self._requests = 0  # turns taken since
        self._used = True  # whether the rate was in use then
        self._calm = 0.0  # seconds of growth since the last cut
        self._ceiling = _DOCUMENTED  # where the quick climb ends
        self._cut_at = -math.inf
        self._answers = 0  # since the cut
        self._refused = 0  # of these
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
    def concurrency(self) -> float:
        """The most requests under way at once: a whole number, or infinite."""
        return self._concurrency // 1 if self._concurrency < math.inf else math.inf

    @property
    def free_at(self) -> float:
        """When the next request may go out; it may lie in the past."""
        return self._turn + 1 / self.rate

    @property
    def in_trouble(self) -> bool:
        """Whether the service fails, and the pace is down for that."""
        return self._failures > _TOLERATED

    def reserve(self, now: float) -> float:
        """Book the next turn, and return when it comes: now or later."""
        free = self.free_at
        turn = max(now, free)
        self._turn = free if turn - free <= _LATE else turn
        self._requests += 1
        seconds = turn - self._window
        if seconds >= _WINDOW:
            self._used = self._requests >= _USED * self._rate * seconds
            if self._used and not self._fixed:
                self._grow(turn, seconds)
            self._window = turn
            self._requests = 0
        return turn

    def on_success(self, now: float) -> None:
        """Note an answer that is neither a 429 nor a failure of the server."""
        self._answers += 1
        self._failures = max(0, self._failures - _FORGIVEN)
        # Only while something other than the rate holds the requests back.
        if self._concurrency < math.inf and not self._used:
            self._concurrency += _PROBE
            if self._concurrency > _OUTGROWN * self._crowd:
                self._concurrency = math.inf

    def on_rate_limit(self, now: float) -> None:
        """Note a 429 of a rate limiter, or of an unknown kind."""
        self._answers += 1
        self._refused += 1
        if self._fixed:
            return
        since = now - self._cut_at
        if since < _EVENT:
            self._calm -= _PENANCE / max(_KNEE, self._rate)
            return
        before, cut = self._rate, _CUT
        if since < 2 * _EVENT:
            # The one that just came is no sign that there were more.
            share = (self._refused - 1) / self._answers
            if share > _SOME:
                cut = _DEEP_CUT if share > _MOST else _PERSISTENT_CUT
        self._rate = self._ceiling = max(_LEAST, before * cut)
        if cut < _CUT:
            self._ceiling = (self._rate + before) / 2
        self._calm = 0.0
        self._cut_at = now
        self._answers = self._refused = 0

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

    def _grow(self, now: float, seconds: float) -> None:
        """Raise the rate for so many seconds in which it was used."""
        if self._rate < self._ceiling:
            # Not before the answers to what went out above it have come in.
            if now - self._cut_at >= _EVENT:
                self._rate = min(self._ceiling, self._rate + _RETURN * seconds)
            return
        slowness = min(1.0, self._rate / _KNEE)
        self._calm += slowness * seconds
        if self._calm > 0:
            slope = _SLOPE * min(1.0, _KNEE / self._rate)
            slope += _CURVE * max(0.0, self._calm - _STEADY) ** 2
            self._rate += slope * slowness**2 * seconds
