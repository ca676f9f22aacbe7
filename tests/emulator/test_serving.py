from __future__ import annotations

import asyncio
import resource
import socket
import threading
from contextlib import suppress

import aiohttp
import pytest
from aiohttp.http_parser import HttpRequestParserPy

from async_refunds.emulator import Emulator
from tests.support.stripe_caller import TEST_KEY, Caller, connect, serving

HEADERS = {"Authorization": f"Bearer {TEST_KEY}"}


async def connects(base_url: str) -> bool:
    """Return whether a new connection is accepted."""
    try:
        async with aiohttp.request("GET", base_url + "/v1/refunds", headers=HEADERS):
            return True
    except aiohttp.ClientConnectorError:
        return False


async def until_open(base_url: str) -> None:
    for _ in range(1000):
        if await connects(base_url):
            break
        await asyncio.sleep(0.1)


async def test_closed_emulator_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with serving(Emulator()) as api:
        await api.get("")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert not await connects(api.base_url)


async def test_closing_does_not_wait_for_connections_that_are_kept() -> None:
    emulator = Emulator()
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:
        async with emulator.serve() as base_url:
            await Caller(session, base_url, emulator).get("")
            # One that has asked for nothing yet, as browsers make ahead.
            _, writer = await connect(base_url)
            closing = loop.time()
        assert loop.time() - closing < 1
        writer.close()


@pytest.mark.parametrize("fault", ["stall", "slow"])
async def test_closing_ends_requests_in_flight_at_once(fault: str) -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    emulator.faults.slow_seconds = 1000
    emulator.faults.script(fault)
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession() as session:
        async with emulator.serve() as base_url:
            api = Caller(session, base_url, emulator)
            in_flight = asyncio.create_task(api.cancel(refund_id, "k"))
            await asyncio.sleep(1)
            closing = loop.time()
        assert loop.time() - closing < 1
        with pytest.raises(aiohttp.ClientError):
            await in_flight
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    async with serving(emulator) as api:
        again = await api.cancel(refund_id, "k")
    assert again.status == 200
    assert again.replayed == (fault == "slow")


async def test_emulator_is_served_again_with_its_state() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with serving(emulator) as api:
        await api.cancel(refund_id)
    async with serving(emulator) as api:
        assert (await api.get(f"/{refund_id}")).json["status"] == "canceled"


async def test_emulator_is_served_once_at_a_time() -> None:
    emulator = Emulator()
    async with emulator.serve():
        with pytest.raises(RuntimeError, match="served already"):
            async with emulator.serve():
                pass
    async with emulator.serve():
        pass


async def test_port_that_is_taken_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        emulator = Emulator()
        with pytest.raises(OSError, match="in use"):
            async with emulator.serve(port=taken.getsockname()[1]):
                pass
    async with emulator.serve():
        pass


async def test_ipv6_address_has_brackets_in_its_url() -> None:
    async with Emulator().serve(host="::1") as base_url:
        assert base_url.startswith("http://[::1]:")
        assert await connects(base_url)


async def test_scripted_refusal_begins_at_once_and_ends() -> None:
    emulator = Emulator()
    emulator.faults.refuse_seconds = 30
    loop = asyncio.get_running_loop()
    async with emulator.serve() as base_url:
        assert await connects(base_url)
        emulator.faults.script("refuse", "503")
        begun = loop.time()
        with pytest.raises(ConnectionRefusedError):
            await connect(base_url)
        await asyncio.sleep(29)
        assert not await connects(base_url)
        await until_open(base_url)
        assert 30 <= loop.time() - begun < 31
    assert emulator.books.faults == {"refuse": 1, "503": 1}
    assert [entry.status for entry in emulator.requests] == [200, 503]


async def test_refusal_that_comes_first_waits_for_the_server() -> None:
    emulator = Emulator()
    emulator.faults.script("refuse")
    async with emulator.serve() as base_url:
        assert not await connects(base_url)
        await asyncio.sleep(0.1)
        assert await connects(base_url)


async def test_refusal_follows_the_answer_before_it(api: Caller) -> None:
    api.emulator.faults.script("503", "refuse", "424")
    first = await api.get("")
    with pytest.raises(aiohttp.ClientConnectorError):
        await api.get("")
    await asyncio.sleep(0.1)
    assert (await api.get("")).status == 424
    assert first.status == 503
    assert first.headers["Connection"] == "close"


async def test_refusals_in_a_row_follow_each_other() -> None:
    emulator = Emulator()
    emulator.faults.refuse_seconds = 10
    emulator.faults.script("refuse", "refuse")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with emulator.serve() as base_url:
        await until_open(base_url)
    assert 20 <= loop.time() - begun < 21
    assert emulator.books.faults == {"refuse": 2}


async def test_refusal_drops_idle_connections(api: Caller) -> None:
    await api.get("")
    api.emulator.faults.script("refuse")
    await asyncio.sleep(0.01)
    with pytest.raises(aiohttp.ClientConnectorError):
        await api.get("")


async def test_refusal_spares_the_request_in_flight(api: Caller) -> None:
    api.emulator.faults.script("slow")
    slow = asyncio.create_task(api.get(""))
    await asyncio.sleep(0.1)
    api.emulator.faults.script("refuse")
    assert not await connects(api.base_url)
    assert (await slow).status == 200


async def test_refusal_in_a_storm_resets_the_request_that_drew_it(
    api: Caller, refund_id: str
) -> None:
    api.emulator.faults.storm(1, names=["refuse"])
    with pytest.raises(aiohttp.ClientOSError):
        await api.cancel(refund_id)
    assert not await connects(api.base_url)
    api.emulator.faults.clear()
    await asyncio.sleep(0.1)
    assert (await api.cancel(refund_id)).status == 200
    assert api.emulator.books.faults == {"refuse": 1}


async def test_refusal_closes_a_connection_whose_request_has_just_arrived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    emulator = Emulator()
    async with emulator.serve() as base_url:
        pairs = [await connect(base_url) for _ in range(2)]
        await asyncio.sleep(0.1)
        emulator.faults.storm(1, names=["refuse"])
        for _, writer in pairs:
            writer.write(b"GET /v1/refunds HTTP/1.1\r\nHost: a\r\n\r\n")
        answers: list[bytes] = []
        for reader, writer in pairs:
            with suppress(ConnectionResetError):
                answers.append(await reader.read())
            writer.close()
    assert b"".join(answers) == b""
    assert emulator.books.faults == {"refuse": 2}
    assert caplog.records == []


async def test_refusals_during_a_refusal_follow_it(api: Caller) -> None:
    emulator = api.emulator
    emulator.faults.script("slow", "slow")
    first = asyncio.create_task(api.get(""))
    second = asyncio.create_task(api.get(""))
    await asyncio.sleep(0.1)
    emulator.faults.refuse_seconds = 5
    emulator.faults.script("refuse", "refuse")
    assert (await first).status == (await second).status == 200
    assert not await connects(api.base_url)
    await asyncio.sleep(12)
    assert await connects(api.base_url)
    assert emulator.books.faults == {"slow": 2, "refuse": 2}


async def test_connections_are_accepted_once_the_port_is_free_again() -> None:
    emulator = Emulator()
    async with emulator.serve() as base_url:
        port = int(base_url.rpartition(":")[2])
        emulator.faults.script("refuse")
        with socket.create_server(("127.0.0.1", port)):
            await asyncio.sleep(1)
        await asyncio.sleep(0.1)
        assert await connects(base_url)


async def test_closing_ends_a_refusal() -> None:
    emulator = Emulator()
    emulator.faults.refuse_seconds = 1000
    loop = asyncio.get_running_loop()
    begun = loop.time()
    before = asyncio.all_tasks()
    async with emulator.serve():
        emulator.faults.script("refuse")
    assert loop.time() - begun < 1
    assert asyncio.all_tasks() == before


async def test_script_may_be_written_in_another_thread() -> None:
    emulator = Emulator()
    async with emulator.serve() as base_url:
        thread = threading.Thread(target=emulator.faults.script, args=("refuse",))
        thread.start()
        thread.join()
        assert emulator.books.faults == {}
        await asyncio.sleep(0.01)
        assert not await connects(base_url)
        assert emulator.books.faults == {"refuse": 1}


@pytest.mark.parametrize("turns", range(6))
async def test_connection_accepted_as_a_refusal_begins_is_dropped(turns: int) -> None:
    emulator = Emulator()
    emulator.faults.refuse_seconds = 1
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with emulator.serve() as base_url:
        port = int(base_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(0)
            # Accepting takes a few iterations of the loop.
            for _ in range(turns):
                await asyncio.sleep(0)
            emulator.faults.script("refuse")
            with suppress(ConnectionResetError):
                assert await loop.sock_recv(client, 1) == b""
    assert loop.time() - begun < 1


async def test_connection_waits_while_no_file_handle_is_free() -> None:
    async with Emulator().serve() as base_url:
        port = int(base_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(0)
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno(), allowed[1]))
            for _ in range(5):
                await asyncio.sleep(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await loop.sock_recv(client, 12)) == b"HTTP/1.1 404"


async def test_client_that_leaves_before_the_end_of_its_body_does_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with emulator.serve() as base_url:
        _, writer = await connect(base_url)
        writer.write(
            f"POST /v1/refunds/{refund_id}/cancel HTTP/1.1\r\nHost: a\r\n"
            f"Authorization: Bearer {TEST_KEY}\r\nContent-Length: 50\r\n"
            "\r\nexp".encode()
        )
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.1)
        assert await connects(base_url)
    assert emulator.refund(refund_id)["status"] == "requires_action"
    assert caplog.records == []


async def test_body_that_breaks_its_framing_is_400(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only the parser in Python leaves the error to the reader of the body.
    monkeypatch.setattr("aiohttp.web_protocol.HttpRequestParser", HttpRequestParserPy)
    async with Emulator().serve() as base_url:
        reader, writer = await connect(base_url)
        writer.write(
            b"POST /v1/refunds/re_1/cancel HTTP/1.1\r\nHost: a\r\n"
            b"Authorization: Bearer sk_test_1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await asyncio.sleep(0.1)
        writer.write(b"zz\r\nexpand\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Request-Id: req_" in answer


async def test_client_that_waits_for_100_continue_is_served() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    async with (
        serving(emulator) as api,
        api.session.post(
            f"{api.base_url}/v1/refunds/{refund_id}/cancel",
            data={"expand[]": "charge"},
            headers=HEADERS,
            expect100=True,
        ) as response,
    ):
        assert response.status == 200
        assert (await response.json())["charge"]["object"] == "charge"


async def test_absolute_request_target_is_understood(api: Caller) -> None:
    answer = await api.raw(
        b"GET http://api.stripe.com/v1/refunds?limit=2 HTTP/1.1\r\nHost: a\r\n"
        b"Authorization: Bearer sk_test_1\r\nConnection: close\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_refund_that_waits_for_the_customer_needs_an_email() -> None:
    emulator = Emulator()
    with pytest.raises(ValueError, match="instructions_email"):
        emulator.add_refund(instructions_email=None)
    refund_id = emulator.add_refund(status="pending", instructions_email=None)
    with pytest.raises(ValueError, match="instructions_email"):
        emulator.set_status(refund_id, "requires_action")


def test_refund_id_is_taken_once() -> None:
    emulator = Emulator()
    assert emulator.add_refund(refund_id="re_1") == "re_1"
    with pytest.raises(ValueError, match="'re_1' already"):
        emulator.add_refund(refund_id="re_1")
    with pytest.raises(KeyError):
        emulator.refund("re_2")
