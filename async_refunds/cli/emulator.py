"""``emulator``: a local Stripe for refunds, from the command line."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from async_refunds.emulator import FAULTS, Emulator, Limits

from . import options
from .options import Format
from .output import Output, os_reason, refuse
from .stop_signals import on_stop

FAULTS_HELP = (
    "What goes wrong: storm:0.3 (each request, with this probability), "
    "script:reset_after,ok,503 (the next ones), or reset_after=0.1,503=0.2. "
    f"Faults: {', '.join(FAULTS)}."
)

HELP = """Run a local Stripe for refunds, to try and to test against.

It keeps refunds, idempotency keys, limits and locks as Stripe does; any key
such as sk_test_123 is good. What Stripe, banks and time do by themselves is
set under /_emulator/, and faults and books are there too; /_emulator/ui is a
page for a browser on this machine.

Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 wrong usage, or the port is taken."""


@options.with_options
def emulator(
    *,
    port: Annotated[
        int,
        typer.Option(metavar="PORT", min=0, max=65535, help="0 takes any free one."),
    ] = 12111,
    host: Annotated[
        str,
        typer.Option(metavar="HOST", help="0.0.0.0 lets other machines reach it."),
    ] = "127.0.0.1",
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="How many refunds in requires_action to make."
        ),
    ] = 500,
    faults: Annotated[
        str | None, typer.Option(metavar="SPEC", help=FAULTS_HELP)
    ] = None,
    limits: Annotated[
        bool, typer.Option("--limits", help="Limit rates as Stripe does: 25/s.")
    ] = False,
    latency: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, max=60, help="How long each execution takes."
        ),
    ] = 0.0,
    per_charge: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="How many of the seeded refunds share a charge."
        ),
    ] = 1,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Post signed events of refunds there."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No line per request on stderr.")
    ] = False,
) -> None:
    """Run a local Stripe for refunds."""
    output = Output(Format(quiet=quiet))
    made = Emulator(limits=Limits() if limits else None, latency=latency)
    try:
        if faults is not None:
            made.faults.load(faults)
    except ValueError as error:
        refuse(f"--faults: {error}")
    try:
        hook = None if webhook is None else made.webhook(webhook)
    except ValueError as error:
        refuse(f"--webhook: {error}")
    if not quiet:
        made.on_request = lambda request: output.say(request.line())
    ids = made.seed_refunds(seed, per_charge=per_charge)
    example = ids[-1] if ids else "re_..."

    def offer(base_url: str) -> None:
        output.warn(f"{seed} refunds in requires_action at {base_url}; try:")
        # A server on all addresses is reached from here over the loopback, the
        # only place where plain http may carry a key.
        here = base_url.replace("//0.0.0.0:", "//127.0.0.1:")
        here = here.replace("//[::]:", "//[::1]:")
        if hook is not None:
            output.offer(f"  posts events to {webhook}, signed with {hook.secret}")
        output.offer(
            f"  STRIPE_API_KEY=sk_test_123 async-refunds cancel {example} "
            f"--base-url {here}"
        )
        output.warn(f"  {here}/_emulator/ui shows in a browser what happens")

    async def run() -> None:
        stop = asyncio.Event()
        with on_stop(stop.set):
            async with made.serve(host=host, port=port) as base_url:
                offer(base_url)
                await stop.wait()

    try:
        asyncio.run(run())
    except OSError as error:
        refuse(f"cannot listen on {host}:{port}: {os_reason(error)}")
