"""The README is run: its code against the emulator, its help texts by the command."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import psycopg
import pytest

from async_refunds import RefundsClient, SignatureVerificationError
from async_refunds.cli.demo import DemoReport, asking_again, report_lines
from async_refunds.cli.fleet_demo.report import FleetDemoReport, HeldAccount
from async_refunds.cli.fleet_demo.report import report_lines as fleet_report_lines
from async_refunds.emulator import Emulator
from tests.support.scripted import refund_json, refusal, scripted
from tests.support.webhooks import event, sign

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON: list[str] = [text for language, text in BLOCKS if language == "python"]
BASH: list[str] = [text for language, text in BLOCKS if language == "bash"]
SQL: list[str] = [text for language, text in BLOCKS if language == "sql"]
CONSOLE: list[str] = [text for language, text in BLOCKS if language == "console"]
REFUND = "re_1Nispe2eZvKYlo2Cd31jOCgZ"


class Page:
    """What a block defines, run against an emulator in place of Stripe."""

    def __init__(self) -> None:
        self.base_url = ""
        self.names: dict[str, Any] = {"__name__": "readme"}

    def run(self, text: str) -> None:
        if self.base_url:
            key = 'os.environ["STRIPE_API_KEY"]'
            assert key in text
            text = text.replace(key, f'{key}, base_url="{self.base_url}"')
        exec(compile(text, "README.md", "exec"), self.names)  # noqa: S102 - ours


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_readme")
    return Page()


def block(words: str) -> str:
    """Return the one Python block that contains these words."""
    (found,) = (text for text in PYTHON if words in text)
    return found


def test_every_block_is_known_to_a_test() -> None:
    assert len(PYTHON) == 8
    assert len(BASH) == 3
    assert len(CONSOLE) == 4


def test_every_block_stands_alone_and_passes_mypy(tmp_path: Path) -> None:
    for number, text in enumerate(PYTHON):
        (tmp_path / f"block_{number}.py").write_text(text)
    ran = subprocess.run(  # noqa: S603 - our own files
        [sys.executable, "-m", "mypy", "--strict", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stdout


def test_first_script(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    """The script makes its own loop, so the emulator is a process of its own."""
    command = [sys.executable, "-m", "async_refunds", "emulator", "--port", "0"]
    with subprocess.Popen(  # noqa: S603 - our own command
        [*command, "--seed", "1"], stderr=subprocess.PIPE, text=True
    ) as emulator:
        assert emulator.stderr is not None
        found = re.search(r"http://\S+?(?=;)", emulator.stderr.readline())
        example = re.search(r"re_\w+", emulator.stderr.readline())
        assert found is not None
        assert example is not None
        page.base_url = found[0]
        page.run(block("async def main").replace(REFUND, example[0]))
        emulator.terminate()
    assert re.fullmatch(r"canceled\nreq_\w+\n", capsys.readouterr().out)


async def test_list(page: Page) -> None:
    page.run(block("async def waiting"))
    emulator = Emulator()
    refund_id = emulator.add_refund()
    emulator.add_refund(status="succeeded")
    async with (
        emulator.serve() as url,
        RefundsClient("sk_test_x", base_url=url) as refunds,
    ):
        assert await page.names["waiting"](refunds) == [refund_id]


@pytest.mark.parametrize(
    ("status", "faults", "code", "body"),
    [
        ("requires_action", (), 200, {"id": REFUND, "status": "canceled"}),
        ("canceled", (), 200, {"id": REFUND, "status": "canceled"}),
        ("succeeded", (), 409, {"detail": "the refund is succeeded"}),
        (
            "requires_action",
            ["503"] * 20,
            202,
            {"status": "unknown", "request_key": "intent-1"},
        ),
        ("requires_action", ["rate_429"] * 20, 503, {"detail": "try again later"}),
    ],
)
async def test_web_service(
    status: str,
    faults: list[str],
    code: int,
    body: dict[str, str],
    page: Page,
) -> None:
    emulator = Emulator()
    emulator.add_refund(status=status, refund_id=REFUND)
    emulator.faults.script(*faults)
    async with emulator.serve() as url:
        page.base_url = url
        page.run(block("lifespan"))
        app = page.names["app"]
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as shop,
        ):
            answer = await shop.post(f"/refunds/{REFUND}/cancel?request_key=intent-1")
    assert answer.status_code == code
    assert answer.json() == body
    assert emulator.requests[0].idempotency_key == "intent-1"


async def test_web_service_does_not_call_overloaded_what_it_cannot_reach(
    page: Page,
) -> None:
    page.base_url = "http://127.0.0.1:9"
    page.run(block("lifespan"))
    app = page.names["app"]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as shop,
    ):
        answer = await shop.post(f"/refunds/{REFUND}/cancel?request_key=intent-1")
    assert answer.status_code == 503
    assert answer.json() == {"detail": "try again later"}


@pytest.mark.parametrize(
    "refused",
    [
        refusal(401),
        refusal(403),
        refusal(400, code="testmode_charges_only"),
        refusal(451),
    ],
)
async def test_web_service_says_of_any_refusal_what_it_was(
    refused: bytes, page: Page
) -> None:
    async with scripted(refused) as server:
        page.base_url = server.url
        page.run(block("lifespan"))
        app = page.names["app"]
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as shop,
        ):
            answer = await shop.post(f"/refunds/{REFUND}/cancel?request_key=intent-1")
    assert answer.status_code == 502
    assert answer.json() == {"detail": "Stripe refused it"}


async def test_web_service_refuses_a_key_of_another_refund(page: Page) -> None:
    emulator = Emulator()
    first, second = emulator.add_refund(), emulator.add_refund()
    async with emulator.serve() as url:
        page.base_url = url
        page.run(block("lifespan"))
        app = page.names["app"]
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as shop,
        ):
            good, bad = [
                await shop.post(f"/refunds/{each}/cancel?request_key=intent-1")
                for each in (first, second)
            ]
    assert good.status_code == 200
    assert bad.status_code == 409
    assert bad.json() == {"detail": "this key was used for another refund"}
    assert emulator.books.cancellations == {first: 1}


async def test_many_refunds(
    page: Page,
    stripe_emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    page.run(block("cancel_tonight"))
    ids = [*stripe_emulator.seed_refunds(5), "re_none"]
    async with RefundsClient("sk_test_x", base_url=stripe_emulator.base_url) as refunds:
        await page.names["cancel_tonight"](refunds, ids)
        await page.names["cancel_tonight"](refunds, ids)
    assert re.fullmatch(
        r"(re_none failed re_none was not canceled: .*\n){2}", capsys.readouterr().out
    )
    assert stripe_emulator.books.requests == {"cancel": 7}


def test_tonight_on_the_command_line(stripe_emulator: Emulator, tmp_path: Path) -> None:
    ids = stripe_emulator.seed_refunds(5)
    (tmp_path / "ids.csv").write_text("\n".join(["id", *ids]))
    lines = [line for line in BASH[0].splitlines() if line.startswith("async-refunds")]
    assert len(lines) == 4
    for line in lines:
        _, command, *words = shlex.split(line, comments=True)
        if command in ("cancel", "sweep"):  # the page means Stripe itself
            words += ["--base-url", stripe_emulator.base_url]
        ran = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "async_refunds", command, *words],
            cwd=tmp_path,
            env={**os.environ, "STRIPE_API_KEY": "sk_test_x"},
            check=False,
        )
        assert ran.returncode == 0, line
    assert all(stripe_emulator.books.cancellations[each] == 1 for each in ids)


def test_fleet_on_the_command_line(
    stripe_emulator: Emulator, postgres_empty_database: str, tmp_path: Path
) -> None:
    ids = stripe_emulator.seed_refunds(5)
    (tmp_path / "ids.csv").write_text("\n".join(["id", *ids]))
    (text,) = (each for each in BASH if "fleet init" in each)
    lines = text.splitlines()
    assert lines.pop(0) == "pip install '.[cli,postgres]'"
    assert lines.pop(0).startswith("export ASYNC_REFUNDS_DATABASE=postgresql://")
    environment = {
        **os.environ,
        "ASYNC_REFUNDS_DATABASE": postgres_empty_database,
        "ASYNC_REFUNDS_BASE_URL": stripe_emulator.base_url,
        "STRIPE_API_KEY": "sk_test_x",
    }
    shown: dict[str, str] = {}
    worker: subprocess.Popen[bytes] | None = None
    for line in lines:
        _, fleet, command, *words = shlex.split(line, comments=True)
        arguments = [sys.executable, "-m", "async_refunds", fleet, command, *words]
        if command == "worker":
            worker = subprocess.Popen(arguments, env=environment)  # noqa: S603 - our own command
            while len(stripe_emulator.books.cancellations) < len(ids):
                assert worker.poll() is None
                time.sleep(0)
            worker.terminate()
            assert worker.wait(20) == 0
            continue
        ran = subprocess.run(  # noqa: S603 - our own command
            arguments, cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert ran.returncode == 0, (line, ran.stderr)
        shown[command] = ran.stdout.decode()
    assert worker is not None
    told = [json.loads(each) for each in shown["report"].splitlines()]
    assert [each["outcome"] for each in told] == ["canceled"] * len(ids)
    assert all(stripe_emulator.books.cancellations[each] == 1 for each in ids)


def test_enqueue_from_sql(postgres_database: str) -> None:
    with psycopg.connect(postgres_database) as connection:
        statements = SQL[0].replace("...", "1")
        connection.execute(statements.encode())
        connection.execute(statements.encode())
        found = connection.execute(
            """SELECT name, scope, account, refund_id
                FROM async_refunds.items JOIN async_refunds.runs USING (run_id)"""
        ).fetchall()
    scope = "default https://api.stripe.com live"
    assert found == [("tonight", scope, "acct_1", "re_1")]


def test_webhook_closes_what_is_unknown(page: Page) -> None:
    page.run(block("on_webhook"))
    with pytest.raises(SignatureVerificationError):
        page.names["on_webhook"](b"{}", "t=1,v1=00")
    refund_id = json.loads(refund_json())["id"]
    ours = (None, refund_id, "order-7")
    unknown = page.names["unknown"]
    unknown.add(ours)
    waiting = {"object": json.loads(refund_json(status="requires_action"))}
    for body in (event(account="acct_2"), event(data=waiting), event()):
        assert unknown == {ours}
        page.names["on_webhook"](body, sign(body, "whsec_...", at=int(time.time())))
    assert not unknown


async def test_metrics_of_prometheus(
    page: Page, stripe_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = prometheus_client.CollectorRegistry()  # in place of the process's
    for name in ("Counter", "Histogram"):
        kind = functools.partial(getattr(prometheus_client, name), registry=ours)
        monkeypatch.setattr(prometheus_client, name, kind)
    page.run(block("prometheus_client"))
    refund_id = stripe_emulator.add_refund()
    stripe_emulator.faults.script("503", "ok")
    base_url = stripe_emulator.base_url
    here = functools.partial(RefundsClient, base_url=base_url)  # the page means Stripe
    page.names["RefundsClient"] = here
    async with page.names["measured_client"]("sk_test_x") as refunds:
        await refunds.cancel(refund_id)
    shown = prometheus_client.generate_latest(ours).decode()
    assert 'cancel_calls_total{method="cancel",outcome="canceled"} 1.0' in shown
    assert 'cancel_retries_total{reason="503"} 1.0' in shown


async def test_test_of_your_own(page: Page, stripe_emulator: Emulator) -> None:
    page.run(block("test_lost_answer"))
    await page.names["test_lost_answer"](stripe_emulator)
    assert stripe_emulator.requests[-1].replayed


def test_test_with_the_official_client(page: Page, stripe_emulator: Emulator) -> None:
    page.run(block("test_customer_never_answers"))
    page.names["test_customer_never_answers"](stripe_emulator)
    assert len(stripe_emulator.requests) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_emulator_is_set_over_http(stripe_emulator: Emulator) -> None:
    """A server of the command line answers the same."""
    address = stripe_emulator.base_url.removeprefix("http://")
    lines = BASH[2].replace("localhost:12111", address).strip().splitlines()
    answers = [
        json.loads(subprocess.check_output(shlex.split(line)))  # noqa: S603 - ours
        for line in lines
    ]
    added, told, down, canceled, clock, books = answers
    assert (added["id"], added["currency"]) == ("re_1", "thb")
    assert told["script"] == ["503", "ok"]
    assert down["error"]["type"] == "api_error"
    assert canceled["status"] == "canceled"
    assert clock["now"] > 0
    assert books["cancellations"] == {"re_1": 1}
    assert books["faults"] == {"503": 1}


def test_help_texts_are_the_commands_own() -> None:
    (helps,) = (text for text in CONSOLE if "--help" in text)
    shown = re.split(r"^\$ async-refunds (.*)\n", helps, flags=re.MULTILINE)[1:]
    assert len(shown) == 4
    for arguments, text in zip(shown[::2], shown[1::2], strict=True):
        ran = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "async_refunds", *arguments.split()],
            capture_output=True,
            check=True,
            text=True,
            env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        )
        assert (
            text.strip()
            == ran.stdout.replace("python -m async_refunds", "async-refunds").strip()
        )


def test_demo_prints_what_the_page_shows() -> None:
    (shown,) = (text for text in CONSOLE if "async-refunds demo\n" in text)
    report = DemoReport(
        refunds=200,
        canceled=200,
        canceled_exactly_once=200,
        requests=316,
        retries=106,
        settled_by_a_read=9,
        asked_again=1,
        replays=22,
        faults={"424": 72},
        seconds=3.03,
    )
    told = [re.sub(r" \(.*", "", line) for line in report_lines(report)]
    told.insert(0, asking_again(report.asked_again))
    assert told == [re.sub(r" \(.*", "", line) for line in shown.splitlines()[1:]]


def test_demo_with_workers_prints_what_the_page_shows() -> None:
    (shown,) = (text for text in CONSOLE if "async-refunds demo --workers 3\n" in text)
    held = [
        HeldAccount(
            stripe_account=f"acct_1demo00{account}",
            open=left,
            taken_over_by=worker,
            seconds=seconds,
        )
        for account, left, worker, seconds in (
            *(("01", 49, "w3", 2.61), ("15", 85, "w2", 3.3)),
            *(("20", 86, "w3", 2.61),) * 7,
        )
    ]
    report = FleetDemoReport(
        refunds=2000,
        accounts=20,
        workers=3,
        canceled=2000,
        outcomes={"canceled": 2000},
        canceled_exactly_once=2000,
        canceled_twice=0,
        never_canceled=0,
        refunds_with_two_keys=1,
        requests=2815,
        retries=679,
        replays=274,
        retried=4,
        rate_limited=87,
        faults={"rate_429": 52, "lock_429": 35, "424": 732},
        killed="w1",
        held=held,
        seconds=22.39,
    )
    told = [re.sub(r" \(.*", "", line) for line in fleet_report_lines(report)]
    told[4:11] = ["    ..."]  # the accounts are alike
    assert told == [re.sub(r" \(.*", "", line) for line in shown.splitlines()[1:]]


def test_what_the_page_links_to_is_there_and_its_pictures_are_small() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
    pictures = [ROOT / link for link in links if "/pictures/" in link]
    assert set(pictures) == set((ROOT / ".github" / "pictures").iterdir())
    assert sum(each.stat().st_size for each in pictures) < 300_000
    # A picture of a terminal loads nothing either.
    (drawn,) = (each.read_text() for each in pictures if each.suffix == ".svg")
    assert not re.findall(r"url\((?!#)[^)]*\)|href|@import", drawn)
