"""Keeps a command from writing into a file that it reads, or keeps a run in."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from os.path import realpath, samestat
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING

from async_refunds.errors import JournalError
from async_refunds.journal import journal_files

from .output import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DATABASE = b"SQLite format 3\0"
"""How a journal begins, whichever name it has."""
# The options that name a file for the results, by the command's argument.
_WRITTEN = {"output": "--output", "page": "--html"}


def refuse_overwriting(given: Mapping[str, object]) -> None:
    """Refuse a command that would write into its own journal, or its list of refunds.

    That ruins the file, after money has moved. The shell opens what ``>`` names before
    there is a command, and empties it; what is not in it yet is all that can be saved.

    Args:
        given: The arguments of the command.
    """
    kept = dict(_kept(given))
    on_stderr, on_stdout = (_leads_to(each, kept) for each in (sys.stderr, sys.stdout))
    if on_stderr:  # where saying so would be writing into it
        sys.stderr = None if on_stdout else sys.stdout
    for name, what in (("stdout", on_stdout), ("stderr", on_stderr)):
        if what:
            refuse(f"{name} is {what}: give another file; nothing was done")
    for argument, option in _WRITTEN.items():
        path = given.get(argument)
        if isinstance(path, str) and (what := _written_to(path, kept)):
            refuse(f"{option} {path!r} is {what}; nothing was done")


def _kept(given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the files that are not to be written, and what each is."""
    source, journal = given.get("source"), given.get("journal")
    if isinstance(source, str):
        yield source, "the file of --from"
    if isinstance(journal, str):
        try:
            itself, *beside = journal_files(journal)
        except JournalError:  # the command itself will say so
            return
        yield from ((each, "a file of the journal, beside it") for each in beside)
        yield itself, "the journal itself"


def _leads_to(stream: IO[str] | None, kept: Mapping[str, str]) -> str | None:
    """Return which of the files a stream of this process leads to."""
    for path, what in kept.items():
        with suppress(OSError):  # closed, or not there
            found = stream and os.fstat(stream.fileno())
            # A terminal may be stdin and stdout at once.
            if found and S_ISREG(found.st_mode) and samestat(found, Path(path).stat()):
                return what
    return None


def _written_to(path: str, kept: Mapping[str, str]) -> str | None:
    """Return which of the files a path leads to, or that it is a database."""
    what = next((kept[each] for each in kept if _is_same(path, each)), None)
    return "an SQLite database" if what is None and _is_database(path) else what


def _is_same(path: str, other: str) -> bool:
    """Tell whether two names lead to one file, also to one that is not there yet."""
    with suppress(OSError):
        return Path(path).samefile(other)
    with suppress(OSError):  # the working folder is gone
        return realpath(path) == realpath(other)
    return False


def _is_database(path: str) -> bool:
    with suppress(OSError):  # what writes it will say so
        if Path(path).is_file():  # a pipe would wait
            with Path(path).open("rb") as file:
                return file.read(len(_DATABASE)) == _DATABASE
    return False
