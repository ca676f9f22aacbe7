"""What does a web service answer through a storm, and what does the storm leave behind?

One request in ten meets a fault, and one client in ten hangs up. The services are those
of `storm_services`, each in a process of its own; what they say is held against the
books of the emulator, which is another process:

- **available**: FastAPI on uvicorn with 50 calls in flight, as it is served;
- **worn**: the same with 500 in flight under ``-X dev -W error``;
- **cancelled**: the same by aiohttp.web, where a hang-up cancels the handler.

Untrue is: an answer 200, or the record of a call that was hung up on, which says
canceled of a refund that is not; another answer than 200 and 202, or a record that is
not of an unknown outcome, for a refund that is canceled; a refund that was canceled
twice, or was asked for with two keys. Every unknown outcome is asked for again with its
key, in calm weather. Exit status 1 is: something was untrue, was said on stderr, or is
left in the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec

if not __package__:  # run by its path, whose folder is first in the search path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import child, drawing, report
from benchmarks.faults_emulator import STORM, emulator
from benchmarks.storm_clients import HUNG_UP, Answer, Browser, storm
from benchmarks.storm_services import State

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from benchmarks.faults_emulator import Stripe

QUESTION = "What does a web service answer through a storm, and what is left of it?"

FAULTS, HANG_UPS, SEED = 0.1, 0.1, 7
WARM_UP, WARM_UP_EACH = 0.05, 3
"""Of the calls, but at least so many for each in flight, are made before the process is
weighed for the first time: they fill caches and pools, and reach the same height."""
SEEDED_AT_ONCE = 5000
KEEP_ALIVE = 20.0
"""Seconds after which a server has closed the connections that were left to it."""
GROWTH = 16 * 1024 * 1024
"""Bytes that may be resident more at the end than after the warm-up. The most that was
in use at once stays with the allocator, and comes at another moment each time."""


class Case(msgspec.Struct, frozen=True):
    """A service and how it is used."""

    name: str
    server: str
    in_flight: int
    flags: tuple[str, ...] = ()
    """Of the interpreter."""


STRICT = ("-X", "dev", "-W", "error")
CASES = (
    Case("available", "fastapi", 50),
    Case("worn", "fastapi", 500, STRICT),
    Case("cancelled", "aiohttp", 500, STRICT),
)


class Flags(report.Flags, frozen=True, kw_only=True):
    """What the command line asked for."""

    calls: int
    cases: tuple[str, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in one case."""

    name: str
    calls: int
    seconds: float
    answers: dict[str, int]
    """By status; 0 is hung up."""
    share_of_200: float
    """Of the calls that were not hung up on."""
    ended_alone: dict[str, int]
    """What calls ended with whose client had hung up, by the outcome of the record."""
    untrue: list[str]
    still_unknown: int
    """Of those asked for again with their key: Stripe keeps a 500 for a day."""
    before: State
    after: State
    said: list[str]
    """On stderr."""

    @property
    def left(self) -> list[str]:
        """What is left in the process that was not there before."""
        found = [
            f"{name}: {getattr(self.before, name)}, then {getattr(self.after, name)}"
            for name in ("files", "tasks", "in_progress", "connections", "waiting")
            if getattr(self.after, name) > getattr(self.before, name)
        ]
        if self.after.resident - self.before.resident > GROWTH:
            found.append(f"{self.mib:.1f} MiB more are resident")
        return found

    @property
    def mib(self) -> float:
        """What is resident more than before."""
        return (self.after.resident - self.before.resident) / 1024 / 1024


class Report(report.Report, frozen=True, kw_only=True):
    """A whole run."""

    results: list[Result]


class Service:
    """A service in a process of its own, as its clients see it.

    Args:
        address: Host and port.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.said: list[str] = []
        """The lines that it wrote to stderr, once it has ended."""
        self.ended: dict[str, str] = {}
        """What calls ended with, by their keys, as far as it was taken."""

    async def ask(self, path: str) -> bytes:
        """Return what it answers on a connection of its own."""
        browser = Browser(self.address)
        status, body = await browser.post(path)
        await browser.close()
        if status != 200:  # noqa: PLR2004 - OK
            raise RuntimeError(f"{path} was answered {status}")
        return body

    async def take_ended(self) -> None:
        """Take what calls ended with since the last time."""
        told = await self.ask("/ended")
        self.ended |= msgspec.json.decode(told, type=dict[str, str])

    async def at_rest(self, before: State | None = None) -> State:
        """Return what it holds once no call is in progress, and with a new client.

        Args:
            before: What it held before: it has a moment to get there again.
        """
        await self.ask("/renew")
        ends = time.monotonic() + KEEP_ALIVE
        while True:
            state = msgspec.json.decode(await self.ask("/state"), type=State)
            if (
                before is None
                or (state.files <= before.files and state.tasks <= before.tasks)
                or time.monotonic() > ends
            ):
                return state
            await asyncio.sleep(0.2)


@contextlib.contextmanager
def serving(case: Case, base_url: str) -> Generator[Service, None, None]:
    """Serve a case for a ``with`` block."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        fd = str(listener.fileno())
        module = ("-m", "benchmarks.storm_services", case.server, base_url, fd)
        process = subprocess.Popen(  # noqa: S603 - ours, by this interpreter
            [sys.executable, *case.flags, *module],
            pass_fds=[listener.fileno()],
            stderr=stderr,
            cwd=child.ROOT,
        )
        service = Service(listener.getsockname()[:2])
        try:
            yield service
        finally:
            process.terminate()
            process.wait(2 * KEEP_ALIVE)
            stderr.seek(0)
            service.said = stderr.read().splitlines()


async def played(case: Case, count: int, stripe: Stripe, service: Service) -> Result:
    """Play the storm on one service, and judge what it said."""
    random = Random(SEED)  # noqa: S311 - a storm is no secret
    ids: list[str] = []
    in_flight = min(case.in_flight, count)
    first = max(WARM_UP_EACH * in_flight, int(count * WARM_UP))
    for number in range(0, first + count, SEEDED_AT_ONCE):
        ids += stripe.seed(min(SEEDED_AT_ONCE, first + count - number))
    waiting = iter(ids)
    answers: list[Answer] = []

    async def calls(number: int) -> None:
        chosen = itertools.islice(waiting, number)
        answers.extend(
            await storm(
                service.address,
                chosen,
                in_flight=in_flight,
                hang_ups=HANG_UPS,
                random=random,
            )
        )

    stripe.storm(FAULTS, STORM, SEED)
    await calls(first)
    before = await service.at_rest()
    await service.take_ended()
    began = time.monotonic()
    for number in range(0, count, SEEDED_AT_ONCE):
        report.say(f"{case.name}: {number} of {count} ...")
        await calls(min(SEEDED_AT_ONCE, count - number))
        await service.take_ended()
    seconds = time.monotonic() - began
    after = await service.at_rest(before)
    await service.take_ended()
    stripe.calm()
    untrue = judge(answers, service.ended, stripe)
    again = [each.refund_id for each in answers if each.status != 200]  # noqa: PLR2004 - OK
    asked = await storm(
        service.address, again, in_flight=10, hang_ups=0.0, random=random
    )
    untrue += judge(asked, {}, stripe)
    statuses = Counter(str(each.status) for each in answers)
    waited = len(answers) - statuses[str(HUNG_UP)]
    return Result(
        name=case.name,
        calls=len(answers),
        seconds=seconds,
        answers=dict(statuses),
        share_of_200=statuses["200"] / waited,
        ended_alone=dict(
            Counter(
                service.ended.get(key_of(each.refund_id), "nothing")
                for each in answers
                if each.status == HUNG_UP
            )
        ),
        untrue=untrue,
        still_unknown=sum(each.status == 202 for each in asked),  # noqa: PLR2004 - unknown
        before=before,
        after=after,
        said=[],
    )


def judge(
    answers: Sequence[Answer], ended: Mapping[str, str], stripe: Stripe
) -> list[str]:
    """Return what the books contradict.

    Args:
        answers: What the clients got.
        ended: What the calls ended with, by their keys, for those who hung up.
        stripe: Whose books are the truth.
    """
    executed = stripe.books().cancellations
    keys: defaultdict[str, set[str | None]] = defaultdict(set)
    for request in stripe.requests():
        if request.endpoint == "cancel":
            keys[request.path.split("/")[3]].add(request.idempotency_key)
    untrue: list[str] = []
    for answer in answers:
        done, sent = executed.get(answer.refund_id, 0), keys[answer.refund_id]
        word = word_of(answer, ended)
        if (
            done > 1
            or sent - {key_of(answer.refund_id)}
            or (word == "canceled" and done != 1)
            or (word == "not canceled" and done)
            or (word == "not begun" and sent)
        ):
            untrue.append(f"{answer.refund_id}: {word}, executed {done}, keys {sent}")
    return untrue


def word_of(answer: Answer, ended: Mapping[str, str]) -> str:
    """Return what was said of a refund: to its client, or in the record of its call."""
    if answer.status == HUNG_UP:
        outcome = ended.get(key_of(answer.refund_id), "not begun")
        if outcome in ("unknown", "interrupted", "not begun"):
            return outcome
        canceled = outcome in ("canceled", "already_canceled")
        return "canceled" if canceled else "not canceled"
    return {200: "canceled", 202: "unknown"}.get(answer.status, "not canceled")


def key_of(refund_id: str) -> str:
    """Return the idempotency key of the intent to cancel a refund."""
    return f"intent-{refund_id}"


def measure(asked: Flags) -> list[Result]:
    """Play each case that was asked for."""
    results: list[Result] = []
    for case in CASES:
        if case.name not in asked.cases:
            continue
        with emulator() as stripe, serving(case, stripe.base_url) as service:
            found = asyncio.run(played(case, asked.calls, stripe, service))
        results.append(msgspec.structs.replace(found, said=service.said))
    return results


HEAD = (
    *("case", "calls", "seconds", "200 %", "hung up", "untrue", "still unknown"),
    *("files", "tasks", "MiB more", "stderr"),
)


def row(found: Result) -> list[str]:
    """Return a line of the table."""
    return [
        found.name,
        str(found.calls),
        f"{found.seconds:.0f}",
        f"{100 * found.share_of_200:.2f}",
        str(found.answers.get(str(HUNG_UP), 0)),
        str(len(found.untrue)),
        str(found.still_unknown),
        f"{found.before.files} -> {found.after.files}",
        f"{found.before.tasks} -> {found.after.tasks}",
        f"{found.mib:.1f}",
        str(len(found.said)),
    ]


def draw(results: list[Result], path: Path) -> None:
    """Draw the share of 200 of each case."""
    shares = [100 * each.share_of_200 for each in results]
    with drawing.sheet(path, QUESTION, size=(7, 3)) as (axes,):
        drawing.bars(
            axes,
            [each.name for each in results],
            shares,
            [f"{share:.2f} %" for share in shares],
            ours="",
        )
        axes.set_xlabel("% of the calls not hung up on that were answered 200")


def main() -> int:
    """Play what was asked for and print it; return 1 if a promise was broken."""
    parser = report.parser(QUESTION, rounds=1)
    parser.add_argument(
        "--calls",
        type=report.count,
        default=3000,
        help="of each case, besides those that warm up; default: %(default)s",
    )
    report.add_parts(parser, (case.name for case in CASES), flag="--cases")
    asked = report.read(parser, Flags)
    if not asked.json:
        how = f"{asked.calls} calls, {FAULTS:.0%} faults, {HANG_UPS:.0%} hang-ups"
        print(report.heading(QUESTION, how), flush=True)
    results = measure(asked)
    if not asked.json:
        print("\n".join(report.table(HEAD, [row(each) for each in results])))
        for each in results:
            print(f"{each.name}: answers {each.answers}, hung up {each.ended_alone}")
    headlines: dict[str, float] = {}
    for each in results:
        headlines[f"% answered 200, {each.name}"] = 100 * each.share_of_200
        headlines[f"untrue, {each.name}"] = len(each.untrue)
        headlines[f"left or said, {each.name}"] = len(each.left) + len(each.said)
    told = Report(
        question=QUESTION,
        versions=report.versions(),
        rounds=asked.rounds,
        headlines=headlines,
        results=results,
    )
    report.finish(asked, told, lambda path: draw(results, path))
    broken = [
        f"{each.name}: {line}"
        for each in results
        for line in (*each.untrue, *each.left, *each.said)
    ]
    for line in broken[:50]:
        report.say(line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
