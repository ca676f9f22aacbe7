"""A request as it came, and what of it is the same for every endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .errors import StripeError

# What an account without a pinned version would answer with.
DEFAULT_VERSION = "2026-10-28.endive"

# A date, since 2024 with a name, and perhaps with previews after a semicolon.
# https://docs.stripe.com/sdks/set-version
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?(;[ -~]*)?", re.ASCII)


@lru_cache
def is_version(text: str) -> bool:
    """Return whether a text has the form of a version's label."""
    return _VERSION.fullmatch(text) is not None


@dataclass(slots=True)
class Incoming:
    """A request as it came over the wire.

    Args:
        method: In capitals.
        path: Still percent-encoded.
        query: What follows the question mark, encoded.
        headers: By name, in any case.
        body: All of it.
        malformed: Why the body could not be read.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    malformed: StripeError | None = None
