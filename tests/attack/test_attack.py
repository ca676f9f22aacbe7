"""A short run of the attack, and proof that it sees an untrue word."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from . import campaign, journal_campaign
from .campaign import Summary, played
from .drawing import drawn
from .script import Act, Call, Damage, Given, Kill, Move, Option, Script
from .server import Server
from .shrink import shrunk
from .stripe import Books

pytestmark = pytest.mark.unmeasured


def told_by(summary: Summary) -> str:
    return "\n\n".join(
        f"{found.finding.kind} [{', '.join(sorted(found.damages))}]\n"
        f"python -m tests.attack --only {found.kind} --seed {found.seed} "
        f"--case {found.number}\n{found.finding.text}"
        for found in summary.simplest()
    )


@pytest.mark.parametrize("kind", ["calls", "batch"])
def test_every_promise_holds_under_random_faults(kind: str) -> None:
    summary = campaign.attack(kind, 1, range(100))
    assert not summary.found, told_by(summary)
    # It attacked: faults came, and calls ended in every way.
    assert summary.requests > 300
    assert len(summary.told) >= 4


def test_every_promise_holds_through_kills_and_damaged_journals() -> None:
    summary = journal_campaign.attack(1, range(30))
    assert not summary.found, told_by(summary)
    assert summary.requests > 200
    assert summary.told["canceled"] > 80


# What the attack found once, shrunk: it finds nothing there any more.
FOUND_ONCE: dict[str, tuple[str, Script]] = {
    "a full stack leaves the client half open": (
        "calls",
        (Call(0, 0, frames=12), Call(1, 1)),
    ),
    "a proxy's own 403 in place of the answer": (
        "calls",
        (Act(0, "POST", 0, 0, "run", "proxy", 13), Call(0, 0)),
    ),
    "a late 404 of another request": ("calls", (Option("greets", 2), Call(0, 0))),
    "a late 429 when no retry is left": (
        "calls",
        (Option("greets", 5), Option("max_retries", 0), Call(0, 0)),
    ),
    "a doubtful no, and then nobody answers": (
        "calls",
        (Option("greets", 0), Option("deaf_from", 0.001), Call(0, 0)),
    ),
    "a hook's BaseException ends a batch": ("batch", (Option("hook"), Given(0))),
    "an input's BaseException ends a batch in silence": (
        "batch",
        (Option("input_raises", 0), Given(0)),
    ),
    "one refusal closes the account": (
        "batch",
        (Act(0, "POST", 0, 99, "403"), Given(0), Given(1)),
    ),
    "what was never asked is unknown, without a key": (
        "batch",
        (Option("poor"), Act(0, "POST", 0, 0, "403"), Given(0), Given(1)),
    ),
    "what was never sent is unknown after refusals without proof": (
        "batch",
        (
            *(Option("concurrency"), Given(13), Given(14)),
            Act(13, "POST", 0, 99, "401"),
            Act(13, "GET", 0, 99, wire="other_refund"),
        ),
    ),
    "calls of one refund that are refused close the account": (
        "batch",
        (
            *(Option("borrowed"), Option("max_retries"), Option("concurrency")),
            *(Given(0), Given(2)),
            Act(0, "POST", 0, 99, "401", "extra_next", 33768),
        ),
    ),
    "a kill, and the -wal is lost": (
        "journals",
        (Given(0), Given(1), Kill(0, 2, "executed"), Damage(1, "lose", "-wal")),
    ),
    "a kill, and the main file alone is moved": (
        "journals",
        (Given(0), Given(1), Kill(0, 2, "executed"), Damage(1, "move", value=1)),
    ),
    "a kill, and it goes on under a hard link": (
        "journals",
        (Given(0), Given(1), Kill(0, 2, "executed"), Damage(1, "alias", "hardlink")),
    ),
    "two processes on two hard links": (
        "journals",
        (Given(0), Given(1), Given(2), Damage(0, "pair", "hardlink")),
    ),
}


@pytest.mark.parametrize("name", FOUND_ONCE)
def test_what_was_found_once_is_not_found_again(name: str) -> None:
    kind, script = FOUND_ONCE[name]
    if kind == "journals":
        report = journal_campaign.played(script)
    else:
        report = played(kind, script, name)
    assert not report.findings


# A server that says what is not so: no client can know. It stands for a client that
# says what is not so, since the judge sees the same.
LIE = Act(1, "POST", 0, 0, "lie")
LIAR: Script = (
    Option("max_retries", 1),
    Given(0, "canceled"),
    Given(1, spelling=3),
    Act(0, "POST", 0, 0, "run", "slow", 3),
    LIE,
    Act(1, "GET", 0, 0, "run", "plain"),
    Call(0, 0, at=0.5),
    Call(1, 1, at=0.3, own_key=True),
    Call(2, 0, timeout=3.0),
)


def test_untrue_word_is_found_and_shrunk_to_what_makes_it() -> None:
    def fails(script: Script) -> bool:
        report = played("calls", script, "liar")
        kinds = {finding.kind for finding in report.findings}
        return "returned though not canceled" in kinds

    assert fails(LIAR)
    assert shrunk(LIAR, fails) == (LIE, Call(1, 1))


def test_untrue_word_of_a_batch_is_found() -> None:
    report = played("batch", (Given(1), LIE), "liar")
    assert {finding.kind for finding in report.findings} == {
        "told canceled, and is not"
    }


@pytest.mark.parametrize("kind", ["calls", "batch", "journals"])
def test_same_case_is_the_same_script(kind: str) -> None:
    first, second = (drawn(kind, 5, number) for number in (3, 3))
    assert first == second != drawn(kind, 5, 4)


async def test_address_of_a_server_that_listens_no_more_is_nobody_else_s() -> None:
    """The calls of its case would cancel another case's refunds."""
    server = Server(Books(faithful=True, clock=time.monotonic), ())
    await server.listen()
    host, port = server.url.removeprefix("http://").split(":")
    server.deafen()
    server.deafen()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((host, int(port)))
    server.close()


def test_book_keeping_knows_a_cancel_by_other_hands() -> None:
    script: Script = (Given(0), Move(0, 1.0, "canceled"), Call(0, 0, at=2.0))
    report = played("calls", script, "moved")
    assert report.told == {"RefundNotCancelableError": 1}
    assert not report.findings


def test_kill_in_the_middle_of_a_run_is_resumed_with_the_same_key() -> None:
    script: Script = (
        Option("runs", 2),
        *(Given(number) for number in range(5)),
        Kill(0, 3, "executed"),
    )
    report = journal_campaign.played(script)
    assert not report.findings
    assert report.told["canceled"] >= 5
