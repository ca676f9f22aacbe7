"""``fleet report`` says what is in flight, in doubt, given up, paused, and pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fleet_commands import Fleet, on_terminal
from tests.support.fleets import URL, ids, result, worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

RETRY = "async-refunds fleet retry tonight"
DEAD = f"`{RETRY} --outcome dead`"
RESUME = "`async-refunds fleet resume tonight`"


@pytest.fixture
def fleet(postgres_database: str) -> Fleet:
    return Fleet(postgres_database)


async def add(
    fleet: Fleet, *names: str, run: str = "tonight", account: str = ""
) -> None:
    to = ("--base-url", URL, *(("--account", account) if account else ()))
    ended = await fleet("enqueue", "--run", run, *names, *to)
    assert ended.code == 0


async def steps(fleet: Fleet, *more: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Return the exit code, and the count and the step of each outcome."""
    shown = await on_terminal(fleet, "report", "tonight", *more)
    code = (await fleet("report", "tonight", "-q")).code
    head, *lines = [line for line in shown.splitlines() if "in use" not in line]
    name, count = head.index("refunds"), head.index("what to do")
    table: dict[str, tuple[str, str]] = {}
    for line in lines:
        number = line[name:count].strip()
        if not number.isdecimal():
            break
        table[line[:name].strip()] = number, line[count:]
    return code, table


TWICE = "nothing is canceled twice"
WORKER = f"a worker asks again; {TWICE}"


async def test_only_what_a_live_worker_has_in_hand_is_in_flight(
    fleet: Fleet, postgres_database: str
) -> None:
    await add(fleet, "re_1", "re_2", "re_3")
    async with worker(postgres_database, "dead") as dead:
        await dead.acquire()
        assert ids(await dead.claim(limit=1)) == ["re_1"]
        code, told = await steps(fleet)
        assert told["in flight"] == ("1", "nothing yet: the run is going on")
        assert code == 1
        fleet.rows("UPDATE async_refunds.leases SET until = now() - interval '1 s'")
        code, told = await steps(fleet)
        assert "in flight" not in told
        assert told["unknown"] == ("1", f"maybe canceled: {WORKER}")
        assert code == 3
        async with worker(postgres_database, "next") as heir:
            await heir.acquire()
            # It holds the account, and has not come to the refund yet.
            code, told = await steps(fleet)
            assert ("in flight" in told, code) == (False, 3)
            (claim,) = await heir.claim(limit=1)
            code, told = await steps(fleet)
            assert (told["in flight"][0], told["open"][0], code) == ("1", "2", 1)
            await heir.journal.settle([(claim, result(claim))])
            _, told = await steps(fleet)
            assert "in flight" not in told
            assert told["canceled"][0] == "1"


async def test_account_that_is_held_makes_none_of_another_account_in_flight(
    fleet: Fleet, postgres_database: str
) -> None:
    await add(fleet, "re_1", account="acct_1")
    await add(fleet, "re_2", account="acct_2")
    async with (
        worker(postgres_database, "dead") as dead,
        worker(postgres_database, "live") as live,
    ):
        for each, account in ((dead, "acct_1"), (live, "acct_2")):
            await each.leases.acquire(1, only=[account])
            assert len(await each.claim(account)) == 1
        fleet.rows(
            "UPDATE async_refunds.leases SET until = now() - interval '1 s' "
            "WHERE account = 'acct_1'"
        )
        code, told = await steps(fleet)
    assert (told["in flight"][0], told["unknown"][0], code) == ("1", "1", 3)


async def test_paused_run_says_that_nothing_goes_on_until_it_is_resumed(
    fleet: Fleet, postgres_database: str, tmp_path: Path
) -> None:
    await add(fleet, "re_1", "re_2")
    page = tmp_path / "page.html"
    async with worker(postgres_database, "dead") as dead:
        await dead.acquire()
        await dead.claim(limit=1)
        fleet.rows("UPDATE async_refunds.leases SET until = now() - interval '1 s'")
    await add(fleet, "re_9", run="other")
    async with worker(postgres_database, "live") as live:
        # The same account, for another run.
        await fleet("pause", "tonight")
        await live.acquire()
        await live.claim()
        code, told = await steps(fleet)
        shown = await on_terminal(fleet, "report", "tonight")
        await fleet("report", "tonight", "--html", str(page))
        await fleet("resume", "tonight")
        _, resumed = await steps(fleet)
    assert code == 3
    assert told["unknown"] == (
        "1",
        f"maybe canceled: paused, a worker asks again after {RESUME}; {TWICE}",
    )
    assert told["open"] == ("1", f"paused: nothing until {RESUME}")
    assert "going on" not in shown
    text = page.read_text()
    assert "It is going on." not in text
    assert f"Paused: nothing until <code>{RESUME.strip('`')}</code>" in text
    assert resumed["unknown"] == ("1", f"maybe canceled: {WORKER}")


async def test_what_is_given_up_names_the_command_that_opens_it(
    fleet: Fleet, postgres_database: str
) -> None:
    await add(fleet, "re_1")
    for _ in range(8):
        async with worker(postgres_database) as ends:
            await ends.acquire()
            assert ids(await ends.claim()) == ["re_1"]
            fleet.rows("UPDATE async_refunds.leases SET until = now() - interval '1 s'")
            # It ends without giving its lease back.
            lease = ends.leases.get(None)
            assert lease is not None
            ends.leases.lose(lease)
    async with worker(postgres_database) as last:
        await last.acquire()
        assert await last.claim() == []
        code, told = await steps(fleet)
        (record,) = (await fleet("report", "tonight")).lines
    given_up = f"maybe canceled: dead until {DEAD}; {TWICE}"
    assert (code, told) == (3, {"unknown": ("1", given_up)})
    assert record["error"] == (
        "dead: 8 workers in turn took it and ended without a result"
    )
    await add(fleet, "re_2")
    fleet.rows(
        "UPDATE async_refunds.items SET maybe_sent = true, generation = 1 "
        "WHERE refund_id = 're_2'"
    )
    _, told = await steps(fleet)
    assert told["unknown"] == (
        "2",
        f"maybe canceled: a worker asks again; 1 dead until {DEAD}; {TWICE}",
    )
    opened = await fleet("retry", "tonight", "--outcome", "dead")
    assert opened.err == "1 refund of tonight is asked for at once\n"
    _, told = await steps(fleet)
    assert told["unknown"] == ("2", f"maybe canceled: {WORKER}")


async def test_run_whose_rest_only_failed_may_be_closed(fleet: Fleet) -> None:
    await add(fleet, "re_1", "re_2")
    retry = "`async-refunds fleet retry tonight --outcome failed`"
    failed = f"not canceled: read the error, fix its cause, then {retry}"
    known = "outcome = 'failed', attempts = 1, known_at = now()"
    fleet.rows(f"UPDATE async_refunds.items SET {known} WHERE refund_id = 're_1'")  # noqa: S608 - our own text
    _, told = await steps(fleet)
    assert told["failed"] == ("1", failed), "it would give up the other one, too"
    fleet.rows(f"UPDATE async_refunds.items SET {known}")  # noqa: S608 - our own text
    _, told = await steps(fleet)
    close = "`async-refunds fleet close tonight`"
    assert told["failed"] == ("2", f"{failed}, or {close} gives up")


async def test_refund_that_is_asked_for_again_is_in_doubt(
    fleet: Fleet, postgres_database: str
) -> None:
    await add(fleet, "re_1")
    async with worker(postgres_database) as first:
        await first.acquire()
        (claim,) = await first.claim()
        await first.settle(claim, "not_cancelable")
        assert (await steps(fleet))[0] == 1
        await fleet("retry", "tonight", "--outcome", "not_cancelable")
        assert len(await first.claim()) == 1
        # A request with a new key is perhaps under way.
        code, told = await steps(fleet)
    assert (code, [*told]) == (3, ["unknown"])


async def test_retry_says_what_workers_do(fleet: Fleet) -> None:
    await add(fleet, "re_1", "re_2", "re_3")
    fleet.rows("UPDATE async_refunds.items SET outcome = 'failed'")
    fleet.rows("UPDATE async_refunds.items SET settled = true WHERE refund_id = 're_1'")
    ended = await fleet("retry", "tonight", "--outcome", "failed")
    assert ended.err == "3 refunds of tonight are asked for at once\n"
    again = await fleet("retry", "tonight", "--outcome", "failed")
    assert again.err == ended.err, "open or not"
    none = await fleet("retry", "tonight", "--outcome", "dead,unknown")
    assert none.err == "no refund of tonight is dead or unknown: none is asked for\n"
    await fleet("pause", "tonight")
    paused = await fleet("retry", "tonight", "--outcome", "failed")
    assert paused.err == (
        "3 refunds of tonight are asked for after "
        "`async-refunds fleet resume tonight`: it is paused\n"
    )


async def test_run_without_refunds_is_not_a_run_that_is_done(
    fleet: Fleet, tmp_path: Path
) -> None:
    await add(fleet, "re_1")
    fleet.rows(
        "UPDATE async_refunds.items SET settled = true, outcome = 'canceled', "
        "known_at = now() - interval '31 d'"
    )
    assert (await fleet("report", "tonight")).code == 0
    await fleet("prune", "--older-than", "30d")
    page = tmp_path / "page.html"
    lines, html = await fleet.each(
        ("report", "tonight", "-q"), ("report", "tonight", "--html", str(page))
    )
    said = "tonight has no refunds: none was added, or all were pruned"
    assert (lines.code, lines.out) == (1, "")
    assert lines.err == f"async-refunds: {said}\n"
    assert html.code == 1
    assert "There are no refunds." in page.read_text()
    assert "All 0" not in page.read_text()


async def test_database_that_fails_is_no_run_that_is_missing(fleet: Fleet) -> None:
    await add(fleet, "re_1")
    fleet.rows("ALTER TABLE async_refunds.items RENAME rate_limited TO gone")
    failed, missing = await fleet.each(("report", "tonight"), ("report", "x"))
    assert (failed.code, missing.code) == (1, 2)
    assert failed.err.startswith("async-refunds: the database cannot be read: ")


async def test_name_that_a_service_gave_a_run_is_obeyed_by_no_terminal(
    fleet: Fleet, postgres_database: str
) -> None:
    name = "x\x1b[31m\x9b31m\u202e\r\nforged"
    await add(fleet, "re_1", run="plain")
    async with worker(postgres_database) as working:
        await working.acquire()
        (claim,) = await working.claim()
        await working.journal.settle([(claim, result(claim, "failed"))])
    fleet.rows("UPDATE async_refunds.runs SET name = %s", name)
    for command in (("report", name), ("status",)):
        shown = await on_terminal(fleet, *command)
        assert not set("\x1b\x9b\u202e\r") & set(shown), ascii(shown)
        assert "forged" in shown
        assert "\nforged" not in shown
