"""What waits to be asked for again by a fleet, in words."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from typing import TYPE_CHECKING

from async_refunds.cli.tables import counted
from async_refunds.journal.postgres.runs import first_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .change import Connection

_NAMED = 5
"""Refunds that are named: what keeps a run open is the same for most."""
# What begins a line that names the refund already. What is not said was not canceled.
_SUBJECT = re.compile(r"^(?:re|pyr)_\w+ (?:was not canceled: )?")


def span(seconds: float) -> str:
    """Return some seconds as people write them: 0:14:59."""
    return str(timedelta(seconds=round(seconds)))


def brief(error: str) -> str:
    """Return an error without the id of its refund."""
    return _SUBJECT.sub("", error)


def fleet_command(name: str, run: str, *words: str) -> str:
    """Return a command of ``fleet`` for a run, to be copied."""
    return f"`{shlex.join(['async-refunds', 'fleet', name, run, *words])}`"


def waiting_lines(connection: Connection, run: str, count: int) -> Iterator[str]:
    """Yield which refunds of a run wait to be asked for again, why, and a way out.

    Args:
        connection: To the database.
        run: Its name.
        count: How many wait.
    """
    first = first_waiting(connection, run, _NAMED)
    if not first:  # their time came just now
        return
    are = "is" if count == 1 else "are"
    yield (
        f"{counted(count, 'refund')} of {run} {are} asked for again, the first in "
        f"{span(first[0].seconds)}; {fleet_command('close', run)} gives up what failed:"
    )
    for each in first:
        account = f" of {each.stripe_account}" if each.stripe_account else ""
        yield f"  {each.refund_id}{account}: {brief(each.error)}"
    if (more := count - len(first)) > 0:
        yield f"  and {more:,} more: {fleet_command('report', run)} has all"
