"""The emulator beside code that has no event loop."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from async_refunds.emulator import Emulator


def ask(base_url: str, method: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=10)
    headers = {"Authorization": "Bearer sk_test_1"}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body)


def test_code_without_a_loop_is_served_from_a_thread() -> None:
    emulator = Emulator()
    refund_id = emulator.add_refund()
    before = threading.active_count()
    with emulator.serve_in_thread() as base_url:
        assert emulator.base_url == base_url
        status, refund = ask(base_url, "POST", f"/v1/refunds/{refund_id}/cancel")
        later = emulator.add_refund()
        emulator.faults.script("503")
        down, _ = ask(base_url, "GET", f"/v1/refunds/{later}")
        up, _ = ask(base_url, "GET", f"/v1/refunds/{later}")
    assert (status, refund["status"]) == (200, "canceled")
    assert (down, up) == (503, 200)
    assert emulator.books.cancellations == {refund_id: 1}
    assert threading.active_count() == before
    with pytest.raises(OSError, match="refused"):
        ask(base_url, "GET", "/v1/refunds")


def test_address_that_cannot_be_had_is_an_os_error_here() -> None:
    emulator = Emulator()
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match="in use"),
            emulator.serve_in_thread(port=port),
        ):
            pass
    assert threading.active_count() == before
    with emulator.serve_in_thread():
        pass


def test_error_of_the_user_goes_through() -> None:
    emulator = Emulator()
    with pytest.raises(ZeroDivisionError), emulator.serve_in_thread():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="not being served"):
        assert emulator.base_url
