"""Plays a batch with a journal through kills, damages and second processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_refunds import JournalError
from async_refunds.journal import JournalReader

from .damage import Files
from .script import Act, Damage, Kill, Script
from .server import Received, Server
from .stripe import Books, refund_id
from .world import Report, given_by, options_of

if TYPE_CHECKING:
    from .fork_server import Child, ForkServer
    from .journal_child import Job

# Real seconds. A run takes a tenth of one; a machine may be busy.
_HANGING = 30.0
# Real seconds for each second of a script: what is slow there still takes no time here.
_SCALE = 0.01
# Seconds. Stripe has forgotten a key then.
_AGE = 25 * 3600.0
_IN_MEMORY = "/dev/shm"  # noqa: S108 - `mkdtemp` makes a private folder there


@dataclass
class Run:
    """One run of the batch, and what its processes said."""

    number: int
    children: list[Child] = field(default_factory=list["Child"])
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    killed: bool = False
    hung: bool = False

    @property
    def results(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "refund" in line]

    @property
    def ended_well(self) -> bool:
        """Whether one of its processes came to the end of the batch."""
        return any("end" in line for line in self.lines)


class JournalCase:
    """A script of one journal."""

    def __init__(self, script: Script, forks: ForkServer, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        self.script, self.forks = script, forks
        self.options = options_of(script)
        self.report = Report()
        self.files = Files(folder)
        self.books = Books(faithful=True, clock=loop.time)
        acts = [part for part in script if isinstance(part, Act)]
        self.server = Server(
            self.books, acts, scale=_SCALE, on_request=self._on_request
        )
        self.given: list[str] = []
        for given in given_by(script):
            self.books.give(given.refund, given.status, given.spelling)
            self.given.append(refund_id(given.refund))
        self.runs: list[Run] = []
        self._began_at = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def play(self) -> Report:
        """Play all runs, and judge them."""
        await self.server.listen()
        try:
            for number in range(int(self.options.get("runs", 2))):
                await self._run(number)
            await asyncio.sleep(0)
        finally:
            for run in self.runs:
                for child in run.children:
                    child.kill()
            self.server.close()
        self._judge()
        self.report.lines = self._lines()
        self.report.damages = frozenset(self.files.done)
        self.report.done = Counter(self.files.done)
        self.report.done["kill"] = sum(run.killed for run in self.runs)
        self.report.done["nobody could tell"] = int(self.files.forgotten)
        self.report.calls = self.report.requests = self.server.requests
        return self.report

    # --------------------------------------------------------------------------- a run

    async def _run(self, number: int) -> None:
        self.files.note_what_is_left()
        for part in self._of(number, Damage):
            if part.kind not in ("alias", "pair") and not self._is_live(part):
                self.files.damage(part, live=False)
        run = Run(number)
        self.runs.append(run)
        self._began_at = self.server.requests
        for part in self._of(number, Damage):
            if part.kind == "alias":
                self.files.path = self.files.alias(part.file)
        await self._start(run, self.files.path)
        ended = [asyncio.create_task(self._ended(run, 0))]
        for part in self._of(number, Damage):
            if part.kind == "pair":
                await self._start(run, self.files.alias(part.file))
                place = len(run.children) - 1
                ended.append(asyncio.create_task(self._ended(run, place)))
        await asyncio.gather(*ended)
        for place in range(len(run.children)):
            told = self._told(run, place)
            if told.exists():
                text = told.read_text()
                run.lines += [json.loads(line) for line in text.splitlines()]
        self.files.keep()
        if number == 0 and "day_old" in self.options:
            self.books.forget()

    def _of(self, number: int, kind: type[Damage]) -> list[Damage]:
        parts = [part for part in self.script if isinstance(part, kind)]
        return [part for part in parts if part.run == number]

    @staticmethod
    def _is_live(damage: Damage) -> bool:
        return damage.request > 0

    def _told(self, run: Run, place: int) -> Path:
        return self.files.folder / f"told-{run.number}-{place}"

    async def _start(self, run: Run, path: Path) -> None:
        last = run.number == int(self.options.get("runs", 2)) - 1
        resume = run.number > 0 and "resume_empty" in self.options
        job: Job = {
            "url": self.server.url,
            "journal": str(path),
            "told": str(self._told(run, len(run.children))),
            "refunds": [] if resume and last else self.given,
            "concurrency": int(self.options.get("concurrency", 4)),
            "twice": "twice" in self.options and not (resume and last),
            "hook": 0 if last else int(self.options.get("hook", 0)),
            "file_size": 0 if last else int(self.options.get("file_size", 0)),
            "age": _AGE if "day_old" in self.options and run.number == 0 else 0.0,
        }
        run.children.append(await self.forks.start(job))

    async def _ended(self, run: Run, place: int) -> None:
        child = run.children[place]
        try:
            async with asyncio.timeout(_HANGING):
                await child.ended.wait()
        except TimeoutError:
            run.hung = True
            child.kill()
            await child.ended.wait()

    def _on_request(self, number: int, phase: str, received: Received) -> None:
        """Kill, or damage, when the script says so."""
        del received
        if not self.runs:
            return
        run, count = self.runs[-1], number - self._began_at
        loop = asyncio.get_running_loop()
        for part in self.script:
            if not isinstance(part, (Kill, Damage)):
                continue
            if (part.run, part.request) != (run.number, count):
                continue
            if isinstance(part, Damage):
                if phase == "executed":
                    with suppress(OSError):
                        self.files.damage(part, live=True)
            elif part.phase == phase and part.delay:
                loop.call_later(part.delay, self._kill, run, part.signal)
            elif part.phase == phase:
                self._kill(run, part.signal)

    @staticmethod
    def _kill(run: Run, name: str) -> None:
        for child in run.children:
            if not child.ended.is_set():
                run.killed = True
                child.kill(name)

    # ----------------------------------------------------------------------- the judge

    def _judge(self) -> None:
        self._judge_keys()
        for run in self.runs:
            self._judge_end(run)
            for line in run.results:
                self.report.told[line["outcome"]] += 1
                self._judge_told(line["refund"], line["outcome"], line["key"], "told")
                if line["leaks"]:
                    self.report.add("secret in a result's error", str(line))
        self._judge_count()

    def _judge_keys(self) -> None:
        for post in self.books.posts:
            if post.refund_id not in self.given:
                self.report.add("asked for an id that nobody gave", post.refund_id)
        if self.files.forgotten or "day_old" in self.options:
            return
        for name in self.given:
            posts = [post for post in self.books.posts if post.refund_id == name]
            for key in (keys := self.books.keys(name))[:-1]:
                if not all(post.refused for post in posts if post.key == key):
                    self.report.add("two keys for one refund", f"{name}: {keys}")

    def _judge_end(self, run: Run) -> None:
        if run.hung:
            self.report.add("a run that never ends", f"run {run.number}")
        for line in run.lines:
            what = line.get("error", "").partition("(")[0]
            raised = run.killed or "hook" in self.options
            passes = what in ("KeyboardInterrupt", "SystemExit")
            if "foreign" in line and not (raised and passes):
                self.report.add(f"foreign {what} ends a run", line["foreign"][-1500:])
            if "error" in line and line.get("leaks"):
                self.report.add("secret in a JournalError", str(line))
        for child in run.children:
            silent = not any("end" in line or "error" in line for line in run.lines)
            # SQLite maps the -shm: who cuts it off ends its process, as a kill does.
            cut_off = os.waitstatus_to_exitcode(child.status) == -signal.SIGBUS
            if silent and not run.killed and not run.hung and not cut_off:
                self.report.add("a process that died without a word", f"{child.status}")

    def _judge_told(
        self, name: str, outcome: str | None, key: str | None, how: str
    ) -> None:
        entry = self.books.entries.get(name)
        if entry is None:
            self.report.add(f"{how} of an id that nobody gave", name)
            return
        mine = [each for each in entry.canceled_by if each != "somebody else"]
        if outcome == "canceled" and entry.status != "canceled":
            self.report.add(f"{how} canceled, and is not", name)
        if outcome == "unknown" and not key:
            self.report.add(f"{how} unknown without a key", name)
        # What failed is asked again by a later run, with another key.
        if (
            (outcome == "failed" and key in mine)
            or (outcome == "not_cancelable" and mine)
            or (outcome == "already_canceled" and mine and not self.files.forgotten)
        ):
            self.report.add(
                f"{how} {outcome}, and the batch canceled it", f"{name}: {mine}"
            )

    def _judge_count(self) -> None:
        last = self.runs[-1] if self.runs else None
        if last is None or not last.ended_well:
            return
        known: dict[str, str | None] = {}
        try:
            for record in JournalReader(self.files.path).records():
                known[record.refund_id] = record.outcome
                self._judge_told(
                    record.refund_id, record.outcome, record.idempotency_key, "kept"
                )
        except JournalError as error:
            # What was settled before is not read again by a run, but by the reader.
            if not any("(main)" in done for done in self.files.done):
                kind = "a journal that ended well and cannot be read"
                self.report.add(kind, str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.report.add(
                f"foreign {type(error).__name__} of the reader", repr(error)
            )
            return
        told = {line["refund"] for run in self.runs for line in run.results}
        asked = {post.refund_id for post in self.books.posts}
        resumed = "resume_empty" in self.options
        wanted = asked if resumed and not self.files.forgotten else set(self.given)
        if resumed and self.files.forgotten:
            wanted.clear()
        lost = {name for name in wanted if known.get(name) is None and name not in told}
        if lost:
            self.report.add("an id that no run accounts for", f"{sorted(lost)}")
        twice = Counter(line["refund"] for line in last.results)
        alone = len(last.children) == 1 and "twice" not in self.options
        if alone and any(times > 1 for times in twice.values()):
            self.report.add("an id told twice in one run", f"{twice.most_common(1)}")

    def _lines(self) -> list[str]:
        lines = [f"files: {self.files.done}, forgotten: {self.files.forgotten}"]
        for run in self.runs:
            ends = [os.waitstatus_to_exitcode(child.status) for child in run.children]
            lines.append(f"run {run.number}: exit {ends}, {len(run.results)} told")
            lines += [f"   {line}"[:400] for line in run.lines]
        return lines + self.server.lines


async def play(script: Script, forks: ForkServer) -> Report:
    """Play a script of one journal in a folder of its own."""
    # A kill loses nothing that was written, so a disk to wait for would add nothing.
    memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="attack-", dir=memory))
    try:
        return await JournalCase(script, forks, folder).play()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
