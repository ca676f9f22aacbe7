"""What a batch asks the keeper of leases, where several machines share the work."""

from __future__ import annotations

from typing import Protocol


class Leases(Protocol):
    """The leases that this process holds, each for one account.

    Both methods are cheap, and wait for nothing.
    """

    def may_send(self, stripe_account: str | None) -> bool:
        """Tell whether a request for an account may go out now.

        ``False`` is not for ever: a database that was away may come back in time, with
        the lease unchanged.
        """
        ...

    def rate(self, stripe_account: str | None) -> float | None:
        """Return the cancels a second that the last holder of the lease had found.

        ``None`` if nobody knows.
        """
        ...
