"""What can go wrong on purpose, and which request meets it.

`server.fault_injection` and `server.listener` do the damage.
"""

from __future__ import annotations

import math
from collections import deque

# At run time: the admin API reads the signatures of the methods.
from collections.abc import Callable, Mapping, Sequence  # noqa: TC003 - as said
from itertools import accumulate
from random import Random

from .clock import Seconds

FAULTS: Mapping[str, str] = {
    "refuse": "connections are refused for a moment; nothing arrives",
    "reset_before": "the connection is reset before anything is executed",
    "reset_after": "executed, then the connection is reset and the answer is lost",
    "stall": "nothing executed, its key and charge held until the client hangs up",
    "slow": "executed, and answered late",
    "cut_body": "executed, but the connection is cut halfway through the body",
    "garbage": "executed, but 200 with a body that is not JSON",
    "empty": "executed, but 200 with an empty body",
    "bad_gzip": "executed, but the body claims to be gzip and is not",
    "html_502": "executed, but a proxy's 502 page takes the place of the answer",
    "saved_500": "executed, but a 500 is answered and saved under the key",
    "unsaved_500": "500, nothing executed or saved",
    "503": "503, nothing executed or saved",
    "424": "424, nothing executed or saved",
    "rate_429": "429 of a limiter, nothing executed",
    "lock_429": "429 because another request holds the object, nothing executed",
    "in_use_409": "409 because the key is in use, nothing executed",
    "redirect": "302 to another host, nothing executed",
}

# In a script: no fault.
OK = "ok"

# Stripe never redirects these requests: a storm includes it only by name.
STORM_NAMES = tuple(name for name in FAULTS if name != "redirect")


class Faults:
    """Chooses the fault of the next request: from the script, then from the storm.

    Args:
        random: Draws the faults of a storm.

    Attributes:
        refuse_seconds: How long ``refuse`` refuses connections.
        slow_seconds: How late ``slow`` answers.
    """

    refuse_seconds = Seconds()
    slow_seconds = Seconds()

    def __init__(self, random: Random) -> None:
        self.refuse_seconds = 0.05
        self.slow_seconds = 0.2
        self._random = random
        self._script: deque[str] = deque()
        self._weights: Mapping[str, float] = {}
        self._bounds: Sequence[tuple[float, str]] = ()
        self._refuse: Callable[[], bool] | None = None

    @property
    def scripted(self) -> list[str]:
        """The faults of the next requests."""
        return list(self._script)

    @property
    def storming(self) -> dict[str, float]:
        """The probability of each fault, once the script is empty."""
        return dict(self._weights)

    def script(self, *names: str) -> None:
        """Add faults for the next requests, in this order; ``"ok"`` is no fault.

        A ``"refuse"`` that comes next acts at once, without a request.

        Raises:
            ValueError: A name is not one of `FAULTS`.
        """
        for name in names:
            if name != OK:
                _check_name(name)
        self._script.extend(names)
        self.refuse_if_next()

    def storm(
        self,
        probability: float,
        *,
        names: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> None:
        """Let each request meet a fault with this probability.

        Args:
            probability: From 0 to 1.
            names: Faults that are equally likely. Default: all but ``redirect``.
            seed: The same seed repeats the same storm.

        Raises:
            ValueError: The probability or a name is invalid.
        """
        chosen = STORM_NAMES if names is None else tuple(names)
        if not chosen:
            raise ValueError("a storm needs at least one fault")
        _check_probability(probability, str(probability))
        self._set_storm({name: probability / len(chosen) for name in chosen})
        if seed is not None:
            self._random = Random(seed)  # noqa: S311  # a storm is no secret

    def clear(self) -> None:
        """Forget the script and the storm."""
        self._script.clear()
        self._set_storm({})

    def load(self, spec: str) -> None:
        """Parse a script or a storm as a command line gives it.

        ``storm:0.3``, ``storm:0.3:7`` (7 is the seed), ``script:reset_after,ok,503``
        or a probability for each fault: ``reset_after=0.1,503=0.2``.

        Raises:
            ValueError: A part is invalid; the message names it and what is possible.
        """
        kind, _, rest = spec.partition(":")
        if kind == "script":
            self.script(*(name.strip() for name in rest.split(",")))
        elif kind == "storm":
            probability, colon, seed = rest.partition(":")
            self.storm(
                _parse_probability(probability),
                seed=_parse_seed(seed) if colon else None,
            )
        else:
            self._set_storm(_parse_weights(spec))

    def draw(self) -> str | None:
        """Return the fault of the request that has just arrived, if any."""
        if self._script:
            name = self._script.popleft()
            return None if name == OK else name
        if self._bounds:
            drawn = self._random.random()
            for bound, name in self._bounds:
                if drawn < bound:
                    return name
        return None

    def refuse_if_next(self) -> None:
        """Refuse connections now if ``refuse`` comes next: no request can draw it."""
        if (
            self._script
            and self._script[0] == "refuse"
            and self._refuse is not None
            and self._refuse()
        ):
            self._script.popleft()

    def connect_listener(self, refuse: Callable[[], bool] | None) -> None:
        """Set the function that refuses connections (None: nothing listens).

        It returns False if it cannot refuse now; it calls `refuse_if_next` later.
        """
        self._refuse = refuse
        self.refuse_if_next()

    def _set_storm(self, weights: Mapping[str, float]) -> None:
        for name in weights:
            _check_name(name)
        self._weights = weights
        self._bounds = tuple(zip(accumulate(weights.values()), weights, strict=True))


def _check_name(name: str) -> None:
    if name not in FAULTS:
        raise ValueError(f"no fault {name!r}; there are: {', '.join(FAULTS)}")


def _check_probability(probability: float, text: str) -> None:
    if not (math.isfinite(probability) and 0 <= probability <= 1):
        raise ValueError(f"{text!r} is no probability: it must be from 0 to 1")


def _parse_probability(text: str) -> float:
    try:
        probability = float(text)
    except ValueError:
        probability = math.nan
    _check_probability(probability, text)
    return probability


def _parse_seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no seed: it must be a whole number") from None


def _parse_weights(spec: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, equals, text = part.strip().partition("=")
        _check_name(name)
        if not equals:
            raise ValueError(f"{name!r} has no probability: write {name}=0.1")
        weights[name] = weights.get(name, 0.0) + _parse_probability(text)
    total = sum(weights.values())
    # Ten times 0.1 is a little more than 1 in binary fractions.
    if total > 1 + 1e-9:
        msg = f"the probabilities of {spec!r} add up to {total:g}, more than 1"
        raise ValueError(msg)
    return weights
