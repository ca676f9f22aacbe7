"""Judges a run by the books of Stripe and by what the database says."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .load import Stall, stalled
from .script import LEASE
from .server import api_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .books import Books, Request
    from .database import Item
    from .workers import Worker

PASSWORD = "canary-of-the-database"
_TAKEOVER = LEASE + 1.0
_HANDOVER = 1.0
_SLOW, _MOST_REFUSALS = 5.0, 5
"""On an account that is limited to so many requests a second, a takeover or a handover
costs at most so many refusals; also if the holder had not found the limit yet, so that
who follows has to search as the holder did."""
_ENDS_WITHIN = 10.0


@dataclass(frozen=True)
class Finding:
    """A promise that did not hold."""

    kind: str
    """In a few words: the same for the same fault."""
    text: str


@dataclass
class Moment:
    """Something that befell the fleet."""

    kind: str
    at: float
    """Monotonic seconds."""
    worker: str = ""
    until: float = float("inf")


@dataclass(frozen=True)
class End:
    """How a worker ended that was asked to."""

    worker: str
    code: int
    seconds: float
    at_start: bool = False
    """Whether the signal came before it worked: then it has nothing to give back."""


@dataclass(frozen=True)
class Zombie:
    """What a worker did when it woke up, with accounts that others had won."""

    worker: str
    sent: int
    """Requests for those of its accounts that it had not won again before."""
    wrote: int
    """Rows, with the tokens that had been good."""
    accounts: int
    """How many of those it held when it was frozen."""
    seconds: float
    """How long it was frozen."""


@dataclass(frozen=True)
class Takeover:
    """An account that another worker went on with."""

    account: str
    kind: str
    """What befell the worker before."""
    seconds: float
    limited: int
    """Requests that the account's limit refused in the seconds after."""
    rate: float
    """The account's limit."""
    age: float
    """Seconds since the former holder's first request for it."""
    stalled: float = 0.0
    """Seconds for which the harness, too, could not run meanwhile."""


@dataclass
class Report:
    """What came of a run."""

    findings: list[Finding] = field(default_factory=list[Finding])
    moments: list[Moment] = field(default_factory=list[Moment])
    done: Counter[str] = field(default_factory=Counter[str])
    """How often each disaster came."""
    faults_met: Counter[str] = field(default_factory=Counter[str])
    told: Counter[str] = field(default_factory=Counter[str])
    """Items by their outcome in the database."""
    items: list[Item] = field(default_factory=list["Item"])
    ends: list[End] = field(default_factory=list[End])
    zombies: list[Zombie] = field(default_factory=list[Zombie])
    takeovers: list[Takeover] = field(default_factory=list[Takeover])
    stalls: list[Stall] = field(default_factory=list[Stall])
    lost: list[int] = field(default_factory=list[int])
    """Settled rows that each failover lost."""
    renewed: int = 0
    """Refunds that got another key after a definite no."""
    refunds: int = 0
    requests: int = 0
    limited: int = 0
    seconds: float = 0.0
    timed_out: bool = False
    left: list[str] = field(default_factory=list[str])
    """What was open when the time was over, and who held it."""
    log: str = ""
    """The ends of the workers' logs, for people."""

    def add(self, kind: str, text: str) -> None:
        """Note a finding, each kind once for a run, with how often it was found."""
        self.findings.append(Finding(kind, text))


def judge(report: Report, books: Books, workers: Sequence[Worker]) -> None:
    """Add to a report all that did not hold."""
    report.refunds = len(books.refunds)
    report.requests = len(books.requests)
    report.limited = len(books.limited)
    report.told = Counter(str(each.outcome) for each in report.items)
    _judge_books(report, books)
    _judge_items(report, books)
    _judge_workers(report, workers)
    report.takeovers = list(_takeovers(report, books))
    _judge_times(report)


def _judge_books(report: Report, books: Books) -> None:
    """Each refund is canceled once, with one key that is no other's."""
    keys = books.keys()
    for name, refund in books.refunds.items():
        if refund.status != "canceled":
            report.add("never canceled", f"{name} of {refund.account}: {keys[name]}")
        if len(refund.executed) > 1:
            report.add("canceled twice", f"{name}: {refund.executed}")
    for name, several in books.second_keys().items():
        report.add("two keys for one refund", f"{name}: {several}")
    report.renewed = sum(len(several) > 1 for several in keys.values())
    for key in books.shared_keys():
        report.add("one key for several refunds", key)
    for fault in books.faults:
        report.add("a request that no client should send", fault)


def _judge_items(report: Report, books: Books) -> None:
    """What the database says is what is true."""
    if report.timed_out:
        report.add("a run that does not end", f"after {report.seconds:.0f} s")
    names = Counter(each.refund_id for each in report.items)
    for name in books.refunds:
        if names[name] != 1:
            report.add("an item that is not there once", f"{name}: {names[name]} times")
    for item in report.items:
        refund = books.refunds.get(item.refund_id)
        if refund is None:
            report.add("an item that nobody enqueued", f"{item}")
        elif item.outcome != "canceled":
            # Nobody but the fleet cancels here.
            report.add(f"told {item.outcome}", f"{item}: {refund}")
        elif refund.canceled_by != item.key:
            report.add("told canceled with another key", f"{item}: {refund}")


def _judge_workers(report: Report, workers: Sequence[Worker]) -> None:
    for worker in workers:
        _judge_log(report, worker)
    for end in report.ends:
        if end.code and not end.at_start:
            report.add("a worker that does not end well", f"{end}")
        if end.seconds > _ENDS_WITHIN:
            report.add("a worker that ends late", f"{end}")
    for zombie in report.zombies:
        if zombie.sent:
            report.add("a woken worker sends", f"{zombie}")
        if zombie.wrote:
            report.add("a woken worker writes", f"{zombie}")


def _judge_log(report: Report, worker: Worker) -> None:
    log = worker.log.read_text(errors="replace")
    if not worker.asked_to_end:
        code = worker.process.returncode
        report.add("a worker that exits", f"{worker.name}: {code}: {log[-2000:]}")
    if "Traceback" in log:
        report.add("a traceback in a worker's log", f"{worker.name}: {log[-3000:]}")
    if PASSWORD in log or api_key("") in log:
        report.add("a secret in a worker's log", f"{worker.name}: {log}")
    report.log += f"--- {worker.name}\n{log[-1500:]}\n"


# --------------------------------------------------------------------------- takeovers


def _takeovers(report: Report, books: Books) -> Iterable[Takeover]:
    """Yield the accounts that another worker took from one that was killed or ended."""
    by_account: dict[str, list[Request]] = defaultdict(list)
    for request in books.requests:
        by_account[request.account].append(request)
    for moment in report.moments:
        if moment.kind not in ("kill", "end") or _disturbed(report, moment):
            continue
        for account, requests in by_account.items():
            found = _takeover(moment, requests, books)
            if found is not None:
                # One that ends finishes first what it has under way.
                last = books.answered.get((account, moment.worker), 0.0)
                since = moment.at if moment.kind == "kill" else max(last, moment.at)
                refused = sum(
                    each.account == account and 0 <= each.at - found.at < LEASE
                    for each in books.limited
                )
                yield Takeover(
                    account,
                    moment.kind,
                    found.at - since,
                    refused,
                    books.rates[account],
                    moment.at - _began(requests, moment),
                    stalled(report.stalls, since, found.at),
                )


def _takeover(
    moment: Moment, requests: Sequence[Request], books: Books
) -> Request | None:
    """Return the first request of another worker for an account, if one must come.

    It must if the worker was at the account right before, and left it a refund that
    nobody had asked for yet.
    """
    before = [each for each in requests if each.at <= moment.at]
    after = [each for each in requests if each.at > moment.at]
    mine = [each for each in before if each.worker == moment.worker]
    at_work = bool(mine) and mine[-1] is before[-1] and moment.at - mine[-1].at < 1.0
    if not at_work:
        return None
    asked = {each.refund_id for each in before}
    account = mine[-1].account
    left = any(
        refund.account == account and refund.refund_id not in asked
        for refund in books.refunds.values()
    )
    others = [each for each in after if each.worker != moment.worker]
    return others[0] if left and others else None


def _began(requests: Sequence[Request], moment: Moment) -> float:
    """Return when the worker of a moment began with an account, for the last time."""
    began = moment.at
    for each in reversed([each for each in requests if each.at <= moment.at]):
        if each.worker != moment.worker:
            break
        began = each.at
    return began


def _disturbed(report: Report, moment: Moment) -> bool:
    """Tell whether something else befell the fleet around a moment."""
    window = 2 * LEASE
    return any(
        other is not moment
        and other.at < moment.at + window
        and other.until > moment.at - window
        for other in report.moments
    )


def _judge_times(report: Report) -> None:
    for each in report.takeovers:
        most = _TAKEOVER if each.kind == "kill" else _HANDOVER
        if each.seconds > most:
            # Late is late. But a machine that stands still is nothing to mend here.
            stood = each.seconds - most <= each.stalled
            why = ", as the machine was" if stood else ""
            report.add(f"a late takeover after: {each.kind}{why}", f"{each}")
        if each.rate <= _SLOW and each.limited > _MOST_REFUSALS:
            report.add(f"many refusals after: {each.kind}", f"{each}")
