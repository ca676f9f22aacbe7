"""The options that several commands have in common, in words and as values."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from async_refunds.protocol import validation

from .connect import refuse

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
Concurrency = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Refunds under way at once. [default: 50]"),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Requests a second for each account. [default: the most that Stripe "
        "takes, found out on the way]",
    ),
]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds for each call. [default: 80]")
]
Patience = Annotated[
    float | None,
    typer.Option(
        help="Seconds for which a refund is asked for again while Stripe fails. "
        "[default: 120]"
    ),
]
OutputFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Write the results there, one JSON object a line, after what it holds.",
    ),
]
JournalFile = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="FILE",
        help="Keep keys and results in this SQLite file: the run survives a kill, "
        "and goes on with the same command, or with resume.",
    ),
]


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to go about a batch; what is None was not given. Kept in the journal."""

    rate: float | None = None
    concurrency: int | None = None
    timeout: float | None = None
    patience: float | None = None
    account: str | None = None

    def or_else(self, others: Options) -> Options:
        """Return these, and of the others those that were not given here."""
        given = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not None
        }
        return msgspec.structs.replace(others, **given)


def checked(options: Options) -> Options:
    """Return the options, or refuse what no batch can go by."""
    try:
        if options.timeout is not None:
            validation.seconds("--timeout", options.timeout)
        if options.patience is not None:
            validation.seconds("--patience", options.patience)
        if options.account is not None:
            validation.account_id(options.account)
        if options.rate is not None:
            validation.rate("--rate", options.rate)
    except ValueError as error:
        refuse(f"{error}; nothing was sent")
    return options
