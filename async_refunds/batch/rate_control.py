"""The pace of one endpoint: it finds the limit, and yields to a failing service.

Pure: no I/O, no clock, no chance. The caller gives the time, in seconds of a clock that
never goes back.

**The rate** is AIMD on evenly spaced requests (Chiu and Jain, 1989). The increase is
inverse to the rate, a binomial scheme (Bansal and Balakrishnan, INFOCOM 2001), so that
two processes on one account come to share it. After a long time without congestion the
increase accelerates with that time, as in CUBIC (RFC 9438) and H-TCP
(draft-leith-tcp-htcp). The 429s of one moment are one congestion event with one cut, as
in RFC 9002, section 7.3.2. If they continue after it, the limit itself has fallen: then
the cuts are deeper, and the way back to the middle of a cut that was too deep is short,
as in BIC (Xu, Harfoush and Rhee, INFOCOM 2004). If four of nine that went out after a
cut are refused, in a run that was calm before, the rate falls at once to the share that
got through. One process that has an account for itself, and begins its search, falls
at the second 429 to the limit whose bucket lets in as much as got through; and it waits
just above the limit that it met last until a bucket would be dry. If nothing
gets through for seconds, the rate of before is remembered and sought again by doubling,
as in the slow start of RFC 5681. A run that does not use its rate does not raise it
(RFC 9438, section 5.8). botocore's adaptive mode uses CUBIC; it cuts to 0.7, and its
sawtooth averages 0.92 of the limit.

**The concurrency** is additive in both directions: one less for each refusal, which is
exactly what was too many, and one more for a hundred answers.

**Trouble**, a service that fails, is separate: a circuit breaker whose open state still
lets a trickle through (M. Nygard, *Release It!*), opened by failures that outnumber
successes two to one. Failures are no congestion, and 429s are no trouble.

The figures beside the constants are those of the simulation in
tests/unit/test_rate_control.py.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

_START = 20.0
"""Requests a second before anything is known: below what Stripe documents."""
_DOCUMENTED = 25.0
"""Requests a second of one endpoint (https://docs.stripe.com/rate-limits): the search
goes there at once and only then feels its way."""
_LEAST = 0.1
"""Requests a second that no 429 cuts further: ten seconds until a new limit is seen."""

_CUT = 0.975
"""The rate is multiplied by this at the first 429 of a congestion event. The rate then
swings between the limit and 2.5 % below, and loses half of that on average. With 0.99,
the rates of two processes that share a limit drift apart."""
_PERSISTENT_CUT = 0.9
"""The factor if more than `_SOME` of the answers after a cut were 429s."""
_DEEP_CUT = 0.7
"""The factor if more than `_MOST` were (the beta of RFC 9438). A limit that has fallen
far below the rate is reached in about five cuts, of a second or two each."""
_SOME = 0.1
"""If a tenth of the requests is refused, the rate is a tenth too high: a cut by a tenth
(`_PERSISTENT_CUT`) cannot end below the limit."""
_MOST = 0.5
"""Above the 30 % that `_DEEP_CUT` takes, for the same reason; and not lower, since two
processes judge by a dozen answers each, and by chance one would cut deep and the other
not."""
_EVENT = 1.0
"""Seconds that a congestion event lasts. Until then, answers to requests that were sent
before the cut still come in (they take 0.1 to 1 s), and cause no further cut."""

_SLOPE = 0.042
"""Requests a second, per second, that the rate grows by at `_KNEE`. With `_CUT` it
makes a 429 every 60 requests there and every 930 at 25/s, below the 2 % allowed: at
12.5/s there is room for those of a limit that has just halved."""
_KNEE = 10.0
"""Requests a second. Above, the slope falls as 1 / rate: the faster of two processes
grows more slowly. Below, both axes of the growth shrink with the rate, so that the
share of 429s stays what it is here."""
_STEADY = 30.0
"""Seconds after which growth accelerates: longer than what lies between two events at
25/s."""
_CURVE = 0.0008
"""Requests a second, per second and second squared: where there is no limit any more,
100/s are reached some 95 s after the last cut, and 500/s after 150; later by as much as
the rate waits at `_HIDDEN`."""
_HIDDEN = 1.025
"""Times the limit that was met last, the most where nobody else asks and a bucket of
`_BURST` may still let more in: as far above as `_CUT` goes below. At 25/s that takes a
minute. An accelerating rate comes to 29 in that time, if the bucket is full."""
_RETURN = 2.0
"""Requests a second, per second, on the way to `_DOCUMENTED` or back into the middle of
a cut that was too deep."""
_PENANCE = 100.0
"""Requests without growth for each further 429 of one event: where a little too fast
means many refusals, as with a bucket of one token, the next try has to wait."""

_REFUSALS, _SPAN = 4, 9
"""429s among so many answers, of what went out after a cut, that show that the limit
has fallen. With half the limit every second request is refused."""
_ANSWERS = 8
"""The least number of answers to judge by: a third of a second."""
_CALM = 5.0
"""Seconds without a cut, since the start and since a fall, before the limit can be seen
to fall: in less, it is another process that takes its share, and a deep cut of one of
them would keep them apart. Later cuts change nothing: at its limit a pace is cut every
few seconds for a while, and the limit may fall just then."""
_MARGIN, _HALF = 0.95, 0.5
"""The new rate, of the share that got through, and its least share of the old one."""
_LEAST_SHARE = 0.2
"""The least share where nobody else asks, at the first 429s and for the next holder.
Nothing may get through for a moment, and the way up from far below a limit is long."""
_SEARCH, _SECOND = 5.0, 4
"""Seconds from the start in which a limit far below is seen at once where nobody else
asks, and answers after the first 429 among which there is a second one then: three of
four are refused. On an account of 5/s the search meets two or three 429s, and more
only as far as they were under way; by `_REFUSALS` it meets eight or more."""
_BURST = 1.0
"""Seconds of its rate that a bucket holds which nobody has used for a while. So what
got through until the first 429s is what the limit lets through in so much more time.
Where it holds less the estimate is too low, and `_REGAIN` takes it up again."""
_REGAIN = 0.35
"""Requests a second, per second, on the way back up after that, until the first 429: an
estimate from eight answers may be a third too low, and a limit of 25/s that has halved
is found within 20 s with at most 2 % of the requests of a minute refused."""
_REGAIN_CUT = 0.93
"""For that first 429: it came at more than the usual speed."""

_BLOCKED_REFUSALS, _BLOCKED_SECONDS = 10, 3.0
"""429s in a row, and for so long, that are no limit to a rate but a closed door."""
_BLOCKED = 0.5
"""Requests a second while it is closed: its end is seen within two seconds, and a rate
of 25/s is found again four seconds later."""
_RESUME = 2.0
"""Times the rate, for each success after it."""
_BLOCKED_CUT = 0.97
"""For each further 429, down to `_LEAST`: a day of them costs few requests."""

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


class _Mode(NamedTuple):
    fixed: bool
    alone: bool
    searches: bool
    """From nothing, where nobody else asks."""


# One object for all: a platform has thousands of accounts.
_mode = functools.cache(_Mode)


class RateController:
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
        "_answers",
        "_at_first",
        "_began_at",
        "_calm",
        "_ceiling",
        "_climb",
        "_concurrency",
        "_crowd",
        "_cut_at",
        "_drawn",
        "_failures",
        "_fresh_answers",
        "_fresh_refused",
        "_good_rate",
        "_let_in",
        "_limit",
        "_mode",
        "_passed",
        "_rate",
        "_recent",
        "_refused",
        "_refused_in_a_row",
        "_refused_since",
        "_requests",
        "_resume_at",
        "_slot",
        "_used",
        "_was_calm",
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
        self._mode = _mode(rate is not None, alone, alone and start is None)
        self._rate = rate or start or _START
        self._slot = now - 1 / self._rate  # the last one, by plan
        self._window = now  # when the rate in use was last measured
        self._requests = 0  # slots taken since
        self._used = True  # whether the rate was in use then
        self._calm = 0.0  # seconds of growth since the last cut
        # Where the quick climb ends.
        self._ceiling = start or _DOCUMENTED
        self._limit = self._ceiling  # as it was met last
        self._drawn = 0.0  # requests out of its bucket, which is full
        self._climb = _RETURN  # its slope
        self._began_at = now
        self._cut_at = -math.inf
        self._was_calm = False  # at one of the cuts since the last fall
        self._at_first = False  # whether the last was the first, and nobody else asks
        self._let_in = 0  # answers until then that were no 429s
        self._answers = self._refused = 0  # since the cut, and 429s of these
        self._fresh_answers = self._fresh_refused = 0  # of what went out after it
        self._recent = 0  # the last of these, a bit each, newest lowest: 1 is a 429
        self._passed = math.inf  # requests a second that got through before it
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

        None is found at a fixed pace. That of before, while nothing gets through or the
        service fails. While the rate is far above the limit and still on its way down,
        what gets through of it: the other process has no way down to go, and no
        refusals on it. While a bucket may hide the limit, the one that was met last:
        else the rate would creep up with each process that takes over.
        """
        if self._resume_at is not None:
            return self._resume_at
        # Still on its way to where it begins to feel for the limit, or just there.
        on_its_way = self._cut_at == -math.inf and self._rate < self._ceiling
        if self._mode.fixed or on_its_way or self._is_early:
            return None
        return min(self._rate, self._limit, self._getting_through())

    def _getting_through(self) -> float:
        """Return the requests a second that get through, if many do not; or infinity.

        By what went out since the last cut, and before it while that is too little.
        """
        if self._fresh_answers < _ANSWERS:
            return self._passed
        if self._fresh_refused < _REFUSALS:
            return math.inf
        # One less: of few answers so many more may have got through.
        share = 1 - (self._fresh_refused - 1) / self._fresh_answers
        return self._rate * max(_LEAST_SHARE, share)

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
            self._fill(seconds)
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
        self._answers += 1
        if sent_at >= self._cut_at:
            self._note_fresh(refused=False)
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
        self._answers += 1
        self._refused += 1
        if sent_at >= self._cut_at:
            self._note_fresh(refused=True)
        since = now - self._cut_at
        if self._mode.fixed or self._is_blocked(now):
            return
        if since >= _EVENT:
            self._begin_event(now, since)
        elif (share := self._fallen_to(sent_at)) is not None:
            before = self._rate
            self._cut(now, share)
            self._ceiling, self._climb = _MARGIN * before, _REGAIN
            self._was_calm = self._at_first = False
        else:
            self._calm -= _PENANCE / max(_KNEE, self._rate)

    def _begin_event(self, now: float, since: float) -> None:
        """Cut the rate for a 429 that no cut of the last second explains."""
        before, cut = self._rate, _CUT
        regaining = self._climb == _REGAIN and before < self._ceiling
        # The 429 that just came is no sign that there were more.
        share = (self._refused - 1) / self._answers
        if regaining:
            cut = _REGAIN_CUT
        elif since < 2 * _EVENT and share > _SOME:
            cut = _DEEP_CUT if share > _MOST else _PERSISTENT_CUT
        if min(since, now - self._began_at) >= _CALM:
            self._was_calm = True
        self._at_first = self._mode.alone and self._cut_at == -math.inf
        self._let_in = self._answers - self._refused
        self._cut(now, cut)
        if cut < _CUT and not regaining:
            self._ceiling = (self._rate + before) / 2

    def _cut(self, now: float, factor: float) -> None:
        self._passed = self._getting_through()
        self._limit, self._drawn = self._rate, _BURST * self._rate  # it is dry
        self._rate = self._ceiling = max(_LEAST, self._rate * factor)
        self._climb = _RETURN
        self._calm = 0.0
        self._cut_at = now
        self._answers = self._refused = 0
        self._fresh_answers = self._fresh_refused = self._recent = 0

    @property
    def _span(self) -> int:
        """How many answers are looked at together: what a third of a second brings."""
        return max(_SPAN, int(_SPAN * self._rate / _DOCUMENTED))

    def _note_fresh(self, *, refused: bool) -> None:
        """Remember the answer to a request that went out after the cut."""
        self._fresh_answers += 1
        self._fresh_refused += refused
        if not self._mode.fixed:  # and its rate may be any number
            self._recent = (self._recent << 1 | refused) & (1 << self._span) - 1

    def _fallen_to(self, sent_at: float) -> float | None:
        """Return the limit as a share of the rate, once it is seen to be far below.

        Args:
            sent_at: When the request went out whose 429 just came.
        """
        if self._is_early:
            # The bucket was full then, and has less than one request now: half of one.
            seconds = max(0.0, sent_at - self._began_at)
            let_in = self._let_in + self._answers - self._refused + 0.5
            share = let_in / (seconds + _BURST) / self._rate
            if seconds < _SEARCH and share < _HALF:
                return max(_LEAST_SHARE, share)
        if not self._has_fallen():
            return None
        # From the first of them to the last, which is this one.
        refused, answers = self._recent.bit_count(), self._recent.bit_length()
        passed = 1 - (refused - 1) / (answers - 1)
        return max(_LEAST_SHARE if self._at_first else _HALF, _MARGIN * passed)

    @property
    def _is_early(self) -> bool:
        """Whether the first 429 of a search from nothing has only just come."""
        return self._mode.searches and self._at_first and self._answers <= _SECOND

    def _has_fallen(self) -> bool:
        """Tell whether the limit fell, by what went out after the cut of this event."""
        return (
            (self._was_calm or self._at_first)
            and self._fresh_answers >= _ANSWERS
            and self._recent.bit_count() * _SPAN >= _REFUSALS * self._span
        )

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
        self._rate = max(_LEAST, self._rate * _BLOCKED_CUT)
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

    def _fill(self, seconds: float) -> None:
        """Follow the bucket that hides the limit until it is dry."""
        drawn = self._drawn + self._requests - self._limit * seconds
        if drawn >= _BURST * self._limit:  # what gets through now is no bucket's
            self._limit = max(self._limit, self._rate)
        self._drawn = min(max(0.0, drawn), _BURST * self._limit)

    def _grow(self, now: float, seconds: float) -> None:
        """Raise the rate for so many seconds in which it was used."""
        if self._rate < self._ceiling:
            # Not before the answers to what went out above it have come in.
            if now - self._cut_at >= _EVENT:
                self._rate = min(self._ceiling, self._rate + self._climb * seconds)
            return
        most = _HIDDEN * self._limit if self._mode.alone else math.inf
        if self._rate >= most:
            return
        slowness = min(1.0, self._rate / _KNEE)
        self._calm += slowness * seconds
        if self._calm > 0:
            slope = _SLOPE * min(1.0, _KNEE / self._rate)
            slope += _CURVE * max(0.0, self._calm - _STEADY) ** 2
            self._rate = min(most, self._rate + slope * slowness**2 * seconds)
