"""The page ``/_emulator/ui``: what the emulator sees, and what can be done to it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES = {"ui": "text/html", "ui.css": "text/css", "ui.js": "text/javascript"}

# Only its own files, in no frame: https://www.w3.org/TR/CSP3/
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; "
    # An empty icon, or the browser would ask for one, and that would be in the log.
    "img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Asset(NamedTuple):
    """A file of the page."""

    body: bytes
    headers: Mapping[str, str]


@cache
def asset(name: str) -> Asset | None:
    """Return a file of the page by its name below ``/_emulator``, if it is one."""
    kind = _TYPES.get(name)
    if kind is None:
        return None
    file = resources.files("async_refunds.emulator.server")
    body = file.joinpath("ui.html" if name == "ui" else name).read_bytes()
    headers = {
        "Content-Type": f"{kind}; charset=utf-8",
        "Content-Security-Policy": _POLICY,
    }
    return Asset(body, headers)
