"""The search for the limit of one endpoint, whose rate swings just below it.

AIMD on evenly spaced requests (Chiu and Jain, 1989). The increase is inverse to the
rate, a binomial scheme (Bansal and Balakrishnan, INFOCOM 2001), so that two processes
on one account come to share it. After a long time without congestion the increase
accelerates with that time, as in CUBIC (RFC 9438) and H-TCP (draft-leith-tcp-htcp). The
429s of one moment are one congestion event with one cut, as in RFC 9002, section 7.3.2.
If they continue after it, the limit itself has fallen: then the cuts are deeper, and
the way back to the middle of a cut that was too deep is short, as in BIC (Xu, Harfoush
and Rhee, INFOCOM 2004). If four of nine that went out after a cut are refused, in a run
that was calm before, the rate falls at once to the share that got through. One process
that has an account for itself, and begins its search, falls at the second 429 to the
limit whose bucket lets in as much as got through; and it waits just above the limit
that it met last until a bucket would be dry. botocore's adaptive mode uses CUBIC; it
cuts to 0.7, and its sawtooth averages 0.92 of the limit.

Pure: no I/O, no clock, no chance. The figures beside the constants are those of the
simulation in tests/unit/test_rate_control.py.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from .limit_estimate import (
    BURST,
    DOCUMENTED,
    HALF,
    LEAST_SHARE,
    MARGIN,
    has_fallen,
    limit_of_bucket,
    recent_share,
    share_through,
    span,
)

_START = 20.0
"""Requests a second before anything is known: below what Stripe documents."""
LEAST = 0.1
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
`BURST` may still let more in: as far above as `_CUT` goes below. At 25/s that takes a
minute. An accelerating rate comes to 29 in that time, if the bucket is full."""
_RETURN = 2.0
"""Requests a second, per second, on the way to `DOCUMENTED` or back into the middle of
a cut that was too deep."""
_PENANCE = 100.0
"""Requests without growth for each further 429 of one event: where a little too fast
means many refusals, as with a bucket of one token, the next try has to wait."""

_CALM = 5.0
"""Seconds without a cut, since the start and since a fall, before the limit can be seen
to fall: in less, it is another process that takes its share, and a deep cut of one of
them would keep them apart. Later cuts change nothing: at its limit a pace is cut every
few seconds for a while, and the limit may fall just then."""
_SEARCH, _SECOND = 5.0, 4
"""Seconds from the start in which a limit far below is seen at once where nobody else
asks, and answers after the first 429 among which there is a second one then: three of
four are refused. On an account of 5/s the search meets two or three 429s, and more
only as far as they were under way; by four of nine it meets eight or more."""
_REGAIN = 0.35
"""Requests a second, per second, on the way back up after that, until the first 429: an
estimate from eight answers may be a third too low, and a limit of 25/s that has halved
is found within 20 s with at most 2 % of the requests of a minute refused."""
_REGAIN_CUT = 0.93
"""For that first 429: it came at more than the usual speed."""


class _Mode(NamedTuple):
    fixed: bool
    alone: bool
    searches: bool
    """From nothing, where nobody else asks."""


# One object for all: a platform has thousands of accounts.
_mode = functools.cache(_Mode)


class LimitSearch:
    """The rate of one endpoint, and what the answers have told about its limit.

    Args:
        rate: A fixed rate; ``None`` finds the limit.
        start: The rate with which the search begins.
        alone: Whether no other process that finds its pace shares the limit.
        now: The time.
    """

    __slots__ = (
        "_answers",
        "_at_first",
        "_began_at",
        "_calm",
        "_ceiling",
        "_climb",
        "_cut_at",
        "_drawn",
        "_fresh_answers",
        "_fresh_refused",
        "_let_in",
        "_limit",
        "_mode",
        "_passed",
        "_rate",
        "_recent",
        "_refused",
        "_was_calm",
    )

    def __init__(
        self, rate: float | None, start: float | None, *, alone: bool, now: float
    ) -> None:
        self._mode = _mode(rate is not None, alone, alone and start is None)
        self._rate = rate or start or _START
        # Where the quick climb ends.
        self._ceiling = start or DOCUMENTED
        self._limit = self._ceiling  # as it was met last
        self._drawn = 0.0  # requests out of its bucket, which is full
        self._climb = _RETURN  # its slope
        self._calm = 0.0  # seconds of growth since the last cut
        self._began_at = now
        self._cut_at = -math.inf
        self._was_calm = False  # at one of the cuts since the last fall
        self._at_first = False  # whether the last was the first, and nobody else asks
        self._let_in = 0  # answers until then that were no 429s
        self._answers = self._refused = 0  # since the cut, and 429s of these
        self._fresh_answers = self._fresh_refused = 0  # of what went out after it
        self._recent = 0  # the last of these; see `limit_estimate.has_fallen`
        self._passed = math.inf  # requests a second that got through before it

    def _found_rate(self) -> float | None:
        """Return the rate that is found by now; ``None`` if there is none.

        None is found at a fixed pace. While the rate is far above the limit and still
        on its way down, it is what gets through of it: the other process has no way
        down to go, and no refusals on it. While a bucket may hide the limit, it is the
        one that was met last: else the rate would creep up with each process that takes
        over.
        """
        # Still on its way to where it begins to feel for the limit, or just there.
        on_its_way = self._cut_at == -math.inf and self._rate < self._ceiling
        if self._mode.fixed or on_its_way or self._is_early:
            return None
        return min(self._rate, self._limit, self._getting_through())

    def _getting_through(self) -> float:
        """Return the requests a second that get through, if many do not; or infinity.

        By what went out since the last cut, and before it while that is too little.
        """
        share = share_through(self._fresh_answers, self._fresh_refused)
        return self._passed if share is None else self._rate * share

    def _note_answer(self, sent_at: float, *, refused: bool) -> None:
        """Note an answer that is a 429 of a rate limiter, or no sign of any limit."""
        self._answers += 1
        self._refused += refused
        if sent_at < self._cut_at:
            return
        self._fresh_answers += 1
        self._fresh_refused += refused
        if not self._mode.fixed:  # and its rate may be any number
            self._recent = (self._recent << 1 | refused) & (1 << span(self._rate)) - 1

    def _slow_down(self, now: float, sent_at: float) -> None:
        """Cut the rate for a 429, as far as no cut of the last second explains it.

        Args:
            now: The time.
            sent_at: When the request went out.
        """
        since = now - self._cut_at
        if since >= _EVENT:
            self._begin_event(now, since)
        elif (share := self._fallen_to(sent_at)) is not None:
            before = self._rate
            self._cut(now, share)
            self._ceiling, self._climb = MARGIN * before, _REGAIN
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
        self._limit, self._drawn = self._rate, BURST * self._rate  # it is dry
        self._rate = self._ceiling = max(LEAST, self._rate * factor)
        self._climb = _RETURN
        self._calm = 0.0
        self._cut_at = now
        self._answers = self._refused = 0
        self._fresh_answers = self._fresh_refused = self._recent = 0

    def _fallen_to(self, sent_at: float) -> float | None:
        """Return the limit as a share of the rate, once it is seen to be far below.

        Args:
            sent_at: When the request went out whose 429 just came.
        """
        if self._is_early:
            seconds = max(0.0, sent_at - self._began_at)
            let_in = self._let_in + self._answers - self._refused
            share = limit_of_bucket(let_in, seconds) / self._rate
            if seconds < _SEARCH and share < HALF:
                return max(LEAST_SHARE, share)
        if not (self._was_calm or self._at_first):
            return None
        recent = self._recent
        if not has_fallen(recent, self._fresh_answers, self._rate):
            return None
        least = LEAST_SHARE if self._at_first else HALF
        return max(least, recent_share(recent))

    @property
    def _is_early(self) -> bool:
        """Whether the first 429 of a search from nothing has only just come."""
        return self._mode.searches and self._at_first and self._answers <= _SECOND

    def _fill(self, requests: int, seconds: float) -> None:
        """Follow the bucket that hides the limit until it is dry."""
        drawn = self._drawn + requests - self._limit * seconds
        if drawn >= BURST * self._limit:  # what gets through now is no bucket's
            self._limit = max(self._limit, self._rate)
        self._drawn = min(max(0.0, drawn), BURST * self._limit)

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
