"""What is said while a database is away: once for all that use it, and seldom again."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TRYING_AGAIN = "the database is away, trying again: %s"
WAITING = "waiting for the database: %s"
_AGAIN = 60.0  # seconds until it is said again
_SHORT = 10.0  # seconds: below that tenths are told

_logger = logging.getLogger("async_refunds")


class Outage:
    """Warns when a database goes away, and tells when it is back for all its users.

    Whatever the reasons are by then, that is said once, and again each minute: a server
    that restarts cuts connections, refuses them, and then says that it is starting up.

    Args:
        clock: Gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._users: set[object] = set()  # for whom it is away
        self._since = 0.0
        self._said_at = 0.0
        self.ended = 0
        """How many are over, and were told of."""

    def away(self, user: object, what: str, why: str) -> None:
        """Note that somebody cannot use the database.

        Args:
            user: The same in each call.
            what: What the user does, with ``%s`` where the reason stands.
            why: The reason, on one line.
        """
        now, begins = self._clock(), not self._users
        self._users.add(user)
        if begins:
            self._since = now
        if begins or now - self._said_at >= _AGAIN:
            self._said_at = now
            _logger.warning(what, why)

    def back(self, user: object) -> None:
        """Note that somebody can use it. It is back when everybody can again."""
        if user in self._users:
            self._users.remove(user)
            if not self._users:
                self.ended += 1
                seconds = self._clock() - self._since
                # As loud as what it takes back.
                _logger.warning(
                    "the database is back after %.*f s", int(seconds < _SHORT), seconds
                )

    def forget(self, user: object) -> None:
        """Note that somebody does not use it any more."""
        self._users.discard(user)
