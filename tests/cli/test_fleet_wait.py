"""``fleet wait``: to the end of a run, and with the exit code of what became of it."""

from __future__ import annotations

import re
import signal

import pytest

from tests.support.fleet_commands import Fleet, on_terminal
from tests.support.terminal import Screen, emulator_of, started

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

HERE = "http://127.0.0.1:12111"


@pytest.fixture
def fleet(postgres_database: str) -> Fleet:
    return Fleet(postgres_database)


async def add(fleet: Fleet, *names: str, base_url: str = HERE) -> None:
    ended = await fleet("enqueue", "--run", "tonight", *names, "--base-url", base_url)
    assert ended.code == 0


async def test_wait_ends_with_the_work_of_the_workers(fleet: Fleet) -> None:
    emulator, ids = emulator_of(30)
    async with emulator.serve() as base_url:
        await add(fleet, *ids, base_url=base_url)
        async with (
            started(
                *("fleet", "wait", "tonight"), key=None, environment=fleet.environment
            ) as waiting,
            started(
                *("fleet", "worker", "--base-url", base_url),
                environment=fleet.environment,
            ) as worker,
        ):
            ended = await waiting.ended()
            worker.process.send_signal(signal.SIGTERM)
            await worker.ended()
    assert ended.code == 0
    assert ended.lines == [{"run": "tonight", "open": 0, "outcomes": {"canceled": 30}}]
    assert ended.err.splitlines()[-1] == "tonight, 30 refunds: 30 canceled"
    assert len(emulator.books.cancellations) == 30


@pytest.mark.parametrize(
    ("known", "code"),
    [
        ("settled = true, outcome = 'canceled'", 0),
        ("settled = true, outcome = 'already_canceled'", 0),
        ("settled = true, outcome = 'not_cancelable'", 1),
        ("dead = true", 1),
        ("dead = true, maybe_sent = true", 3),
    ],
)
async def test_exit_code_tells_what_became_of_it(
    fleet: Fleet, known: str, code: int
) -> None:
    await add(fleet, "re_1", "re_2")
    fleet.rows("UPDATE async_refunds.items SET settled = true, outcome = 'canceled'")
    fleet.rows(
        "UPDATE async_refunds.items SET settled = false, outcome = NULL "
        "WHERE refund_id = 're_1'"
    )
    fleet.rows(
        f"UPDATE async_refunds.items SET {known} WHERE refund_id = 're_1'"  # noqa: S608 - our own text
    )
    assert (await fleet("wait", "tonight")).code == code


async def test_time_that_is_over_leaves_the_rest_to_the_workers(fleet: Fleet) -> None:
    await add(fleet, "re_1", "re_2")
    fleet.rows(
        "UPDATE async_refunds.items SET known_at = now(), outcome = 'failed' "
        "WHERE refund_id = 're_1'"
    )
    late, quiet = await fleet.each(
        ("wait", "tonight", "--timeout", "0"),
        ("wait", "tonight", "--timeout", "0.1", "-q"),
    )
    assert (late.code, quiet.code) == (1, 1)
    (told,) = late.lines
    assert (told["open"], told["outcomes"]) == (2, {"failed": 1, "open": 1})
    assert late.err.endswith(
        "async-refunds: 2 refunds of tonight not done; workers go on\n"
    )
    fleet.rows("UPDATE async_refunds.items SET maybe_sent = true")
    assert (await fleet("wait", "tonight", "--timeout", "0")).code == 3


async def test_progress_is_shown_and_grows_with_what_is_added(fleet: Fleet) -> None:
    await add(fleet, "re_1", "re_2")
    fleet.rows("UPDATE async_refunds.items SET settled = refund_id = 're_1'")
    screen = Screen()
    async with started(
        *("fleet", "wait", "tonight"),
        key=None,
        environment=fleet.environment,
        stderr=screen.terminal,
    ) as waiting:
        showing = screen.reading()
        await screen.asks("1/2")
        await add(fleet, "re_3")
        await screen.asks("1/3")
        fleet.rows(
            "UPDATE async_refunds.items SET known_at = now(), outcome = 'failed' "
            "WHERE refund_id = 're_3'"
        )
        await screen.asks("1 to be asked for again")
        fleet.rows("UPDATE async_refunds.runs SET state = 'closed'")
        ended = await waiting.ended()
        await showing
    assert ended.code == 1


async def test_wait_says_that_a_run_is_paused_and_ends_with_ctrl_c(
    fleet: Fleet,
) -> None:
    await add(fleet, "re_1")
    await fleet("pause", "tonight")
    async with started(
        *("fleet", "wait", "tonight"), key=None, environment=fleet.environment
    ) as waiting:
        await waiting.says("tonight is paused")
        waiting.process.send_signal(signal.SIGINT)
        ended = await waiting.ended()
    assert ended.code == 130
    assert ended.err.endswith("async-refunds: interrupted: workers go on with it\n")


async def test_nobody_goes_on_with_a_closed_run(fleet: Fleet) -> None:
    await add(fleet, "re_1")
    fleet.rows("UPDATE async_refunds.runs SET state = 'closed'")
    ended = await fleet("wait", "tonight")
    assert ended.code == 1
    assert ended.err.endswith("1 refund of tonight not done; it is closed\n")


async def test_run_that_is_not_there_or_has_nothing_is_not_done(fleet: Fleet) -> None:
    fleet.rows("SELECT async_refunds.ensure_run('empty', %s, false)", HERE)
    missing, empty, wrong = await fleet.each(
        ("wait", "tonight"), ("wait", "empty"), ("wait", "empty", "--timeout", "-1")
    )
    assert (missing.code, empty.code, wrong.code) == (2, 1, 2)
    assert missing.err == "async-refunds: there is no run 'tonight'\n"
    assert empty.err == (
        "async-refunds: empty has no refunds: none was added, or all were pruned\n"
    )


async def test_database_that_fails_at_the_end_is_no_run_that_is_missing(
    fleet: Fleet,
) -> None:
    await add(fleet, "re_1")
    fleet.rows("UPDATE async_refunds.items SET settled = true, outcome = 'canceled'")
    assert await on_terminal(fleet, "wait", "tonight") == "", "it is told on stderr"
    fleet.rows("ALTER TABLE async_refunds.items RENAME rate_limited TO gone")
    failed = await fleet("wait", "tonight")
    assert failed.code == 1
    assert failed.err.startswith("async-refunds: the database cannot be read: ")


async def test_database_that_fails_meanwhile_ends_the_wait(fleet: Fleet) -> None:
    await add(fleet, "re_1")
    await fleet("pause", "tonight")
    async with started(
        *("fleet", "wait", "tonight"), key=None, environment=fleet.environment
    ) as waiting:
        await waiting.says("tonight is paused")
        fleet.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        ended = await waiting.ended()
    assert ended.code == 1
    assert "async-refunds: the database: " in ended.err


async def failed(fleet: Fleet, *names: str, outcome: str = "failed") -> None:
    """Let a worker have asked for refunds in vain, a minute ago, of five."""
    fleet.rows(
        "UPDATE async_refunds.items SET known_at = now(), outcome = %s, attempts = 1, "
        "generation = 1, maybe_sent = %s, "
        "error = refund_id || ' was not canceled: No such refund' "
        "WHERE refund_id = ANY(%s)",
        *(outcome, outcome == "unknown", list(names)),
    )
    fleet.rows("UPDATE async_refunds.leases SET retry_at = now() + interval '4 min'")


async def test_wait_ends_and_names_what_is_only_asked_for_again(fleet: Fleet) -> None:
    """A refund that is not there is asked for again for ever."""
    ids = [f"re_{number}" for number in range(1, 9)]
    await add(fleet, *ids)
    fleet.rows("UPDATE async_refunds.items SET settled = true, outcome = 'canceled'")
    fleet.rows("UPDATE async_refunds.items SET settled = refund_id = 're_1'")
    await failed(fleet, *ids[1:])
    ended = await fleet("wait", "tonight")
    assert ended.code == 1
    assert [line["open"] for line in ended.lines] == [7]
    first, second, *named, more = ended.err.splitlines()
    assert first == "tonight, 8 refunds: 7 failed, 1 canceled"
    assert re.fullmatch(
        r"7 refunds of tonight are asked for again, the first in 0:0[34]:\d\d; "
        r"`async-refunds fleet close tonight` gives up what failed:",
        second,
    )
    assert named == [f"  {each}: No such refund" for each in ids[1:6]]
    assert more == "  and 2 more: `async-refunds fleet report tonight` has all"
    assert (await fleet("wait", "tonight", "-q")).err == ""
    assert (await fleet("close", "tonight")).code == 0
    closed = await fleet("wait", "tonight")
    assert (closed.code, "asked for again" in closed.err) == (1, False)


async def test_wait_for_what_is_unknown_ends_as_a_cancel_does(fleet: Fleet) -> None:
    await add(fleet, "re_1", "--account", "acct_1Them")
    await failed(fleet, "re_1", outcome="unknown")
    ended = await fleet("wait", "tonight")
    assert ended.code == 3
    assert "1 refund of tonight is asked for again" in ended.err
    assert "\n  re_1 of acct_1Them: No such refund\n" in ended.err


@pytest.mark.parametrize(
    "due",
    [
        # Its time has come, as after `fleet retry`.
        "UPDATE async_refunds.leases SET retry_at = '-infinity'",
        # A worker has it in hand.
        "UPDATE async_refunds.items SET claim_number = 1 WHERE refund_id = 're_1'",
        # Another one was never asked for.
        "UPDATE async_refunds.items SET known_at = NULL WHERE refund_id = 're_2'",
    ],
)
async def test_wait_goes_on_for_what_is_asked_for_now(fleet: Fleet, due: str) -> None:
    await add(fleet, "re_1", "re_2")
    await failed(fleet, "re_1", "re_2")
    fleet.rows(due)
    late = await fleet("wait", "tonight", "--timeout", "0.1")
    assert late.err.endswith("2 refunds of tonight not done; workers go on\n")


async def test_wait_until_all_is_settled_names_what_it_waits_for(fleet: Fleet) -> None:
    await add(fleet, "re_1")
    await failed(fleet, "re_1")
    async with started(
        *("fleet", "wait", "tonight", "--settled"),
        key=None,
        environment=fleet.environment,
    ) as waiting:
        await waiting.says("1 refund of tonight is asked for again")
        await waiting.says("re_1: No such refund")
        fleet.rows("UPDATE async_refunds.items SET settled = true")
        ended = await waiting.ended()
    assert ended.code == 1
    assert ended.err.count("asked for again") == 1


async def test_wait_says_that_nothing_is_asked_for_now(fleet: Fleet) -> None:
    """Such as with a refused key, which nobody sees but the workers."""
    await add(fleet, "re_1", "re_2")
    held = "nothing of tonight is asked for now: a key is refused, Stripe cannot be "
    assert held not in (await fleet("wait", "tonight", "--timeout", "0.1")).err
    await failed(fleet, "re_1")
    fleet.rows("UPDATE async_refunds.leases SET not_before = now() + interval '1 min'")
    async with started(
        *("fleet", "wait", "tonight"), key=None, environment=fleet.environment
    ) as waiting:
        await waiting.says(held)
        fleet.rows("UPDATE async_refunds.items SET settled = true")
        ended = await waiting.ended()
    assert ended.code == 1
    assert ended.err.count(held) == 1
