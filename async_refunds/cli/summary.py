"""How a batch ended: the count of each outcome, what to do next, the exit code."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from async_refunds.results import CANCELED

from .config import needs_address
from .exit_codes import DONE, NOT_ALL, UNKNOWN
from .tables import aligned, counted

if TYPE_CHECKING:
    from async_refunds.journal import Run

Outcomes: TypeAlias = Counter[str | None]
"""The number of refunds of each outcome; ``None`` counts those without a result."""

Steps: TypeAlias = dict[str | None, str]
"""What to do about each outcome, in the order of a table."""

IN_FLIGHT = "in flight"
"""Counts the refunds that a running process may be canceling."""

CLOSED = "the run is closed, another one may have them"
"""What to do about the failed refunds of a closed run."""

NOT_BEGUN = "not begun"
"""Counts the refunds that an interrupted batch without a journal has not begun."""


def close_command(journal: str) -> str:
    """Return the command that sends nothing more of the run of a journal."""
    return shlex.join(["async-refunds", "close", journal])


def resume_command(journal: str, run: Run, limit: int | None = None) -> str:
    """Return the command that continues the run of a journal, with so many refunds."""
    words = ["async-refunds", "resume", journal, *(["--live"] if run.livemode else [])]
    if needs_address(run):
        words += ["--base-url", run.base_url]
    if limit is not None:
        words += ["--max", str(limit)]
    return shlex.join(words)


def closed_run(left: int) -> str:
    """Return what a closed run is, whose so many refunds were perhaps sent."""
    if not left:
        return "closed: nothing more of it is sent"
    return f"closed: only what was perhaps sent is asked for, {counted(left, 'refund')}"


def given_up(count: int) -> str:
    """Return what a close did to so many refunds that were not canceled."""
    if not count:
        return "nothing was left to give up"
    return f"{counted(count, 'refund')} given up: not canceled, nor asked for any more"


def outcome_table(outcomes: Outcomes, steps: Steps) -> list[str]:
    """Return a table of the outcomes and what to do about each."""
    rows = [
        [outcome or "open", f"{outcomes[outcome]:,}", steps[outcome]]
        for outcome in steps
        if outcomes[outcome]
    ]
    return aligned([["outcome", "refunds", "what to do"], *rows])


def or_close(outcomes: Outcomes, close: str) -> str:
    """Return the way out where all that is left has failed, such as of a wrong id."""
    left = outcomes[None] + outcomes[IN_FLIGHT] + outcomes["unknown"]
    return "" if left else f", or {close} gives up"


def next_steps(
    outcomes: Outcomes,
    resume: str | None,
    *,
    close: str | None = None,
    closed: bool = False,
) -> Steps:
    """Return what to do about each outcome, in the order of a table.

    Args:
        outcomes: The counts.
        resume: The command that continues the run, if there is a journal.
        close: The command that gives up what failed, if it is to be named.
        closed: Whether nothing more of the run is sent.
    """
    again = f"`{resume}`" if resume else "run the same command again"
    failed = f"read the error, fix its cause, then {again}"
    if close:
        failed += or_close(outcomes, f"`{close}`")
    return {
        "canceled": "",
        "already_canceled": "nothing: canceled before this run asked",
        "not_cancelable": "nothing can be: it is no longer in requires_action",
        "failed": f"not canceled: {CLOSED if closed else failed}",
        "unknown": f"maybe canceled: {again}; nothing is canceled twice",
        NOT_BEGUN: f"not canceled: {again}",
        IN_FLIGHT: "nothing yet: the run is going on",
        None: "nothing yet: the run is going on" if outcomes[IN_FLIGHT] else again,
    }


def exit_code(outcomes: Outcomes) -> int:
    """Return 0 if all are canceled, 3 if one is unknown, 1 for anything else."""
    if outcomes["unknown"]:
        return UNKNOWN
    seen = {outcome for outcome, count in outcomes.items() if count}
    return DONE if seen <= CANCELED else NOT_ALL
