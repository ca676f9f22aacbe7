"""Options from the environment: each by the variable of its own name, and no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import typer

from async_refunds.cli.app import app
from tests.support.terminal import emulator_of, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Those that typer and click add.
NOT_OURS = {"--help", "--version", "--install-completion", "--show-completion"}


def options_of(
    command: Any,  # noqa: ANN401 - click's or typer's, by the release
    path: str,
) -> Iterator[tuple[str, Any]]:
    """Yield each option of a command and of those below it, with the command's path."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and not NOT_OURS & {*parameter.opts}:
            yield path, parameter
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from options_of(command.get_command(None, name), f"{path} {name}")


def test_each_option_has_the_variable_of_its_own_name_and_no_other() -> None:
    pytest.importorskip("psycopg")
    found = [*options_of(typer.main.get_command(app), "async-refunds")]
    for path, option in found:
        (name,) = [each for each in option.opts if each.startswith("--")]
        expected = f"ASYNC_REFUNDS_{name[2:].replace('-', '_').upper()}"
        assert (path, name, option.envvar) == (path, name, expected)
    paths = {path for path, _ in found}
    assert {
        "async-refunds cancel",
        "async-refunds demo",
        "async-refunds emulator",
    } < paths
    assert {"async-refunds fleet worker", "async-refunds fleet wait"} < paths


@pytest.mark.asyncio(loop_factories=["real"])
async def test_max_and_from_of_the_environment_count(tmp_path: Path) -> None:
    emulator, ids = emulator_of(5)
    (tmp_path / "five.txt").write_text("\n".join(ids))
    async with emulator.serve() as base_url:
        ended = await run(
            "cancel",
            environment={
                "ASYNC_REFUNDS_BASE_URL": base_url,
                "ASYNC_REFUNDS_MAX": "1",
                "ASYNC_REFUNDS_FROM": "five.txt",
            },
            folder=tmp_path,
        )
    assert "--max left out 4 refunds" in ended.err
    assert emulator.books.cancellations == {ids[0]: 1}


@pytest.mark.asyncio(loop_factories=["real"])
async def test_variable_that_is_of_no_option_is_told() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        wrong, right = await asyncio.gather(
            *(
                run(
                    *("retrieve", *ids, "--base-url", base_url),
                    environment={"ASYNC_REFUNDS_LEASE": "10", name: "1"},
                )
                for name in ("ASYNC_REFUNDS_MXA", "ASYNC_REFUNDS_MAX")
            )
        )
    assert wrong.code == right.code == 0
    assert wrong.err == (
        "async-refunds: ignored, since no option has this name: ASYNC_REFUNDS_MXA (did "
        "you mean ASYNC_REFUNDS_MAX?)\n"
    )
    # Also those of other commands, as of `fleet worker --lease`.
    assert right.err == ""
