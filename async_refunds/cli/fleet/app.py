"""``fleet``: the commands for several machines, imported when one of them is used."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

import typer

from async_refunds.cli.output import refuse
from async_refunds.cli.usage import Group

HELP = """Cancel refunds with several machines, over one PostgreSQL database.

`init` makes the tables, `enqueue` adds refunds to a run, and each machine runs
`worker`. A worker takes whole accounts, one worker at a time for each, so that
Stripe's limit is kept over all machines. When a worker dies, the others go on
with its accounts and with the same idempotency keys.

The database is named by ASYNC_REFUNDS_DATABASE (postgresql://host/name), by
--database, or by libpq's own PGHOST, PGDATABASE and so on. The API key lives in
the environment of `worker` only: the database never has it.

For one account, one machine is as fast: use `cancel --journal`."""

NO_EXTRA = (
    "fleet needs psycopg, which the extra `postgres` installs: "
    f"{sys.executable} -m pip install 'psycopg[binary]' procrastinate"
)


@cache
def _commands() -> dict[str, Any]:
    if not load():
        refuse(NO_EXTRA)
    from .commands import app  # noqa: PLC0415 - imported by `load`

    return dict(typer.main.get_group(app).commands)


def load() -> bool:
    """Import the commands, and tell whether that was possible."""
    # Lazy: psycopg takes 140 ms to import, a third of what every other command takes to
    # start; and the extra may be missing.
    try:
        import_module(f"{__package__}.commands")
    except ModuleNotFoundError as error:
        if error.name not in ("psycopg", "procrastinate"):
            raise
        return False
    return True


class FleetGroup(Group):
    """The commands of ``fleet``."""

    # Some releases of typer have click's types, and others their own.
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - see above
        """Return their names in the order of the help text."""
        del ctx
        return list(_commands()) if load() else []

    def get_help(self, ctx: Any) -> str:  # noqa: ANN401 - see above
        """Return the help text; without the extra, and so the commands, say why."""
        text = str(super().get_help(ctx))
        return text if load() else f"{text}\n\n{NO_EXTRA}"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - see above
        """Return one of them, or None."""
        del ctx
        return _commands().get(cmd_name)


app = typer.Typer(cls=FleetGroup, no_args_is_help=True, rich_markup_mode=None)
