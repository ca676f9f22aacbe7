"""The commands: what each takes, in words, and which code it ends with."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from async_refunds import validate
from async_refunds.emulator import FAULTS, Emulator, Limits
from async_refunds.errors import RefundNotFoundError, RefundsError
from async_refunds.version import __version__

from . import connect
from .cancel import Cancellations, CancelResult, exit_code
from .demo import Demo, story
from .output import Output, OutputLostError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from async_refunds.models import Refund

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    # Plain text, the same in every terminal, and no locals in a traceback.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Cancel Stripe refunds, and know what happened.

The API key is read from STRIPE_API_KEY, and from nowhere else. Results go to
stdout: a table on a terminal, one JSON object a line otherwise. What is for
people goes to stderr.

Exit codes: 0 done (cancel: all are canceled), 1 some not, 2 a call that cannot
be right (nothing was sent), 3 the outcome of some is unknown.""",
)

Live = Annotated[
    bool, typer.Option("--live", help="Allow a live key: real money moves.")
]
BaseUrl = Annotated[
    str, typer.Option(help="Where the API is; http only on a loopback address.")
]
Account = Annotated[
    str | None, typer.Option(metavar="ACCT", help="The connected account to act on.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a line, also on a terminal.")
]
Seed = Annotated[int, typer.Option(help="The same seed draws the same refunds.")]

RESULT_COLUMNS = ("refund_id", "outcome", "idempotency_key", "error")
REFUND_COLUMNS = ("id", "status", "amount", "currency", "created", "failure_reason")
FAULT_HELP = (
    "What goes wrong: storm:0.3 (each request, with this probability), "
    "script:reset_after,ok,503 (the next ones), or reset_after=0.1,503=0.2. "
    f"Faults: {', '.join(FAULTS)}."
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's own form of a callback
    if wanted:
        typer.echo(f"async-refunds {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, help="Show the version.")
    ] = False,
) -> None:
    """Carry the options of the command itself."""


@app.command()
def cancel(
    refund_ids: Annotated[
        list[str], typer.Argument(metavar="REFUND", help="re_... or pyr_...")
    ],
    *,
    live: Live = False,
    base_url: BaseUrl = connect.BASE_URL,
    account: Account = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=100, help="Refunds under way at once.")
    ] = 5,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for each refund. [default: 80]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cancel refunds that wait in requires_action, and say what became of each.

    Every id is checked before anything is sent. Each line has the outcome
    (canceled, already_canceled, not_cancelable, failed, unknown) and the
    idempotency key. Ctrl-C lets what is under way come to its end and starts
    nothing more; a second Ctrl-C reports what is under way as unknown.

    Exit codes: 0 all are canceled, 1 some are not, 2 a wrong call, 3 the outcome
    of some is unknown: run the same command again, which cancels nothing twice.
    """
    try:
        unique = list(dict.fromkeys(validate.refund_id(each) for each in refund_ids))
        if timeout is not None:
            validate.seconds("--timeout", timeout)
    except ValueError as error:
        connect.refuse(f"{error}; nothing was sent")
    output = Output(as_json=as_json)

    def report(result: CancelResult) -> None:
        output.keep(msgspec.structs.asdict(result))

    async def run() -> int:
        async with connect.client(
            live=live, base_url=base_url, account=account
        ) as refunds:
            job = Cancellations(
                refunds, report, output.say, stripe_account=account, timeout=timeout
            )
            with job.interruptible():
                try:
                    await job.run(unique, concurrency=concurrency)
                finally:
                    output.table(RESULT_COLUMNS)
            return exit_code(job.outcomes)

    code = asyncio.run(run())
    raise typer.Exit(max(code, int(output.lost)))


@app.command()
def retrieve(
    refund_ids: Annotated[
        list[str], typer.Argument(metavar="REFUND", help="re_... or pyr_...")
    ],
    *,
    live: Live = False,
    base_url: BaseUrl = connect.BASE_URL,
    account: Account = None,
    as_json: Json = False,
) -> None:
    """Show refunds as they are now.

    Exit codes: 0 all are shown, 1 some could not be read, 2 a wrong call.
    """
    try:
        wanted = [validate.refund_id(each) for each in refund_ids]
    except ValueError as error:
        connect.refuse(str(error))
    output = Output(as_json=as_json)

    async def run() -> bool:
        found = True
        async with connect.client(
            live=live, base_url=base_url, account=account
        ) as refunds:
            for refund_id in wanted:
                try:
                    _show(output, await refunds.retrieve(refund_id))
                except RefundNotFoundError as error:  # which the others may be spared
                    output.say(f"async-refunds: {error}")
                    found = False
        return found

    _read(output, run())


@app.command("list")
def list_(
    *,
    status: Annotated[
        str | None,
        typer.Option(help="Only these; Stripe sends all, the choice is made here."),
    ] = None,
    charge: Annotated[
        str | None, typer.Option(metavar="CH", help="Only those of this charge.")
    ] = None,
    payment_intent: Annotated[
        str | None, typer.Option(metavar="PI", help="Only those of this payment.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Stop after so many.")
    ] = None,
    live: Live = False,
    base_url: BaseUrl = connect.BASE_URL,
    account: Account = None,
    as_json: Json = False,
) -> None:
    """List refunds, newest first, a hundred per request.

    Exit codes: 0 listed, 1 a page could not be read, 2 a wrong call.
    """
    output = Output(as_json=as_json)

    async def run() -> bool:
        shown = 0
        async with connect.client(
            live=live, base_url=base_url, account=account
        ) as refunds:
            try:
                pages = refunds.list(charge=charge, payment_intent=payment_intent)
            except ValueError as error:
                connect.refuse(str(error))
            async for refund in pages:
                if status is None or refund.status == status:
                    _show(output, refund)
                    shown += 1
                if shown == most:
                    break
        return True

    _read(output, run())


@app.command()
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


@app.command()
def demo(
    *,
    refunds: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 200,
    faults: Annotated[str, typer.Option(metavar="SPEC", help=FAULT_HELP)] = "storm:0.3",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cancel refunds on the emulator through a storm of faults; needs no account.

    Starts the emulator on a free port with refunds in requires_action, cancels
    them all with the real client, and checks the emulator's own books.

    Exit codes: 0 each was canceled exactly once, 1 it was not, 2 a wrong call.
    """
    output = Output(as_json=as_json)
    try:
        run = Demo(refunds=refunds, faults=faults, seed=seed)
    except ValueError as error:
        connect.refuse(f"--faults: {error}")
    report = asyncio.run(run.run(output.people))
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


def _show(output: Output, refund: Refund) -> None:
    output.record(msgspec.to_builtins(refund))


def _read(output: Output, reading: Coroutine[None, None, bool]) -> None:
    """Carry a read through, and end with its exit code: 0 if it found everything."""
    found = False
    try:
        found = asyncio.run(reading)
    except RefundsError as error:
        output.say(f"async-refunds: {error}")
    except OutputLostError as error:
        if not error.unread:  # as with `| head`: whoever read has enough
            output.say(f"async-refunds: {error}")
    output.table(REFUND_COLUMNS)
    raise typer.Exit(0 if found and not output.lost else 1)
