"""From a path to a file that this process alone may write, or a sentence why not.

The file alone is the journal. What a commit has written is copied from the ``-wal``
into it before the caller learns of the commit, so that a lost ``-wal`` loses nothing.
The sum of all checksums, which each commit writes, shows a file that was copied
in the middle of that.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from async_refunds.errors import JournalError
from async_refunds.journal.base import require_target
from async_refunds.journal.keys import DERIVATION

from .claim_pages import ClaimPages
from .errors import SAYS_NOTHING, UNREADABLE, closed, explained
from .items import Items
from .lock import Lock
from .migration import migrate, read_run
from .rows import RunState
from .schema import APPLICATION, VERSION, check, check_pages, read_state, version_of
from .writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal.base import Run

_LOCK_WAIT = 5.0
"""Seconds to wait for another connection's lock: that of a reader is short."""
_CACHE = 1_000
"""KiB. Ids come in no order: of a large run no cache has the index's page that is next,
and the system has it. Four times as much loads no faster and takes 9 MB of a run."""

_ALONE = "ro&immutable=1"
"""Reads no -wal (https://www.sqlite.org/uri.html#uriimmutable)."""
_BESIDE = ("wal", "shm", "lock", "journal")
"""Ends of the names of what stands beside a journal."""
_HEADER = 100
"""Bytes at the start of any database (https://www.sqlite.org/fileformat.html). SQLite
takes a file of one byte for an empty one, and would write over it."""


def opened(
    path: str | os.PathLike[str], run: Run | None, clock: Callable[[], float]
) -> tuple[Writer, Items, Run]:
    """Return the right to write a file, its tables, and what it is about.

    Raises:
        JournalError: Another process uses it; another run, program or version; no
            run; or a file that cannot be read and written.
        TypeError: The run's options are not what JSON has.
    """
    begun = None if run is None else RunState.begin(run, clock())
    place = resolved(path)
    refuse(place, new=run is not None)
    lock = Lock(place)
    db: sqlite3.Connection | None = None
    try:
        if run is not None:
            make(place, new=False)
        lock.take_file(place)
        version, kept = _checked(place, run)
        db = connect(place, "rw")
        _prepare(db)
        state = _migrated(db, place) if version == 1 else kept or begun
        assert state is not None  # noqa: S101 - a file without a run is refused
        pages = ClaimPages.read(db, place) if version else ClaimPages()
        items = Items(place, state, pages, made=version > 0, clock=clock)
        writer = Writer(place, lock, db, items)
    except BaseException as error:
        if db is not None:
            db.close()
        lock.release()
        if isinstance(error, (*UNREADABLE, OSError)):
            raise explained(place, error) from error
        raise
    return writer, items, state.run


def _checked(place: str, run: Run | None) -> tuple[int, RunState | None]:
    """Return the version of a file, and its state if it is of this version.

    Nothing is changed: a connection that may write would bring a -wal into the file
    when it is closed, also one that does not belong to it.
    """
    _roll_back(place)
    with closing(connect(place, "ro")) as db:
        version, state = examined(db, place, whole=True)
        old = read_run(db, place) if version == 1 else None
    kept = old if state is None else state.run
    if kept is None and run is None:
        raise JournalError(
            f"the journal {place!r} holds no run: it was not begun, or it was killed "
            f"before all of its items were there; begin it again"
        )
    if run is not None:
        require_target(kept, run, f"the journal {place!r}")
        if state is not None and state.closed:
            raise closed(place, state.open)
    if state is not None and state.derivation != DERIVATION:
        raise JournalError(
            f"the journal {place!r} derives its keys by rule {state.derivation}, and "
            f"this release by rule {DERIVATION}: go on with the release that made it"
        )
    return version, state


def _roll_back(place: str) -> None:
    """Undo what another program was writing, without a -wal, when it was killed."""
    if Path(f"{place}-journal").exists():
        with closing(connect(place, "rw")) as db:
            db.execute("SELECT * FROM sqlite_master").fetchone()


def _migrated(db: sqlite3.Connection, place: str) -> RunState:
    db.execute("BEGIN IMMEDIATE")
    migrate(db, place)
    db.execute("COMMIT")
    return read_state(db, place)


def resolved(path: str | os.PathLike[str]) -> str:
    """Return the one name of a file, so that its lock has one name too.

    Raises:
        JournalError: It is given from a working folder that is gone.
    """
    given = os.fsdecode(path)
    try:
        # SQLite follows a symbolic link to name the -wal, and so must we.
        return os.path.realpath(given)
    except FileNotFoundError as error:
        raise JournalError(
            f"the journal {given!r} cannot be found, since the working folder is gone: "
            f"give its path from the root"
        ) from error


def journal_files(path: str | os.PathLike[str]) -> list[str]:
    """Return the file of a journal, and those that stand beside it while it is open.

    Raises:
        JournalError: It is given from a working folder that is gone.
    """
    place = resolved(path)
    return [place, *(f"{place}-{end}" for end in _BESIDE)]


def refuse(place: str, *, new: bool) -> None:
    """Refuse, before anything is made, a place that can hold no journal.

    Raises:
        JournalError: A missing file (unless ``new``) or folder, or no plain file.
    """
    try:
        _look(Path(place), new=new)
    except OSError as error:
        raise explained(place, error) from error


def _look(path: Path, *, new: bool) -> None:
    place = str(path)
    if not path.parent.is_dir():
        raise JournalError(
            f"the journal {place!r} has no folder to be in: make {str(path.parent)!r}"
        )
    if (journal := _journal_beside(place)) is not None:
        raise JournalError(
            f"{place!r} only stands beside the journal {journal!r}: give that path"
        )
    size = 0
    if path.exists():
        if not path.is_file():
            raise JournalError(
                f"the journal {place!r} is a folder or a device, not a file: give the "
                f"path of a file"
            )
        size = path.stat().st_size
    elif not new:
        raise JournalError(f"there is no journal {place!r}: check the path")
    if 0 < size < _HEADER:
        raise JournalError(f"{place!r} is too short for a journal: give another path")
    # SQLite would throw away what the -wal still has. No kill leaves it like this: the
    # file has its first page before there is a -wal.
    if not size and _has_wal(place):
        raise JournalError(
            f"the journal {place!r} was emptied or removed, and what '{place}-wal' has "
            f"does not stand alone: put back a copy, or give another path"
        )


def _journal_beside(place: str) -> str | None:
    """Return the journal that a file belongs to, by its name; ``None`` if to none."""
    journal, _, end = place.rpartition("-")
    if end not in _BESIDE or not Path(journal).is_file():
        return None
    try:
        with closing(connect(journal, _ALONE)) as db:
            ((application,),) = db.execute("PRAGMA application_id")
    except sqlite3.Error:
        return None
    return journal if application == APPLICATION else None


def connect(place: str, mode: str) -> sqlite3.Connection:
    """Open a file that is there, in no transaction.

    Args:
        place: Its name.
        mode: ``rw``, ``ro``, or with more of SQLite's parameters behind it.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    # As a URI, since only that keeps SQLite from making a file
    # (https://www.sqlite.org/uri.html#urimode).
    return sqlite3.connect(
        f"{Path(place).as_uri()}?mode={mode}",
        uri=True,
        timeout=_LOCK_WAIT,
        isolation_level=None,
        check_same_thread=False,  # one thread at a time has it: that with the lock
    )


def make(place: str, *, new: bool) -> None:
    """Make an empty file that only its owner may read: it holds ids and keys.

    Args:
        place: Its name. SQLite gives the -wal the mode of the file.
        new: Whether a file that is there already is refused.

    Raises:
        JournalError: There is one.
        OSError: It cannot be made.
    """
    try:
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if new:
            raise JournalError(
                f"{place!r} is there already: give another path"
            ) from None


def examined(
    db: sqlite3.Connection, place: str, *, whole: bool
) -> tuple[int, RunState | None]:
    """Read a file through, as `check`, and hold it against its -wal.

    Returns:
        Its version, 0 if it has nothing yet; and its state, if it is of this version.

    Raises:
        JournalError: It is damaged, or the -wal is of an earlier moment or another run;
            or it is of another program or version.
        sqlite3.Error: It cannot be read.
    """
    checked = partial(_read_through, whole=whole)
    alone = _alone(place, read_state)
    try:
        version = version_of(db, place)
        if version < VERSION:
            check_pages(db, place, indexes=whole)
            return version, None
        state = checked(db, place, mode="ro")
    except (*UNREADABLE, JournalError) as error:
        untold = getattr(error, "sqlite_errorcode", 0) in SAYS_NOTHING
        alone_checked = partial(checked, mode=_ALONE)
        if not untold and _has_wal(place) and _alone(place, alone_checked):
            raise _foreign_wal(place) from error
        raise
    if alone and (alone.seed != state.seed or alone.commits > state.commits):
        raise _foreign_wal(place)
    return version, state


def _read_through(
    db: sqlite3.Connection, place: str, *, mode: str, whole: bool
) -> RunState:
    """Check a file that is open in this mode; see `check`."""
    if not whole:
        return check(db, place)
    with closing(connect(place, mode)) as beside:
        return check(db, place, beside)


def _alone(
    place: str, read: Callable[[sqlite3.Connection, str], RunState]
) -> RunState | None:
    """Return the run as the file has it without the -wal; ``None`` if it does not."""
    # Another process may write meanwhile, so that an error means nothing.
    try:
        with closing(connect(place, _ALONE)) as db:
            return read(db, place)
    except (*UNREADABLE, JournalError):
        return None


def _has_wal(place: str) -> bool:
    wal = Path(f"{place}-wal")
    return wal.exists() and wal.stat().st_size > 0


def _foreign_wal(place: str) -> JournalError:
    return JournalError(
        f"'{place}-wal' does not belong to the journal {place!r} as it is: move it "
        f"elsewhere, then try again"
    )


def _prepare(db: sqlite3.Connection) -> None:
    # With a -wal, readers and the writer do not wait for each other; a commit is on the
    # disk before it returns only if synchronous is FULL, and on macOS with fullfsync
    # (https://www.sqlite.org/pragma.html#pragma_synchronous).
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")
    db.execute("PRAGMA checkpoint_fullfsync = ON")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it
    db.execute(f"PRAGMA cache_size = -{_CACHE}")
    # Finds out now whether it may be written, and makes the -wal.
    db.execute("BEGIN IMMEDIATE")
    db.execute("ROLLBACK")
