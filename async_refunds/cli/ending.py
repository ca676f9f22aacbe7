"""How a batch ended: how many came to what, what to do next, and the exit code."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from async_refunds.results import CANCELED, CancelOutcome

from .connect import is_elsewhere
from .output import aligned

if TYPE_CHECKING:
    from async_refunds.journal import Run

Outcomes: TypeAlias = Counter[CancelOutcome | None]
"""How many refunds came to which outcome; under ``None`` what has no result yet."""

DONE = 0
NOT_ALL = 1
UNKNOWN = 3

# In the order in which they want to be read.
_ORDER: tuple[CancelOutcome | None, ...] = (
    *("canceled", "already_canceled", "not_cancelable", "failed", "unknown"),
    None,
)


def resume_command(journal: str, run: Run) -> str:
    """Return what to type to go on with the run that a journal is of."""
    words = ["async-refunds", "resume", journal, *(["--live"] if run.livemode else [])]
    if is_elsewhere(run):
        words += ["--base-url", run.base_url]
    return shlex.join(words)


def table(outcomes: Outcomes, resume: str | None) -> list[str]:
    """Return how many came to which outcome, and what to do about each.

    Args:
        outcomes: The counts.
        resume: The command that goes on, if there is a journal.
    """
    again = f"`{resume}`" if resume else "run the same command again"
    advice: dict[CancelOutcome | None, str] = {
        "canceled": "",
        "already_canceled": "nothing: canceled before this run asked",
        "not_cancelable": "nothing can be: it is no longer in requires_action",
        "failed": f"not canceled: read the error, mend its cause, then {again}",
        "unknown": f"maybe canceled: {again}; nothing is canceled twice",
        None: again,
    }
    rows = [
        [outcome or "open", f"{outcomes[outcome]:,}", advice[outcome]]
        for outcome in _ORDER
        if outcomes[outcome]
    ]
    return aligned([["outcome", "refunds", "what to do"], *rows])


def exit_code(outcomes: Outcomes) -> int:
    """Return 0 if all are canceled, 3 if one is unknown, 1 for anything else."""
    if outcomes["unknown"]:
        return UNKNOWN
    there = {outcome for outcome, count in outcomes.items() if count}
    return DONE if there <= CANCELED else NOT_ALL
