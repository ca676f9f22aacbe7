from __future__ import annotations

import asyncio
import re
import signal
import socket

import aiohttp
import pytest
from aiohttp import web

from tests.support.terminal import run, run_each, started

pytestmark = pytest.mark.asyncio(loop_factories=["real"])

SECRET = r"whsec_[0-9A-Za-z]{24,}"  # whole: a receiver checks signatures with it
HINT = r"STRIPE_API_KEY=sk_test_123 async-refunds cancel (\S+) --base-url (\S+)"


async def test_emulator_serves_what_its_hint_says_until_interrupted() -> None:
    async with started(
        *("emulator", "--port", "0", "--seed", "3"), key=None
    ) as emulator:
        base_url = (await emulator.says(r"^3 refunds in requires_action at (\S+);"))[1]
        hint = await emulator.says(HINT)
        assert hint[2] == base_url
        canceled = await run("cancel", hint[1], "--base-url", base_url)
        listed = await run(
            *("list", "--status", "requires_action", "--base-url", base_url)
        )
        emulator.process.send_signal(signal.SIGINT)
        ended = await emulator.ended()
    assert canceled.code == 0
    assert len(listed.lines) == 2
    assert (ended.code, ended.out) == (0, "")


async def test_emulator_ends_on_a_termination_too() -> None:
    async with started("emulator", "--port", "0", "--seed", "0") as emulator:
        hint = await emulator.says(HINT)
        emulator.process.send_signal(signal.SIGTERM)
        ended = await emulator.ended()
    assert hint[1] == "re_..."
    assert (ended.code, ended.out) == (0, "")


@pytest.mark.parametrize(
    ("host", "listens", "reached"),
    [
        ("0.0.0.0", "http://0.0.0.0:", "http://127.0.0.1:"),  # noqa: S104 - the point
        ("::", "http://[::]:", "http://[::1]:"),
    ],
)
async def test_emulator_for_others_is_reached_from_here_over_the_loopback(
    host: str, listens: str, reached: str
) -> None:
    async with started("emulator", "--port", "0", "--host", host) as emulator:
        assert (await emulator.says(r"at (\S+);"))[1].startswith(listens)
        assert (await emulator.says(HINT))[2].startswith(reached)
        emulator.process.send_signal(signal.SIGTERM)
        assert (await emulator.ended()).code == 0


async def test_emulator_has_weather_and_limits_when_asked() -> None:
    async with started(
        *("emulator", "--port", "0", "--seed", "1", "--limits"),
        *("--faults", "script:ok,503"),
    ) as emulator:
        hint = await emulator.says(HINT)
        command = ("cancel", hint[1], "--base-url", hint[2])
        canceled = await run(*command)
        again = await run(*command)
    assert canceled.lines[0]["attempts"] == 1
    # A 503, the refusal, and the read that names the state.
    assert again.lines[0]["attempts"] == 3


async def test_each_request_is_a_line_unless_it_is_quiet() -> None:
    lines: list[list[str]] = []
    for more in ((), ("--quiet",)):
        async with started("emulator", "--port", "0", "--seed", "1", *more) as emulator:
            hint = await emulator.says(HINT)
            await run("cancel", hint[1], "--base-url", hint[2])
            emulator.process.send_signal(signal.SIGTERM)
            ended = await emulator.ended()
        lines.append(ended.err.splitlines()[3:])
    ((line,), quiet) = lines
    assert re.match(r"POST /v1/refunds/re_\w+/cancel 200 ", line)
    assert " ms key=" in line
    assert quiet == []


async def test_events_are_posted_to_a_webhook() -> None:
    received: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        event = await request.json()
        received.put_nowait((event["type"], request.headers.get("Stripe-Signature")))
        return web.Response()

    shop = web.Application()
    shop.router.add_post("/events", receive)
    runner = web.AppRunner(shop)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    async with started(
        *("emulator", "--port", "0", "--seed", "1", "--webhook", url)
    ) as emulator:
        await emulator.says(f"posts events to {url}, signed with {SECRET}$")
        hint = await emulator.says(HINT)
        await run("cancel", hint[1], "--base-url", hint[2])
        kind = signature = None
        while kind != "refund.updated":
            kind, signature = await received.get()
        emulator.process.send_signal(signal.SIGTERM)
        assert (await emulator.ended()).code == 0
    await runner.cleanup()
    assert signature is not None
    wrong = await run("emulator", "--webhook", "ftp://x", "--port", "0")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("async-refunds: --webhook: ")


async def test_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await run("emulator", "--port", str(port), "--seed", "1")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(
        f"async-refunds: cannot listen on 127.0.0.1:{port}: Address already in use"
    )
    assert len(ended.err.splitlines()) == 1


async def test_host_that_is_none_is_named_in_the_resolver_s_words() -> None:
    ended = await run("emulator", "--host", "no.such.host.invalid", "--port", "0")
    assert (ended.code, ended.out) == (2, "")
    assert "cannot listen on no.such.host.invalid:0: " in ended.err
    assert "Unknown error" not in ended.err


async def test_weather_that_there_is_not_is_named() -> None:
    wrong = {
        "script:ok,nosuch": "--faults: no fault 'nosuch'; there are: refuse, ",
        "storm:2": "--faults: '2' is no probability",
        "503": "--faults: '503' has no probability: write 503=0.1",
    }
    refused = await run_each(*(("emulator", "--faults", words) for words in wrong))
    for named, ended in zip(wrong.values(), refused, strict=True):
        assert ended.err.startswith(f"async-refunds: {named}")
        assert (ended.code, ended.out) == (2, "")


async def test_emulator_takes_its_time_and_locks_charges_when_asked() -> None:
    async with started(
        *("emulator", "--port", "0", "--seed", "2"),
        *("--per-charge", "2", "--latency", "0.001"),
    ) as emulator:
        hint = await emulator.says(HINT)
        listed = await run("list", "--base-url", hint[2])
        async with aiohttp.request("GET", f"{hint[2]}/_emulator/timing") as response:
            timing = await response.json()
    assert len({refund["charge"] for refund in listed.lines}) == 1
    assert timing["latency"] == 0.001
