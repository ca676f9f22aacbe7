"""What a run holds of refunds that somebody is about to add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from async_refunds import CancelRequest
from async_refunds.journal.postgres import contents
from async_refunds.journal.postgres.contents import RunContents, run_contents
from tests.support.fleets import SCOPE, Fleet, defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def requests(account: str | None, *names: str) -> list[CancelRequest]:
    return [CancelRequest(name, account) for name in names]


def test_contents_are_those_of_the_run(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pages the given ones take, and whatever other runs hold."""
    monkeypatch.setattr(contents, "_PAGE", 2)
    fleet.add(["re_1", "re_2", "re_3", "re_4"])
    fleet.add(["re_1"], "acct_A")
    fleet.add(["re_5", "re_6"], run="other")
    fleet.do("UPDATE async_refunds.items SET settled = true WHERE refund_id = 're_4'")
    given = requests(None, "re_1", "re_5", "re_2", "re_9", "re_4")
    given += requests("acct_A", "re_2", "re_1")
    with psycopg.connect(fleet.address, autocommit=True) as connection:
        held = run_contents(connection, "run", SCOPE, given)
        none = run_contents(connection, "tomorrow", SCOPE, given)
    assert held == RunContents(state="open", total=5, open=4, there=4)
    assert none == RunContents(state=None)


def test_contents_are_read_in_a_transaction_that_can_change_nothing(
    fleet: Fleet,
) -> None:
    """And takes its time, whatever the database sets for its sessions."""
    fleet.add(["re_1"])
    found: list[tuple[object, ...]] = []
    others = {"default_transaction_isolation": "serializable"}
    with (
        defaults(fleet.address, statement_timeout="5s", **others),
        psycopg.connect(fleet.address, autocommit=True) as connection,
    ):

        def given() -> Iterator[CancelRequest]:
            for setting in ("read_only", "isolation"):
                found.extend(connection.execute(f"SHOW transaction_{setting}".encode()))
            found.extend(connection.execute("SHOW statement_timeout"))
            yield CancelRequest("re_1")

        assert run_contents(connection, "run", SCOPE, given()).there == 1
        (now,) = connection.execute("SHOW transaction_read_only").fetchall()
    assert found == [("on",), ("read committed",), ("0",)]
    assert now == ("off",), "it was for the transaction"
