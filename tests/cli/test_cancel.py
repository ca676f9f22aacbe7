from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from async_refunds import APIConnectionError
from async_refunds.cli.app import app
from async_refunds.cli.batch_run import why_unreached
from async_refunds.cli.result_writer import result_record
from async_refunds.models import Refund
from async_refunds.results import CancelResult
from tests.support.terminal import LIVE_KEY, Screen, emulator_of, run, started

pytestmark = pytest.mark.asyncio(loop_factories=["real"])


async def test_each_refund_is_canceled_and_told_in_a_json_line() -> None:
    emulator, ids = emulator_of(3)
    async with emulator.serve() as base_url:
        ended = await run("cancel", *ids, "--base-url", base_url)
    assert (ended.code, ended.err) == (0, "")
    assert sorted(line["refund_id"] for line in ended.lines) == sorted(ids)
    sent = {entry.request_id: entry for entry in emulator.requests}
    for line in ended.lines:
        assert line == {
            "refund_id": line["refund_id"],
            "stripe_account": None,
            "outcome": "canceled",
            "status": "canceled",
            "idempotency_key": sent[line["request_id"]].idempotency_key,
            "attempts": 1,
            "request_id": line["request_id"],
            "error": None,
        }
        assert line["refund_id"] in sent[line["request_id"]].path
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


async def test_id_given_twice_is_sent_and_told_once() -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run("cancel", *ids, *ids, "--base-url", base_url)
    assert ended.code == 0
    assert ended.err == (
        "4 refunds given, 2 of them given before; each is canceled once\n"
    )
    assert sorted(line["refund_id"] for line in ended.lines) == sorted(ids)
    assert emulator.books.cancel_requests == dict.fromkeys(ids, 1)


async def test_already_canceled_refunds_are_a_success() -> None:
    emulator, ids = emulator_of(1)
    emulator.set_status(ids[0], "canceled")
    async with emulator.serve() as base_url:
        ended = await run("cancel", *ids, "--base-url", base_url)
    assert ended.code == 0
    assert [line["outcome"] for line in ended.lines] == ["already_canceled"]
    assert ended.lines[0]["status"] == "canceled"


async def test_one_refund_that_cannot_be_canceled_is_exit_code_1() -> None:
    emulator, ids = emulator_of(3)
    emulator.set_status(ids[1], "succeeded")
    async with emulator.serve() as base_url:
        ended = await run(
            "cancel", *ids, "re_missing", "--concurrency", "1", "--base-url", base_url
        )
    assert ended.code == 1
    assert [(line["outcome"], line["status"]) for line in ended.lines] == [
        ("canceled", "canceled"),
        ("not_cancelable", "succeeded"),
        ("canceled", "canceled"),
        ("failed", None),
    ]
    assert "it is succeeded" in ended.lines[1]["error"]
    assert "No such refund" in ended.lines[3]["error"]
    assert ended.lines[3]["request_id"] == emulator.requests[-1].request_id


async def test_lost_answers_leave_the_outcome_unknown_until_run_again() -> None:
    emulator, ids = emulator_of(2)
    emulator.faults.load("reset_after=1")
    async with emulator.serve() as base_url:
        command = ("cancel", *ids, "re_missing", "--base-url", base_url)
        ended = await run(*command, "--timeout", "1", "--patience", "0.1")
        emulator.faults.clear()
        again = await run(*command)
    assert ended.code == 3
    assert [line["outcome"] for line in ended.lines] == ["unknown"] * 3
    for line in ended.lines:
        assert line["attempts"] >= 2
        assert line["idempotency_key"] in {
            entry.idempotency_key for entry in emulator.requests
        }
        assert line["error"]
    assert again.code == 1
    assert sorted(line["outcome"] for line in again.lines) == [
        "already_canceled",
        "already_canceled",
        "failed",
    ]
    assert emulator.books.cancellations == dict.fromkeys(ids, 1)


async def test_unknown_outcome_whose_refund_was_seen_tells_its_status() -> None:
    seen = Refund("re_1", "refund", 500, "jpy", 0, "requires_action")
    record = result_record(
        CancelResult(
            refund_id="re_1", stripe_account=None, outcome="unknown", refund=seen
        )
    )
    assert record["outcome"] == "unknown"
    assert record["status"] == "requires_action"


async def test_bad_id_among_good_ones_stops_before_anything_is_sent() -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run(
            "cancel", ids[0], "ch_1NotARefund", ids[1], "--base-url", base_url
        )
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("async-refunds: 'ch_1NotARefund' is the id of a charge")
    assert "nothing was sent" in ended.err
    assert not emulator.requests


async def test_wrong_call_is_exit_code_2() -> None:
    wrong: dict[tuple[str, ...], str] = {
        ("re_1", "--timeout", "0"): "--timeout must be above 0 seconds",
        ("re_1", "--timeout", "soon"): "Invalid value for '--timeout'",
        ("re_1", "--patience", "-1"): "--patience must be above 0 seconds",
        ("re_1", "--concurrency", "0"): "Invalid value for '--concurrency'",
        ("re_1", "--rate", "0"): "--rate must be above 0",
        ("re_1", "--rate", "nan"): "--rate must be above 0",
        (
            "re_1",
            "--account",
            "123",
        ): "--account must be acct_, letters and digits",
        (): "give refunds, or --from FILE; nothing was sent",
        ("--journal", "run.sqlite3"): "to continue, `async-refunds resume run.sqlite3`",
    }
    for words, said in wrong.items():
        ended = CliRunner().invoke(app, ["cancel", *words])
        assert said in ended.stderr
        assert (ended.exit_code, ended.stdout) == (2, "")


async def test_connected_account_is_acted_on_and_named() -> None:
    emulator, ids = emulator_of(1)
    theirs = emulator.add_refund(account="acct_1Connected")
    async with emulator.serve() as base_url:
        ended = await run(
            "cancel", theirs, "--account", "acct_1Connected", "--base-url", base_url
        )
        other = await run(
            "cancel", ids[0], "--account", "acct_1Unheard", "--base-url", base_url
        )
    assert ended.code == 0
    assert ended.lines[0]["stripe_account"] == "acct_1Connected"
    assert other.code == 1
    assert other.lines[0]["outcome"] == "failed"
    assert emulator.books.cancellations == {theirs: 1}


async def test_live_refund_is_canceled_with_live_only() -> None:
    emulator, _ = emulator_of(0)
    refund_id = emulator.add_refund(livemode=True)
    async with emulator.serve() as base_url:
        command = ("cancel", refund_id, "--base-url", base_url)
        refused = await run(*command, key=LIVE_KEY)
        sent = len(emulator.requests)
        allowed = await run(*command, "--live", key=LIVE_KEY)
    assert (refused.code, refused.out, sent) == (2, "", 0)
    assert "add --live" in refused.err
    assert allowed.code == 0
    assert allowed.lines[0]["outcome"] == "canceled"


async def test_refused_connection_is_a_failure_that_sent_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ended = await run(
        "cancel", "re_1", "--patience", "0.1", "--base-url", f"http://127.0.0.1:{port}"
    )
    assert ended.code == 1
    assert ended.lines[0]["outcome"] == "failed"
    assert ended.lines[0]["request_id"] is None
    assert "no connection" in ended.lines[0]["error"]
    cause = f"http://127.0.0.1:{port} could not be reached: no connection (Connection "
    assert ended.err.startswith(f"{cause}refused)\n")


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("no connection (refused)", "http://s could not be reached: no connection ("),
        ("http://s failed for 5 s: HTTP status 502", "http://s failed for 5 s: HTTP"),
    ],
    ids=["of one refund", "of all"],
)
async def test_why_nothing_answered_is_one_line_about_all(
    cause: str, told: str
) -> None:
    error = APIConnectionError(f"re_1 was not canceled: {cause}")
    assert why_unreached(error, "re_1", "http://s").startswith(told)


async def test_refused_connections_of_many_are_told_once() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        emulator.faults.script("refuse")
        good = await run("cancel", *ids, "re_none", "--base-url", base_url)
    down = await run(
        *("cancel", *(f"re_{n}" for n in range(30)), "--patience", "0.1"),
        *("--base-url", base_url),
    )
    assert "could not be reached" not in good.err
    assert down.code == 1
    assert len(down.lines) == 30
    assert down.err.count("could not be reached") == 1
    # Without a connection nothing was sent.
    assert {line["attempts"] for line in down.lines} == {0}
    assert "request" not in down.err.replace("requests per second", "")


async def test_unknown_host_is_a_failure_that_sent_nothing() -> None:
    ended = await run(
        # No name server has it: https://www.rfc-editor.org/rfc/rfc2606
        *("cancel", "re_1", "--patience", "0.1", "--base-url", "https://api.invalid")
    )
    assert ended.code == 1
    assert ended.lines[0]["outcome"] == "failed"
    assert "no connection" in ended.lines[0]["error"]


async def test_person_at_a_terminal_sees_a_table() -> None:
    emulator, ids = emulator_of(2)
    emulator.set_status(ids[0], "succeeded")
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "--concurrency", "1", "--base-url", base_url),
            stdout=screen.terminal,
        ) as running,
    ):
        ended, shown = await screen.shows(running)
    assert ended.code == 1
    head, first, second = shown.splitlines()
    assert head.split() == ["refund", "id", "outcome", "idempotency", "key", "error"]
    assert first.split()[:2] == [ids[0], "not_cancelable"]
    assert "it is succeeded, and only a refund in requires_action" in first
    assert second.split()[:2] == [ids[1], "canceled"]
    assert len(second.split()) == 3


async def test_json_is_had_on_a_terminal_too() -> None:
    emulator, ids = emulator_of(1)
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("cancel", *ids, "--json", "--base-url", base_url), stdout=screen.terminal
        ) as running,
    ):
        ended, shown = await screen.shows(running)
    assert ended.code == 0
    assert shown.startswith(f'{{"refund_id":"{ids[0]}"')


async def test_refused_key_of_many_is_told_once_with_its_cause() -> None:
    emulator, ids = emulator_of(30)
    emulator.expire_key("sk_test_expired")
    async with emulator.serve() as base_url:
        ended = await run(
            *("cancel", *ids, "--base-url", base_url), key="sk_test_expired"
        )
    assert ended.code == 1
    assert {line["outcome"] for line in ended.lines} == {"failed"}
    assert ended.said[0].startswith("the API key was refused: Expired API Key provided")
    assert ended.err.count("refused") == 1
