"""A service in a process of its own, with its real server, that a test drives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from async_refunds.emulator import Emulator

SECRET = "whsec_OfTheService"
KEY = "sk_test_CANARYofTheService"


class Service:
    """What a test sees of it."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process

    def outcome_of(self, key: str) -> str:
        """Return the outcome of its next call with a key, which it prints."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            outcome, its_key = line.split()
            if its_key == key:
                return outcome
        raise AssertionError("the service has ended")


@contextmanager
def running(module: str, *arguments: str, stripe: Emulator) -> Generator[Service]:
    """Start ``python -m module``, in which ``FD`` is the socket that it listens on.

    A client that connects before it accepts waits in the socket, so that nobody has to
    ask whether it is up. At the end it gets a SIGTERM and has to exit by itself.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        stripe.webhook(f"{url}/webhook", secret=SECRET)
        process = start(
            [
                module,
                *(each.replace("FD", str(listener.fileno())) for each in arguments),
            ],
            stripe,
            fd=listener.fileno(),
        )
        try:
            yield Service(url, process)
        finally:
            process.send_signal(signal.SIGTERM)
            told, errors = process.communicate(timeout=30)
    assert "CANARY" not in told + errors
    assert "Traceback" not in errors, errors
    assert process.returncode in (0, -signal.SIGTERM)


def start(
    command: Sequence[str], stripe: Emulator, fd: int | None = None
) -> subprocess.Popen[str]:
    """Start ``python -m command`` with the emulator as its Stripe."""
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", *command],
        pass_fds=() if fd is None else (fd,),
        env={
            **os.environ,
            "STRIPE_API_KEY": KEY,
            "STRIPE_BASE_URL": stripe.base_url,
            "STRIPE_WEBHOOK_SECRET": SECRET,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
