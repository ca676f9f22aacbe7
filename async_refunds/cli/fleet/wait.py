"""``fleet wait``: until each refund of a run has a result."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from async_refunds.cli import progress
from async_refunds.cli.exit_codes import NOT_ALL
from async_refunds.cli.options import Format, with_options
from async_refunds.cli.output import Output, interruptible, print_error
from async_refunds.cli.summary import exit_code
from async_refunds.cli.tables import counted
from async_refunds.errors import JournalError
from async_refunds.journal.postgres.runs import (
    RunReader,
    run_progress,
    run_total,
)

from .database import DatabaseOptions, RunArgument, connected
from .waiting import waiting_lines

if TYPE_CHECKING:
    from async_refunds.cli.summary import Outcomes
    from async_refunds.journal.postgres.runs import RunProgress

    from .change import Connection

# Seconds between two looks; and of the time at most this share is spent on them.
_INTERVAL, _SHARE = 0.5, 0.1

HELP = """Wait until each refund of a run has a result.

Workers ask by themselves, again and again, for what failed or is unknown, after
up to a quarter of an hour each time. When nothing else is left, the command
ends, and names it; with --settled it goes on waiting. `fleet close` gives up
what failed. What is dead has a result too. The progress goes to stderr, what
became of the refunds to stdout.

Exit codes: 0 all are canceled, 1 some are not, or are open after --timeout, the
run has none, stdout broke, or the database failed, 2 wrong usage, no such run,
no connection, or no right, 3 the outcome of some is unknown, 130 interrupted."""


@with_options
def wait(
    run: RunArgument,
    *,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.0, help="Wait no longer. [default: to the end]"
        ),
    ] = None,
    settled: Annotated[
        bool,
        typer.Option(
            "--settled", help="Wait also for what failed or is unknown to be settled."
        ),
    ] = False,
    database: DatabaseOptions,
    form: Format,
) -> None:
    """Wait until each refund of a run has a result."""
    output = Output(form)
    with (
        interruptible(lambda: "workers go on with it"),
        connected(database) as connection,
    ):
        waiting = _Waiting(output, connection, run, settled=settled)
        asyncio.run(waiting.to_its_end(timeout))
        try:
            tally = RunReader(connection, database.address, run).tally()
        except JournalError as error:  # the run was there a moment ago
            print_error(str(error))
            raise typer.Exit(NOT_ALL) from None
        outcomes: Outcomes = Counter()
        for name, count in tally.outcomes.items():
            outcomes[name] += count
        _tell(output, run, waiting.left, outcomes)
        waiting.tell_what_waits()
    raise typer.Exit(exit_code(outcomes) if outcomes else NOT_ALL)


def _tell(output: Output, run: str, left: RunProgress, outcomes: Outcomes) -> None:
    if not outcomes:
        print_error(f"{run} has no refunds: none was added, or all were pruned")
        return
    if not output.as_table:
        counts = {name or "open": count for name, count in outcomes.items()}
        output.record({"run": run, "open": left.open, "outcomes": counts})
    told = ", ".join(f"{n:,} {name or 'open'}" for name, n in outcomes.most_common())
    output.say(f"{run}, {counted(outcomes.total(), 'refund')}: {told}")
    if left.open > left.waiting:
        goes_on = "it is closed" if left.state == "closed" else "workers go on"
        print_error(f"{counted(left.open, 'refund')} of {run} not done; {goes_on}")


class _Waiting:
    """Looks at a run now and then.

    Args:
        output: Gets the progress.
        connection: To the database.
        run: The name of the run.
        settled: Wait also for what failed or is unknown.
    """

    def __init__(
        self, output: Output, connection: Connection, run: str, *, settled: bool
    ) -> None:
        self._output, self._connection, self._run = output, connection, run
        self._settled = settled
        self.left = run_progress(connection, run)
        """What is left of it, as of the last look."""
        self._total = run_total(connection, run)
        self._speed = progress.Speed(time.monotonic, self._done)
        self._told_state = "open"
        self._told_waiting = 0
        self._told_held_back = False

    async def to_its_end(self, timeout: float | None) -> None:  # noqa: ASYNC109 - it is given as such
        """Wait until nothing is left, or for so many seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        async with progress.shown(self._output, self._line):
            while self._more:
                self._tell_state()
                self._tell_what_is_held_back()
                self.tell_what_waits()
                began = time.monotonic()
                if until is not None and began >= until:
                    return
                before, self.left = self.left, run_progress(self._connection, self._run)
                if self.left.open > before.open:
                    self._total = run_total(self._connection, self._run)
                took = time.monotonic() - began
                pause = max(_INTERVAL, took / _SHARE)
                if until is not None:
                    pause = min(pause, max(0.0, until - time.monotonic()))
                await asyncio.sleep(pause if self._more else 0.0)

    @property
    def _more(self) -> bool:
        """Whether there is something left to wait for."""
        left = self.left
        if left.state == "closed":
            return False
        return left.open > (0 if self._settled else left.waiting)

    def tell_what_waits(self) -> None:
        """Name what waits to be asked for again, if all that is left does: once."""
        left = self.left
        if left.state == "closed" or left.open > left.waiting:
            return
        if left.waiting == self._told_waiting:
            return
        self._told_waiting = left.waiting
        for line in waiting_lines(self._connection, self._run, left.waiting):
            self._output.say(line)

    def _tell_what_is_held_back(self) -> None:
        """Say that all that is left stands still, if it does: once each time."""
        left = self.left
        stands = left.held_back > 0 and left.open == left.waiting + left.held_back
        if stands and not self._told_held_back:
            self._output.say(
                f"nothing of {self._run} is asked for now: a key is refused, Stripe "
                "cannot be reached, or a request of a worker that was killed may be "
                "under way; `async-refunds fleet status` says more"
            )
        self._told_held_back = stands

    def _tell_state(self) -> None:
        if self.left.state != self._told_state:
            self._told_state = self.left.state
            self._output.say(f"{self._run} is {self.left.state}")

    @property
    def _done(self) -> int:
        return max(0, self._total - self.left.open)

    def _line(self, columns: int) -> str:
        speed = self._speed.per_second(self._done)
        tried = self.left.tried
        parts = [
            (4, progress.bar(self._done, self._total)),
            (0, f"{self._done:,}/{self._total:,}"),
            (3, f"{speed:.1f}/s"),
            (1, progress.time_left(self.left.open, speed)),
            (2, f"{tried:,} to be asked for again" if tried else ""),
        ]
        return progress.fitted(parts, columns)
