"""``emulator`` and ``demo``: what needs no Stripe account."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Annotated

import msgspec
import typer

from async_refunds.emulator import FAULTS, Emulator, Limits

from . import connect, options
from .demo import Demo, story
from .output import Output, OutputLostError

FAULT_HELP = (
    "What goes wrong: storm:0.3 (each request, with this probability), "
    "script:reset_after,ok,503 (the next ones), or reset_after=0.1,503=0.2. "
    f"Faults: {', '.join(FAULTS)}."
)


def emulator(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes any free one.")
    ] = 12111,
    host: Annotated[
        str, typer.Option(help="Others reach it on another than a loopback address.")
    ] = "127.0.0.1",
    seed: Annotated[
        int, typer.Option(min=0, help="How many refunds in requires_action to make.")
    ] = 500,
    faults: Annotated[str | None, typer.Option(metavar="SPEC", help=FAULT_HELP)] = None,
    limits: Annotated[
        bool, typer.Option("--limits", help="Limit rates as Stripe does: 25/s.")
    ] = False,
    latency: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds each execution takes.")
    ] = 0.0,
    per_charge: Annotated[
        int, typer.Option(min=1, help="How many of the seeded refunds share a charge.")
    ] = 1,
) -> None:
    """Run a local Stripe for refunds, to try and to test against.

    It keeps refunds, idempotency keys, limits and locks as Stripe does; any key
    such as sk_test_123 is good. What Stripe, banks and time do by themselves is
    set under /_emulator/, and faults and books are there too. Ctrl-C ends it.
    """
    made = Emulator(limits=Limits() if limits else None, latency=latency)
    try:
        if faults is not None:
            made.faults.load(faults)
    except ValueError as error:
        connect.refuse(f"--faults: {error}")
    ids = made.seed_refunds(seed, per_charge=per_charge)
    output = Output(as_json=False)

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows has none
                loop.add_signal_handler(number, stop.set)
        async with made.serve(host=host, port=port) as base_url:
            output.say(f"{seed} refunds in requires_action at {base_url}; try:")
            # What listens everywhere is reached from here over the loopback, the one
            # place where plain http may carry a key.
            here = base_url.replace("//0.0.0.0:", "//127.0.0.1:")
            here = here.replace("//[::]:", "//[::1]:")
            output.say(
                f"  STRIPE_API_KEY=sk_test_123 async-refunds cancel "
                f"{ids[-1] if ids else 're_...'} --base-url {here}"
            )
            await stop.wait()

    try:
        asyncio.run(run())
    except OSError as error:
        connect.refuse(f"cannot listen on {host}:{port}: {error.strerror}")


def demo(
    *,
    refunds: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 200,
    faults: Annotated[str, typer.Option(metavar="SPEC", help=FAULT_HELP)] = "storm:0.3",
    kill: Annotated[
        bool,
        typer.Option("--kill", help="Kill the batch several times, and go on with it."),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="The same seed draws the same refunds.")
    ] = 0,
    as_json: options.Json = False,
) -> None:
    """Cancel refunds on the emulator through a storm of faults; needs no account.

    Starts the emulator on a free port with refunds in requires_action, cancels
    them all as a batch with a journal, and checks the emulator's own books. With
    --kill the batch is a process of its own, killed at random moments in the
    midst of it (SIGKILL, which no program can catch) and resumed each time.

    Exit codes: 0 each was canceled exactly once, 1 it was not, 2 a wrong call.
    """
    output = Output(as_json=as_json)
    try:
        run = Demo(refunds=refunds, faults=faults, seed=seed)
    except ValueError as error:
        connect.refuse(f"--faults: {error}")
    report = run.killed() if kill else asyncio.run(run.run(output))
    if output.as_table:
        for line in story(report):
            typer.echo(line)
    else:
        for line in story(report):
            output.say(line)
        try:
            output.record(msgspec.structs.asdict(report))
        except OutputLostError as error:
            output.say(f"async-refunds: {error}")
    raise typer.Exit(0 if report.good and not output.lost else 1)
