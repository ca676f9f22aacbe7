"""The options that several commands share, each declared once.

A command takes a group of options as one argument. `with_options` turns each field of
the group into an option of the command.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec
import typer

from async_refunds.protocol import validation

from . import environment, interruption
from .config import BASE_URL, Connection
from .exit_codes import INTERRUPTED
from .output import print_error, refuse
from .own_files import refuse_overwriting
from .usage import refuse_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The defaults of `cancel_many`.
CONCURRENCY = 50
PATIENCE = 120.0
"""Seconds."""

REFUND_HELP = "re_... or pyr_..."

# Known values that fit into a message.
_LISTED = 20


class OptionGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Options that a command takes as one argument."""


AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object a line, also on a terminal.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show only results and errors.")
]


class Format(OptionGroup, frozen=True, kw_only=True):
    """How the output is written."""

    as_json: AsJson = False
    quiet: Quiet = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Also show the address, the proxy and each retry."
        ),
    ] = False


class OutputOptions(Format, frozen=True, kw_only=True):
    """Where the results of a batch are written, and how."""

    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append the results to this file, one JSON object a line.",
        ),
    ] = None


class KeyOptions(OptionGroup, frozen=True, kw_only=True):
    """Which API keys are allowed."""

    live: Annotated[
        bool, typer.Option("--live", help="Allow a live key, which moves real money.")
    ] = False


class ConnectionOptions(KeyOptions, frozen=True, kw_only=True):
    """Which API the command speaks to, and for which account."""

    base_url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where the API is. A live key goes over http to this machine only.",
        ),
    ] = BASE_URL
    account: Annotated[
        str | None,
        typer.Option(metavar="ACCT", help="The connected account, acct_..."),
    ] = None
    context: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The account, for an organization's key."),
    ] = None

    def __post_init__(self) -> None:
        """Check the account.

        Raises:
            ValueError: It is no account id.
        """
        if self.account is not None:
            try:
                validation.account_id(self.account)
            except ValueError as error:
                text = str(error).replace("stripe_account", "--account")
                raise ValueError(text) from None


Journal = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Keep keys and results in this SQLite file: the run survives a kill. "
        "Repeat the command, or use resume, to continue it.",
    ),
]


class SendOptions(OptionGroup, frozen=True, kw_only=True):
    """How many refunds are canceled, and whether someone is asked first."""

    limit: Annotated[
        int | None,
        typer.Option(
            "--max",
            min=1,
            help="Cancel at most this many refunds, the first ones.",
            metavar="N",
        ),
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="Cancel without asking.")] = False


DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would happen; cancel nothing."),
]


JournalArgument = Annotated[
    str, typer.Argument(metavar="JOURNAL", help="The file given to --journal.")
]
RunAddress = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="The address of the run, to confirm it. Needed only for a live run that "
        "is not at Stripe.",
    ),
]


class ReadOptions(OptionGroup, frozen=True, kw_only=True, omit_defaults=True):
    """How fast refunds are sent or read; None: not given."""

    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Reads per second for each account, up to 25. [default: 20]",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="For each refund's call, with its retries. [default: 80]",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check each option that was given.

        Raises:
            ValueError: A value that cannot be used.
        """
        if self.timeout is not None:
            validation.seconds("--timeout", self.timeout)
        if self.rate is not None:
            validation.rate("--rate", self.rate)


class BatchOptions(ReadOptions, frozen=True, kw_only=True, omit_defaults=True):
    """How fast and how long a batch works; None: not given. Kept in the journal."""

    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Requests per second for each account. [default: as many as Stripe "
            "takes]",
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            help="Refunds in flight at once. [default: 50]",
        ),
    ] = None
    patience: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long a refund is tried again while Stripe fails or limits; then "
            "it is failed or unknown, and resume continues. If Stripe never answers, "
            "the rest is given up after five seconds. [default: 120]",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check each option that was given.

        Raises:
            ValueError: A value that cannot be used.
        """
        ReadOptions.__post_init__(self)
        if self.patience is not None:
            validation.seconds("--patience", self.patience)

    def or_else(self, others: BatchOptions) -> BatchOptions:
        """Return these options, with the values of others where none was given."""
        given = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not None
        }
        return msgspec.structs.replace(others, **given)


def connect(given: ConnectionOptions, *, account: bool = True) -> Connection:
    """Return the connection that the options describe, or refuse.

    Args:
        given: The options.
        account: Whether calls act on the account; a batch names it for each refund.
    """
    return Connection(
        live=given.live,
        base_url=given.base_url,
        account=given.account if account else None,
        context=given.context,
    )


def known(option: str, value: str, values: Iterable[str]) -> None:
    """Refuse a value that is none of the known ones, and show the closest.

    All of them, if they are few.
    """
    names = sorted(values)
    if value not in names:
        close = sorted(
            difflib.get_close_matches(value, names, n=_LISTED),
            # Of equally close ones, that which begins as the value does: jpy for jpn.
            key=lambda each: (
                -difflib.SequenceMatcher(None, each, value).ratio(),
                each[:1] != value[:1],
            ),
        )
        hint = f" (did you mean {close[0]}?)" if close else ""
        if len(names) <= _LISTED:
            hint += f"; known are {', '.join(names)}"
        refuse(f"{option}: {value!r} is unknown{hint}; nothing was done")


def canceling(command: Callable[..., None]) -> Callable[..., None]:
    """Do as `with_options`, for a command by which refunds come to be canceled.

    Who sets ``ASYNC_REFUNDS_DRY_RUN`` or ``_MAX`` wants to be held back: a command that
    does not have that option is refused.
    """
    return with_options(command, cancels=True)


def with_options(
    command: Callable[..., None], *, cancels: bool = False
) -> Callable[..., None]:
    """Turn the option groups that a function takes into options of the command.

    The command refuses a group whose values are wrong, and an API key in any value.

    Args:
        command: A function for typer whose arguments may be option groups.
        cancels: See `canceling`.
    """
    hints: dict[str, Any] = get_type_hints(command, include_extras=True)
    groups: dict[str, type[OptionGroup]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, OptionGroup):
            groups[name] = kind
            parameters += [
                parameter.replace(
                    name=field.name, default=field.default, annotation=field.type
                )
                for field in msgspec.structs.fields(kind)
            ]
        else:
            parameters.append(parameter.replace(annotation=kind))
    parameters = [environment.with_variable(each) for each in parameters]
    shown = {each.name: environment.shown_name(each) for each in parameters}

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - as the command has them
        interruption.raise_as_usual()
        refuse_keys(given, shown)
        if cancels and (ignored := environment.ignored_restraint(shown.values())):
            refuse(f"{ignored}; nothing was done")
        refuse_overwriting(given)
        try:
            for name, kind in groups.items():
                fields = {field: given.pop(field) for field in kind.__struct_fields__}
                given[name] = kind(**fields)
        except ValueError as error:
            refuse(f"{error}; nothing was done")
        _set_up_logging(
            verbose=any(getattr(each, "verbose", 0) for each in given.values())
        )
        try:
            command(**given)
        except KeyboardInterrupt:
            # Once something may have been sent, the command says itself what was done.
            print_error(interruption.NOTHING_SENT)
            raise typer.Exit(INTERRUPTED) from None

    # Where `inspect.signature` looks first, as PEP 362 has it.
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _set_up_logging(*, verbose: bool) -> None:
    """Send the client's log to stderr for --verbose, and nowhere otherwise.

    Without a handler, Python would write warnings between the results. The client
    itself sets up what ``ASYNC_REFUNDS_LOG`` asks for.
    """
    logger = logging.getLogger("async_refunds")
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    elif "ASYNC_REFUNDS_LOG" not in os.environ:
        logger.addHandler(logging.NullHandler())
