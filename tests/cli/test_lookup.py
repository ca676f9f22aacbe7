from __future__ import annotations

import pytest

from tests.support.terminal import Screen, emulator_of, run, run_each, started

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

# 2026-01-02 03:04 UTC.
CREATED = 1767323040


async def test_retrieve_shows_each_refund_as_stripe_sends_it() -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run("retrieve", *ids, "--base-url", base_url)
    assert (ended.code, ended.err) == (0, "")
    assert [line["id"] for line in ended.lines] == ids
    line, refund = ended.lines[0], emulator.refund(ids[0])
    for name in ("status", "amount", "created", "charge", "metadata", "next_action"):
        assert line[name] == refund[name]


async def test_missing_refund_is_named_and_the_others_are_shown() -> None:
    emulator, ids = emulator_of(2)
    async with emulator.serve() as base_url:
        ended = await run(
            "retrieve", ids[0], "re_missing", ids[1], "--base-url", base_url
        )
    assert ended.code == 1
    assert [line["id"] for line in ended.lines] == ids
    assert ended.err == (
        "async-refunds: re_missing could not be read: No such refund: 're_missing'\n"
    )


async def test_retrieve_of_no_refund_id_asks_nothing() -> None:
    emulator, ids = emulator_of(1)
    async with emulator.serve() as base_url:
        ended = await run("retrieve", ids[0], "../charges", "--base-url", base_url)
    assert (ended.code, ended.out) == (2, "")
    assert "'../charges' is not a refund id" in ended.err
    assert not emulator.requests


async def test_retrieve_on_a_terminal_is_a_table() -> None:
    emulator, _ = emulator_of(0)
    emulator.add_refund(refund_id="re_1Long" + 40 * "g", created=CREATED)
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started(
            *("retrieve", "re_1Long" + 40 * "g", "--base-url", base_url),
            stdout=screen.terminal,
        ) as running,
    ):
        ended, shown = await screen.shows(running)
    assert ended.code == 0
    head, line = (each.split("  ") for each in shown.splitlines())
    assert [each.strip() for each in head if each] == [
        *("id", "status", "amount", "currency", "created", "failure reason")
    ]
    assert [each.strip() for each in line if each] == [
        "re_1Long" + 40 * "g",
        *("requires_action", "5,000", "jpy", "2026-01-02 03:04Z"),
    ]


async def test_list_shows_all_pages_newest_first() -> None:
    emulator, ids = emulator_of(150)
    async with emulator.serve() as base_url:
        ended = await run("list", "--base-url", base_url)
    assert (ended.code, ended.err) == (0, "")
    assert [line["id"] for line in ended.lines] == ids[::-1]
    assert emulator.books.requests == {"list": 2}


async def test_list_of_a_status_is_chosen_here() -> None:
    emulator, ids = emulator_of(4)
    emulator.set_status(ids[1], "failed")
    emulator.set_status(ids[3], "failed")
    async with emulator.serve() as base_url:
        command = ("list", "--status", "failed", "--base-url", base_url)
        ended, newest = await run_each(command, (*command, "--max", "1"))
    assert ended.code == newest.code == 0
    assert [line["id"] for line in ended.lines] == [ids[3], ids[1]]
    assert [line["id"] for line in newest.lines] == [ids[3]]


async def test_unknown_status_is_refused_with_the_known_ones() -> None:
    ended = await run("list", "--status", "requires-action")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "async-refunds: --status: 'requires-action' is unknown (did you mean "
        "requires_action?); known are canceled, failed, pending, requires_action, "
        "succeeded; nothing was done\n"
    )


async def test_list_stops_at_the_most_wanted() -> None:
    emulator, ids = emulator_of(150)
    async with emulator.serve() as base_url:
        ended = await run("list", "--max", "3", "--base-url", base_url)
    assert ended.code == 0
    assert [line["id"] for line in ended.lines] == ids[:-4:-1]
    assert emulator.books.requests == {"list": 1}


@pytest.mark.parametrize("option", ["--charge", "--payment-intent"])
async def test_list_of_a_charge_or_a_payment(option: str) -> None:
    emulator, ids = emulator_of(3)
    wanted = str(emulator.refund(ids[1])[option[2:].replace("-", "_")])
    async with emulator.serve() as base_url:
        ended, refused = await run_each(
            ("list", option, wanted, "--base-url", base_url),
            ("list", option, "../x", "--base-url", base_url),
        )
    assert ended.code == 0
    assert [line["id"] for line in ended.lines] == [ids[1]]
    assert (refused.code, refused.out) == (2, "")
    assert "an id of letters, digits and _, not '../x'" in refused.err


async def test_list_of_nothing_is_nothing() -> None:
    emulator, _ = emulator_of(0)
    screen = Screen()
    async with (
        emulator.serve() as base_url,
        started("list", "--base-url", base_url, stdout=screen.terminal) as running,
    ):
        ended, shown = await screen.shows(running)
    assert (ended.code, ended.err, shown) == (0, "", "")


async def test_page_that_cannot_be_read_is_exit_code_1() -> None:
    emulator, _ = emulator_of(1)
    emulator.expire_key("sk_test_expired")
    async with emulator.serve() as base_url:
        ended = await run("list", "--base-url", base_url, key="sk_test_expired")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("async-refunds: the list of refunds could not be read")
    assert "sk_test_expired" not in ended.err
