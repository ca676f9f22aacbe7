"""``fleet worker``: the process that cancels what is enqueued."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from async_refunds.cli.config import Connection
from async_refunds.cli.exit_codes import DONE
from async_refunds.cli.options import (
    CONCURRENCY,
    PATIENCE,
    BatchOptions,
    Format,
    canceling,
)
from async_refunds.cli.output import Output, refuse
from async_refunds.cli.stop_signals import on_stop
from async_refunds.cli.tables import counted
from async_refunds.errors import JournalError
from async_refunds.protocol import validation
from async_refunds.workers import work

from .database import DatabaseOptions  # noqa: TC001 - the options are read from it
from .enqueue import TargetOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_refunds.results import CancelResult

HELP = """Cancel what is enqueued, together with other workers, until it is stopped.

Takes accounts that nobody works on, a few at a time, finds the pace that Stripe
allows each, and goes on with what a worker that died has left, with the same
idempotency keys. It takes only runs of its --tenant, --base-url and
mode.

On SIGTERM or Ctrl-C it begins nothing more, gives what is under way three
seconds to end, and gives its accounts back, all within ten seconds. A second
one ends it at once. What was not answered is left to the next worker that has
its account, which asks with the same key: nothing is canceled twice. It waits
for a database that is away.

The API key comes from STRIPE_API_KEY. Warnings go to stderr; what became of
each refund is in `fleet report`.

Exit codes: 0 it was stopped, 2 wrong usage, the database refuses, or its tables
are not those of this release, 130 interrupted before it began."""

WORKING = "working at {api.base_url} in {api.mode} mode; Ctrl-C ends it"
STOPPING = (
    "stopping: nothing more is begun, what is under way has three seconds to end, and "
    "the accounts are given back (interrupt again to end at once)"
)

_LEAST_LEASE = 1.0
"""Seconds. It is renewed three times in each, over a network; and the others look for
what a silent worker has left from one second on."""


class WorkerOptions(TargetOptions, frozen=True, kw_only=True):
    """Whose refunds it cancels, where, and how it shares with others."""

    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Work on runs in live mode, with a live key: real money."
        ),
    ] = False
    context: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The account, for an organization's key."),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How `fleet status` names it. [default: host and process]",
        ),
    ] = None
    lease: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="After how long without a sign of a worker others take over its "
            "accounts. The same for all workers.",
        ),
    ] = 30.0

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            ValueError: A value that cannot be used.
        """
        TargetOptions.__post_init__(self)
        if validation.seconds("--lease", self.lease) < _LEAST_LEASE:
            raise ValueError(f"--lease must be at least {_LEAST_LEASE:.0f} second")


class WorkerBatchOptions(BatchOptions, frozen=True, kw_only=True, omit_defaults=True):
    """How fast and how long a worker works."""

    patience: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long a refund is tried again while Stripe fails or limits; then "
            "it is failed or unknown, and asked for again after a minute or more. If "
            "Stripe never answers, that is so after five seconds. [default: 120]",
        ),
    ] = None


@canceling
def worker(
    *,
    given: WorkerOptions,
    database: DatabaseOptions,
    batch: WorkerBatchOptions,
    form: Format,
) -> None:
    """Cancel what is enqueued, until it is stopped."""
    output = Output(form)
    api = Connection(live=given.live, base_url=given.base_url, context=given.context)
    if given.live and not api.livemode:
        refuse(
            "--live is for runs in live mode, and STRIPE_API_KEY is a test key: it can "
            "cancel nothing of them"
        )
    address = database.address
    _log_warnings(verbose=form.verbose)
    outcomes: Counter[str] = Counter()

    def count(result: CancelResult) -> None:
        outcomes[result.outcome] += 1

    async def run() -> None:
        stop = asyncio.Event()
        async with api.client(output) as refunds:
            with _stopped_by_signals(stop, lambda: output.say(STOPPING)):
                await work(
                    address.conninfo,
                    refunds,
                    tenant=given.tenant,
                    name=given.name,
                    concurrency=batch.concurrency or CONCURRENCY,
                    ttl=given.lease,
                    rate=batch.rate,
                    patience=batch.patience or PATIENCE,
                    timeout=batch.timeout,
                    stop=stop,
                    on_ready=lambda: output.say(WORKING.format(api=api)),
                    on_result=count,
                )

    try:
        asyncio.run(run())
    except JournalError as error:
        refuse(str(error))
    except asyncio.CancelledError:
        output.say("ended at once; other workers go on with what was under way")
    output.say(_ended(outcomes))
    raise typer.Exit(DONE)


def _ended(outcomes: Counter[str]) -> str:
    told = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
    results = counted(outcomes.total(), "result")
    said = f"ended with {results}{': ' if told else ''}{told}"
    if outcomes["failed"] + outcomes["unknown"] > 1:
        said += "; a refund that was asked for again counts each time"
    return said


def _log_warnings(*, verbose: bool) -> None:
    """Write warnings to stderr; with --verbose more is written there already."""
    if verbose:
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("async_refunds").addHandler(handler)


@contextmanager
def _stopped_by_signals(
    stop: asyncio.Event, say: Callable[[], object]
) -> Generator[None]:
    """Set an event at the first signal, and cancel the task at the second.

    Args:
        stop: The event.
        say: Called at the first signal.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one

    def end() -> None:
        if stop.is_set():
            task.cancel()
            return
        stop.set()
        say()

    with on_stop(end):
        yield
