"""The table of the commands of ``fleet``."""

from __future__ import annotations

import typer

from async_refunds.cli.usage import Command

from . import enqueue, init, runs, status, sweep, wait, worker

app = typer.Typer(rich_markup_mode=None)

for name, help_text, command in (
    ("init", init.HELP, init.init),
    ("enqueue", enqueue.HELP, enqueue.enqueue),
    ("sweep", sweep.HELP, sweep.sweep),
    ("worker", worker.HELP, worker.worker),
    ("status", status.HELP, status.status),
    ("wait", wait.HELP, wait.wait),
    ("report", runs.REPORT_HELP, runs.report),
    ("pause", runs.PAUSE_HELP, runs.pause),
    ("resume", runs.RESUME_HELP, runs.resume),
    ("close", runs.CLOSE_HELP, runs.close),
    ("retry", runs.RETRY_HELP, runs.retry),
    ("prune", runs.PRUNE_HELP, runs.prune),
):
    first_line = help_text.partition("\n")[0]
    app.command(name, cls=Command, help=help_text, short_help=first_line)(command)
