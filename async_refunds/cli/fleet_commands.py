"""The table of the commands of ``fleet``."""

from __future__ import annotations

import typer

from . import (
    fleet_enqueue,
    fleet_init,
    fleet_runs,
    fleet_status,
    fleet_sweep,
    fleet_worker,
)

app = typer.Typer(rich_markup_mode=None)

for name, help_text, command in (
    ("init", fleet_init.HELP, fleet_init.init),
    ("enqueue", fleet_enqueue.HELP, fleet_enqueue.enqueue),
    ("sweep", fleet_sweep.HELP, fleet_sweep.sweep),
    ("worker", fleet_worker.HELP, fleet_worker.worker),
    ("status", fleet_status.HELP, fleet_status.status),
    ("report", fleet_runs.REPORT_HELP, fleet_runs.report),
    ("pause", fleet_runs.PAUSE_HELP, fleet_runs.pause),
    ("resume", fleet_runs.RESUME_HELP, fleet_runs.resume),
    ("retry", fleet_runs.RETRY_HELP, fleet_runs.retry),
    ("prune", fleet_runs.PRUNE_HELP, fleet_runs.prune),
):
    first_line = help_text.partition("\n")[0]
    app.command(name, help=help_text, short_help=first_line)(command)
