"""The judge of the chaos sees each fault that a fleet may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attack.shrink import shrunk

from .books import Books, Request, account_id, refund_id
from .database import Item
from .judge import PASSWORD, End, Moment, Report, Zombie, judge
from .load import Stall
from .script import LEASE, Disaster, Script, drawn, options_of, shown
from .server import api_key
from .summary import Summary, figures
from .workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ACCOUNT = account_id(1)
FIRST, SECOND, THIRD = (refund_id(number) for number in range(3))


class Case:
    """A run of three refunds in which all is well, until a test spoils it."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.books = Books(lambda: self.now, {ACCOUNT: 5.0})
        self.books.give((name, ACCOUNT) for name in (FIRST, SECOND, THIRD))
        self.report = Report()
        self.log = folder / "w1.log"
        self.log.write_text("began\n")
        self.asked_to_end = True

    def cancel(self, name: str, key: str, worker: str, at: float) -> None:
        self.now = at
        request = Request(at, worker, "POST", ACCOUNT, name, key)
        self.books.requests.append(request)
        if self.books.saved(request) is None:
            self.books.cancel(request)
        self.books.answered[ACCOUNT, worker] = at

    def all_well(self) -> None:
        for number, name in enumerate((FIRST, SECOND, THIRD)):
            self.cancel(name, f"key{number}", "w1", 100.0 + number)
            self.keep(name, "canceled", f"key{number}")

    def keep(self, name: str, outcome: str, key: str) -> None:
        settled = outcome != "unknown"
        self.report.items.append(Item(name, ACCOUNT, settled, outcome, key, 1))

    def found(self) -> set[str]:
        worker = Worker("w1", _Ended(), self.log, asked_to_end=self.asked_to_end)  # type: ignore[arg-type] # only its code is read
        judge(self.report, self.books, [worker])
        return {finding.kind for finding in self.report.findings}


class _Ended:
    returncode = 3


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_run_without_a_fault_has_no_findings(case: Case) -> None:
    case.all_well()
    assert not case.found()
    summary = Summary()
    summary.add(case.report)
    assert figures(case.report).startswith("3 of 3 told canceled; 3 requests;")
    assert any(line.startswith("refunds      3") for line in summary.lines())


def two_keys(case: Case) -> None:
    case.books.doubtful.add("key0")
    case.cancel(FIRST, "another", "w2", 104.0)


def new_key_after_a_no(case: Case) -> None:
    case.books.requests.insert(
        0, Request(99.0, "w1", "POST", ACCOUNT, FIRST, "refused")
    )


def shared_key(case: Case) -> None:
    case.cancel(SECOND, "key0", "w1", 104.0)


def test_new_key_after_a_definite_no_is_right(case: Case) -> None:
    case.all_well()
    new_key_after_a_no(case)
    assert not case.found()
    assert case.report.renewed == 1
    case.books.doubtful.add("refused")
    assert case.found() == {"two keys for one refund"}


def never(case: Case) -> None:
    case.books.refunds[FIRST].status = "requires_action"


def lost_item(case: Case) -> None:
    del case.report.items[0]


def told_twice(case: Case) -> None:
    case.keep(FIRST, "canceled", "key0")


def foreign_item(case: Case) -> None:
    case.keep("re_1nobody", "canceled", "key9")


def told_already_canceled(case: Case) -> None:
    del case.report.items[0]
    case.keep(FIRST, "already_canceled", "key0")


def told_with_another_key(case: Case) -> None:
    del case.report.items[0]
    case.keep(FIRST, "canceled", "key9")


def exits(case: Case) -> None:
    case.asked_to_end = False


def traceback(case: Case) -> None:
    case.log.write_text("Traceback (most recent call last):\n")


def password(case: Case) -> None:
    case.log.write_text(f"cannot connect to postgresql://u:{PASSWORD}@h/d\n")


def key_in_log(case: Case) -> None:
    case.log.write_text(f"401 with {api_key('w1')}\n")


def timed_out(case: Case) -> None:
    case.report.timed_out = True


def ends_late(case: Case) -> None:
    case.report.ends.append(End("w1", 0, 11.0))


def ends_badly(case: Case) -> None:
    case.report.ends.append(End("w1", -9, 1.0))


def woken_sends(case: Case) -> None:
    case.report.zombies.append(Zombie("w1", 1, 0, 3, 30.0))


def woken_writes(case: Case) -> None:
    case.report.zombies.append(Zombie("w1", 0, 1, 3, 30.0))


def odd_request(case: Case) -> None:
    case.books.faults.append("a request of no account")


SPOILT: dict[str, Callable[[Case], None]] = {
    "two keys for one refund": two_keys,
    "canceled twice": two_keys,
    "one key for several refunds": shared_key,
    "never canceled": never,
    "an item that is not there once": lost_item,
    "an item that nobody enqueued": foreign_item,
    "told already_canceled": told_already_canceled,
    "told canceled with another key": told_with_another_key,
    "a worker that exits": exits,
    "a traceback in a worker's log": traceback,
    "a secret in a worker's log": key_in_log,
    "a run that does not end": timed_out,
    "a worker that ends late": ends_late,
    "a worker that does not end well": ends_badly,
    "a woken worker sends": woken_sends,
    "a woken worker writes": woken_writes,
    "a request that no client should send": odd_request,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_judge_sees(kind: str, case: Case) -> None:
    case.all_well()
    SPOILT[kind](case)
    assert kind in case.found()


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (told_twice, "an item that is not there once"),
        (password, "a secret in a worker's log"),
    ],
)
def test_judge_sees_it_in_another_form(
    spoil: Callable[[Case], None], kind: str, case: Case
) -> None:
    case.all_well()
    spoil(case)
    assert kind in case.found()


@pytest.mark.parametrize("kind", ["kill", "end"])
@pytest.mark.parametrize("late", [False, True])
def test_takeover_is_timed(kind: str, late: bool, case: Case) -> None:  # noqa: FBT001 - a parameter
    most = LEASE + 1 if kind == "kill" else 1.0
    case.cancel(FIRST, "key0", "w1", 100.0)
    case.report.moments.append(Moment(kind, 100.1, "w1", 100.1))
    if kind == "end":  # it finishes what it has under way
        case.cancel(SECOND, "key1", "w1", 102.0)
        since = 102.0
    else:
        since = 100.1
    at = since + most + (0.1 if late else -0.1)
    case.cancel(THIRD, "key2", "w2", at)
    case.books.limited.append(Request(at + 1, "w2", "POST", ACCOUNT, THIRD, "key2"))
    found = case.found()
    assert (f"a late takeover after: {kind}" in found) is late
    (takeover,) = case.report.takeovers
    assert takeover.seconds == pytest.approx(at - since)
    assert takeover.limited == 1


@pytest.mark.parametrize(("stood", "machine"), [(0.4, False), (0.6, True)])
def test_takeover_that_is_late_as_the_machine_was_is_told_apart(
    stood: float,
    machine: bool,  # noqa: FBT001 - a parameter
    case: Case,
) -> None:
    case.cancel(FIRST, "key0", "w1", 100.0)
    case.report.moments.append(Moment("kill", 100.1, "w1", 100.1))
    case.report.stalls += [Stall(103.0, stood / 2), Stall(104.0, stood / 2)]
    case.report.stalls += [Stall(100.0, 9.0), Stall(105.7, 9.0)]  # before and after
    case.cancel(SECOND, "key1", "w2", 100.1 + LEASE + 1.5)
    kind = "a late takeover after: kill" + (", as the machine was" if machine else "")
    assert kind in case.found()


@pytest.mark.parametrize(
    ("rate", "age", "found"),
    [(5.0, 2.0, True), (25.0, 2.0, False), (5.0, 0.5, True)],
    ids=["slow", "fast", "young"],
)
def test_takeover_that_costs_many_refusals(
    rate: float,
    age: float,
    found: bool,  # noqa: FBT001 - a parameter
    case: Case,
) -> None:
    case.books.rates[ACCOUNT] = rate
    case.cancel(FIRST, "key0", "w1", 100.0 - age)
    case.cancel(FIRST, "key0", "w1", 100.0)
    case.report.moments.append(Moment("kill", 100.1, "w1", 100.1))
    case.cancel(SECOND, "key1", "w2", 103.0)
    again = Request(103.1, "w2", "POST", ACCOUNT, THIRD, "key2")
    case.books.limited += 5 * [again]
    assert "many refusals after: kill" not in case.found()
    case.books.limited.append(again)
    case.report.findings.clear()
    assert ("many refusals after: kill" in case.found()) is found


def test_takeover_in_the_middle_of_another_disaster_is_not_judged(case: Case) -> None:
    case.cancel(FIRST, "key0", "w1", 100.0)
    case.report.moments += [
        Moment("kill", 100.1, "w1", 100.1),
        Moment("database away", 99.0, until=104.0),
    ]
    case.cancel(THIRD, "key2", "w2", 120.0)
    case.found()
    assert not case.report.takeovers


def test_same_case_is_the_same_script() -> None:
    assert drawn(5, 3) == drawn(5, 3) != drawn(5, 4)
    assert options_of(drawn(5, 4))["workers"] == 3
    kinds = {part.kind for number in range(60) for part in _disasters(drawn(1, number))}
    assert {"failover", "kill", "freeze", "end", "database silent"} <= kinds
    assert "failover" not in {
        part.kind
        for number in range(60)
        for part in _disasters(drawn(1, number, ("failover",)))
    }


def test_script_is_shrunk_to_what_fails() -> None:
    script: Script = (
        Disaster("kill", 0.7, 2, 1.5),
        Disaster("failover", 0.2, 1, 0.0),
        Disaster("freeze", 0.1, 0, 4.0),
    )

    def fails(smaller: Script) -> bool:
        return any(part.kind == "failover" for part in _disasters(smaller))

    smallest = shrunk(script, fails)
    assert smallest == (Disaster("failover"),)
    assert shown(smallest) == "  Disaster(kind='failover')"


def _disasters(script: Script) -> list[Disaster]:
    return [part for part in script if isinstance(part, Disaster)]
