"""What the answers of one endpoint tell of a limit that is far below the rate.

If four of nine requests that went out after a cut are refused, the limit is the share
that got through. At the first 429s of all, it is the one whose bucket lets in as much
as got through until then.

Pure: no I/O, no clock, no chance. The figures beside the constants are those of the
simulation in tests/unit/test_rate_control.py.
"""

from __future__ import annotations

import math

DOCUMENTED = 25.0
"""Requests a second of one endpoint (https://docs.stripe.com/rate-limits): the search
goes there at once and only then feels its way."""

_REFUSALS, _SPAN = 4, 9
"""429s among so many answers, of what went out after a cut, that show that the limit
has fallen. With half the limit every second request is refused."""
_ANSWERS = 8
"""The least number of answers to judge by: a third of a second."""
MARGIN, HALF = 0.95, 0.5
"""The new rate, of the share that got through, and its least share of the old one."""
LEAST_SHARE = 0.2
"""The least share where nobody else asks, at the first 429s and for the next holder.
Nothing may get through for a moment, and the way up from far below a limit is long."""
BURST = 1.0
"""Seconds of its rate that a bucket holds which nobody has used for a while. So what
got through until the first 429s is what the limit lets through in so much more time.
Where it holds less the estimate is too low, and the search goes up from it."""


def span(rate: float) -> int:
    """Return how many answers are looked at together: those of a third of a second."""
    return max(_SPAN, int(_SPAN * rate / DOCUMENTED))


def has_fallen(recent: int, answers: int, rate: float) -> bool:
    """Tell whether the limit fell, by what went out after a cut.

    Args:
        recent: The last of its answers, at most a `span` of them, a bit each, the
            newest lowest: 1 is a 429.
        answers: How many there were since the cut.
        rate: Of that time.
    """
    return answers >= _ANSWERS and recent.bit_count() * _SPAN >= _REFUSALS * span(rate)


def recent_share(recent: int) -> float:
    """Return the limit as a share of the rate, once it `has_fallen`."""
    # From the first of them to the last, which is a 429.
    refused, answers = recent.bit_count(), recent.bit_length()
    return MARGIN * (1 - (refused - 1) / (answers - 1))


def share_through(answers: int, refused: int) -> float | None:
    """Return which share of the requests gets through; infinity if nearly all do.

    ``None`` as long as the answers are too few to tell.
    """
    if answers < _ANSWERS:
        return None
    if refused < _REFUSALS:
        return math.inf
    # One less: of few answers so many more may have got through.
    return max(LEAST_SHARE, 1 - (refused - 1) / answers)


def limit_of_bucket(let_in: int, seconds: float) -> float:
    """Return the limit whose bucket, full at first, let so many in and is empty now."""
    return (let_in + 0.5) / (seconds + BURST)  # what it has left: half a request
