"""The aiohttp session that a client makes for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from aiohttp.hdrs import ACCEPT_ENCODING, HOST
from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp.typedefs import LooseHeaders
    from yarl import URL

HEADER_LIMIT = 256 * 1024
"""Bytes of one header. aiohttp's default of 8 KiB would lose an answer to which a proxy
has added a long policy header."""


class PreparedRequest(aiohttp.ClientRequest):
    """A request whose headers the session has prepared, so that aiohttp adds none.

    aiohttp would build the Host header, add the others to it one by one, and look which
    of its own are missing: 4 % of a cancel.
    """

    def update_headers(self, headers: LooseHeaders | None) -> None:
        """Take the headers of the session and of the request, merged by the session."""
        self.headers = CIMultiDict(headers or ())

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add none: the session has them."""


def new_session(
    origin: URL, headers: Mapping[str, str], connector: aiohttp.TCPConnector
) -> aiohttp.ClientSession:
    """Return a session without cookies that sends to one origin.

    Args:
        origin: Where it sends.
        headers: Sent with every request.
        connector: Its pool of connections, closed with it.
    """
    host = origin.host_port_subcomponent
    assert host is not None  # noqa: S101 - only a relative URL has none
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Host first, as RFC 9110 (7.2) recommends.
        headers=CIMultiDict({HOST: host, ACCEPT_ENCODING: "gzip, deflate", **headers}),
        request_class=PreparedRequest,
        max_line_size=HEADER_LIMIT,
        max_field_size=HEADER_LIMIT,
        max_headers=1024,
    )
