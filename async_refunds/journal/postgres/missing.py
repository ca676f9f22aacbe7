"""Why a batch over PostgreSQL did not come to a result for each refund of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def explain_lost(accounts: Iterable[str | None]) -> str:
    """Say that the leases of accounts were lost, of which something is missing.

    Args:
        accounts: ``None`` for the key's own.
    """
    names = sorted(account or "the key's own account" for account in accounts)
    return (
        f"another process has taken over {', '.join(names)}: what becomes of these "
        "refunds, the journal tells"
    )


def explain_failover() -> str:
    """Say that the database may have forgotten refunds that this batch has added."""
    return (
        "the database came back without its last commits, perhaps without refunds that "
        "were added: begin again with the same ones, and none is added twice"
    )


def explain(
    state: str, dead: int, settled: int, count: int, *, lost: Iterable[str | None]
) -> str | None:
    """Say why refunds have no result; ``None`` if each has one.

    Args:
        state: Of the run.
        dead: How many of them whoever claimed them did not come to an end with.
        settled: How many somebody else has settled meanwhile.
        count: How many there are in all.
        lost: Their accounts of which the leases were lost.
    """
    if not count:
        return None
    reasons: list[str] = []
    waiting = count - dead - settled
    if state != "open":
        reasons.append(f"the run is {state}")
    if lost:
        reasons.append(explain_lost(lost))
    elif waiting and state == "open":
        reasons.append(
            f"{waiting:,} cannot be claimed now: begin again with the journal later"
        )
    if settled:
        reasons.append(f"{settled:,} settled by another process")
    if dead:
        reasons.append(f"{dead:,} dead: see `async-refunds fleet retry --help`")
    have = "refund has" if count == 1 else "refunds have"
    return f"{count:,} {have} no result here ({'; '.join(reasons)})"
