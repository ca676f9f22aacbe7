from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from async_refunds.cli import embedded_postgres
from async_refunds.cli.embedded_postgres import (
    ServerFailedError,
    embedded_server,
    installed_programs,
)


def test_server_ends_with_its_block() -> None:
    with embedded_server(max_connections="7") as address:
        with psycopg.connect(address) as connection:
            ((connections,),) = connection.execute("SHOW max_connections").fetchall()
        assert connections == "7"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(address)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as somebody else")
def test_programs_in_a_folder_of_roots_own_are_used_and_the_folder_stays_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = installed_programs().parents[1]
    for each in (package, package.with_name(f"{package.name}.libs")):
        (tmp_path / each.name).symlink_to(each)
    tmp_path.chmod(0o700)
    programs = tmp_path / installed_programs().relative_to(package.parent)
    monkeypatch.setattr(embedded_postgres, "installed_programs", lambda: programs)
    with embedded_server() as address, psycopg.connect(address) as connection:
        ((data,),) = connection.execute("SHOW data_directory").fetchall()
        assert Path(data).owner() == "nobody"
    assert not Path(data).exists()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_setting_that_there_is_not_is_told_in_the_servers_words() -> None:
    with (
        pytest.raises(ServerFailedError, match='parameter "nosuch"'),
        embedded_server(nosuch="1"),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, "No such file"),
        ("#!/bin/sh\necho disk full >&2\nexit 3\n", "disk full"),
    ],
)
def test_programs_that_do_not_run_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, told: str
) -> None:
    programs = tmp_path / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    if script is not None:
        (programs / "initdb").write_text(script)
        (programs / "initdb").chmod(0o755)
    monkeypatch.setattr(embedded_postgres, "installed_programs", lambda: programs)
    with pytest.raises(ServerFailedError, match=told), embedded_server():
        raise AssertionError
