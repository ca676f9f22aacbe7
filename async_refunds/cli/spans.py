"""Spans of time as people type them: 14d, 36h, 2w."""

from __future__ import annotations

import re

from .output import refuse

_SPAN = re.compile(r"(\d{1,5})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def span_seconds(option: str, text: str) -> int:
    """Return the seconds of a span, or refuse it."""
    span = _SPAN.fullmatch(text)
    if span is None:
        refuse(
            f"{option} must be a number with s, m, h, d or w, such as 14d, not "
            f"{text!r}; nothing was done"
        )
    return int(span[1]) * _SECONDS[span[2]]
