"""Keeps other pages of a browser away from the admin API.

Whoever reaches the emulator may use the admin API, and so may every page that somebody
opens on the same machine, if nothing stops its requests. A browser says where a request
comes from; programs such as curl say nothing, and are let in.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Nobody can publish a name without a dot, or one that ends so:
# https://www.icann.org/groups/ssac/sac053, https://www.rfc-editor.org/rfc/rfc6761 and
# https://www.icann.org/en/board-activities-and-meetings/materials/approved-resolutions-special-meeting-of-the-icann-board-29-07-2024-en
_PRIVATE = (".localhost", ".test", ".internal")


def refusal(headers: Mapping[str, str]) -> str | None:
    """Return why a request may be another page's, or None.

    Args:
        headers: Those of the request. ``Host``: a page can give a name of its own the
            address of this machine (DNS rebinding), so only addresses and names that
            nobody can publish are good. ``Origin`` and ``Sec-Fetch-Site``: a browser
            adds them to what a page sends elsewhere.
    """
    host = headers.get("Host", "")
    if not _is_private(_hostname(host)):
        return f"{host!r} is not a name of this machine: use its address"
    origin = headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        return "another page must not use the emulator"
    # https://www.w3.org/TR/fetch-metadata/; "same-site" is another port of this host.
    if headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        return "another page must not use the emulator"
    return None


def is_loopback(headers: Mapping[str, str]) -> bool:
    """Return whether a browser on this machine asks for a loopback address."""
    name = _hostname(headers.get("Host", ""))
    if name == "localhost":
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _hostname(host: str) -> str:
    """Return the name or address of a ``Host`` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _is_private(name: str) -> bool:
    return "." not in name or name.endswith(_PRIVATE) or _address(name) is not None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
