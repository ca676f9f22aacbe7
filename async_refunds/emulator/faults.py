"""What can go wrong on purpose, and when.

This module only decides; `handling` and `server` do the damage.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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

# Stripe never redirects these requests, so a storm does so only when told to.
STORM_NAMES = tuple(name for name in FAULTS if name != "redirect")


class Faults:
    """Which fault the next request meets: first the script, then the storm.

    Args:
        random: Draws the storm.

    Attributes:
        refuse_seconds: How long ``refuse`` keeps the door shut.
        slow_seconds: How late ``slow`` answers.
    """

    def __init__(self, random: Random) -> None:
        self.refuse_seconds = 0.05
        self.slow_seconds = 0.2
        self._random = random
        self._script: deque[str] = deque()
        self._weights: Mapping[str, float] = {}
        self._storm: Sequence[tuple[float, str]] = ()
        self._refuse: Callable[[], bool] | None = None

    @property
    def scripted(self) -> list[str]:
        """What the next requests meet."""
        return list(self._script)

    @property
    def storming(self) -> dict[str, float]:
        """With which probability each request meets which fault, after the script."""
        return dict(self._weights)

    def script(self, *names: str) -> None:
        """Append to what the next requests meet, in this order; ``"ok"`` is no fault.

        A ``"refuse"`` acts as soon as it is next in line.

        Raises:
            ValueError: There is no fault of that name.
        """
        for name in names:
            if name != OK:
                _check_name(name)
        self._script.extend(names)
        self.settle()

    def storm(
        self,
        probability: float,
        *,
        names: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> None:
        """Let each request meet a fault with this probability, any of ``names`` alike.

        Args:
            probability: From 0 to 1.
            names: Every fault but ``redirect`` unless told otherwise.
            seed: Makes the same storm again.

        Raises:
            ValueError: The probability or a name is not one.
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
        """Take a script or a storm from a command line's words.

        ``storm:0.3``, ``storm:0.3:7`` (7 is the seed), ``script:reset_after,ok,503``
        or a probability for each: ``reset_after=0.1,503=0.2``.

        Raises:
            ValueError: A part is wrong; the message names it and what is possible.
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
        """Return the fault that the request which just arrived meets, if any."""
        if self._script:
            name = self._script.popleft()
            return None if name == OK else name
        if self._storm:
            drawn = self._random.random()
            for bound, name in self._storm:
                if drawn < bound:
                    return name
        return None

    def settle(self) -> None:
        """Shut the door if ``refuse`` is next: it cannot wait for a request."""
        if (
            self._script
            and self._script[0] == "refuse"
            and self._refuse is not None
            and self._refuse()
        ):
            self._script.popleft()

    def watch(self, refuse: Callable[[], bool] | None) -> None:
        """Name who shuts the door (None: nobody does).

        ``refuse`` returns False when it cannot now and will `settle` later.
        """
        self._refuse = refuse
        self.settle()

    def _set_storm(self, weights: Mapping[str, float]) -> None:
        for name in weights:
            _check_name(name)
        self._weights = weights
        bounds = accumulate(weights.values())
        self._storm = tuple(zip(bounds, weights, strict=True))


def _check_name(name: str) -> None:
    if name not in FAULTS:
        msg = f"no fault {name!r}; there are: {', '.join(FAULTS)}"
        raise ValueError(msg)


def _check_probability(probability: float, text: str) -> None:
    if not (math.isfinite(probability) and 0 <= probability <= 1):
        msg = f"{text!r} is no probability: a number from 0 to 1 is"
        raise ValueError(msg)


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
        msg = f"{text!r} is no seed: a whole number is"
        raise ValueError(msg) from None


def _parse_weights(spec: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, equals, text = part.strip().partition("=")
        _check_name(name)
        if not equals:
            msg = f"{part.strip()!r} has no probability: write {name}=0.1"
            raise ValueError(msg)
        weights[name] = weights.get(name, 0.0) + _parse_probability(text)
    total = sum(weights.values())
    # Ten times 0.1 is a little more than 1 in binary fractions.
    if total > 1 + 1e-9:
        msg = f"the probabilities of {spec!r} add up to {total:g}, more than 1"
        raise ValueError(msg)
    return weights
