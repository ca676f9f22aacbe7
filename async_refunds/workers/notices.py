"""What a worker says in its log of accounts that it takes over or gives back."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from async_refunds.journal.postgres.leases import Lease

_NAMED = 5
"""Accounts that are named in one line; of more, the rest is counted."""
_COUNTED = 1000
"""Refunds of one account up to which they are counted, see `Lease.left`."""


def takeovers(leases: Collection[Lease]) -> Iterator[str]:
    """Yield a line for each worker of which accounts were taken over.

    Args:
        leases: What was just acquired; those that were free say nothing.
    """
    by_worker: dict[str, list[Lease]] = defaultdict(list)
    for lease in leases:
        if lease.former is not None:
            by_worker[lease.former].append(lease)
    for worker, taken in by_worker.items():
        least = any(lease.left >= _COUNTED for lease in taken)
        left = sum(lease.left for lease in taken)
        yield (
            f"taken over from {worker}, which has not released them: "
            f"{_listed([lease.account for lease in taken])}; "
            f"{'at least ' if least else ''}{left:,} open"
        )


def left_open(
    waits: Mapping[str | None, float], held_back: Mapping[str | None, float]
) -> str:
    """Return what is said of accounts that are given back with something failed.

    Nothing of those of which nothing at all is sent until then: that was said already.

    Args:
        waits: Each account with the seconds until what failed is asked for again.
        held_back: Accounts with the seconds for which nothing of them is sent.
    """
    accounts = {
        account: seconds
        for account, seconds in waits.items()
        if seconds >= held_back.get(account, 0.0) + 1
    }
    if not accounts:
        return ""
    soonest, latest = min(accounts.values()), max(accounts.values())
    span = (
        f"{soonest:.0f}" if latest - soonest < 1 else f"{soonest:.0f} to {latest:.0f}"
    )
    return (
        f"what failed or is unknown of {_listed(accounts)} is asked for again in "
        f"{span} s, or at once after `async-refunds fleet retry`"
    )


def _listed(accounts: Collection[str | None]) -> str:
    names = [account or "the key's own account" for account in accounts]
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
