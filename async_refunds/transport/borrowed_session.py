"""Whether the aiohttp session of a caller may carry the API key."""

from __future__ import annotations

from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

# A default of the session would be sent where a call names none, and act on another
# account than the caller means.
_RESERVED = frozenset({"idempotency-key", "stripe-account", "stripe-context"})


def check_borrowed(session: aiohttp.ClientSession, origin: str) -> None:
    """Check a session before anything is sent with it.

    Raises:
        TypeError: It is no aiohttp session.
        ValueError: It could not carry the API key, or not safely.
    """
    if not isinstance(session, aiohttp.ClientSession):
        raise TypeError("session must be an aiohttp.ClientSession")
    if session.auth is not None:
        raise ValueError(
            "session has an auth of its own, which aiohttp refuses to combine with "
            "the API key's"
        )
    # aiohttp has no public name for the proxy that a session was made with.
    proxied = getattr(session, "_default_proxy", None) is not None
    if origin.startswith("http:") and (
        proxied or (session.trust_env and _environment_has_proxy(origin))
    ):
        raise ValueError(
            "session goes through a proxy (proxy or trust_env), which would see the "
            "API key on plain http"
        )
    if taken := sorted(_RESERVED & {name.casefold() for name in session.headers}):
        raise ValueError(
            f"session has {taken[0]} among its headers, which belongs to the call"
        )


def _environment_has_proxy(origin: str) -> bool:
    url = URL(origin)
    return url.scheme in getproxies() and not proxy_bypass(url.host or "")
