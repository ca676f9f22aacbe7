"""Make a client from the environment and the options, or refuse clearly."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from async_refunds.client import RefundsClient

from .output import refuse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds.journal import Run

    from .output import Output

_ADDRESS = "ASYNC_REFUNDS_BASE_URL"
BASE_URL = "https://api.stripe.com"

_LIVE_KEYS = ("sk_live_", "rk_live_", "sk_org_live_")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Bytes of one header: a proxy's long policy header must not cost an answer.
_HEADER_LIMIT = 256 * 1024
# Connections: the most that --concurrency allows.
_CONNECTIONS = 1000


def needs_address(run: Run) -> bool:
    """Tell whether a live key goes to this run only when --base-url is given again.

    The address of a run comes from its journal, and someone else may have written that
    file. A loopback address is for trials and needs no confirmation.
    """
    remote = run.base_url.startswith("https:") and run.base_url != BASE_URL
    return run.livemode and remote


class Connection:
    """How a command reaches the API, checked before anything is sent.

    Args:
        live: Whether a live key is allowed.
        base_url: Where the API is.
        account: The connected account of calls that name none.
        context: The ``Stripe-Context`` header of an organization's key.
    """

    def __init__(
        self,
        *,
        live: bool,
        base_url: str,
        account: str | None = None,
        context: str | None = None,
    ) -> None:
        self._address = base_url
        self._account = account
        self._context = context
        client = self._client(None)
        if client.livemode and not live:
            refuse(f"STRIPE_API_KEY is {_kind()}: add --live to act on real money")
        self.livemode = client.livemode
        self.kind_of_key = _kind() if client.livemode else "a test key"
        """In words: ``a test key``, ``a live key``, or one that counts as such."""
        self.base_url = client.base_url
        """Without a slash at the end."""
        self._proxy = _proxy(self.base_url)

    @asynccontextmanager
    async def client(self, output: Output) -> AsyncGenerator[RefundsClient]:
        """Open a client until the end of the block.

        Args:
            output: Where ``--verbose`` says what is connected to.
        """
        output.explain(self._describe())
        if self._proxy is None:
            async with self._client(None) as refunds:
                yield refunds
            return
        async with (
            aiohttp.ClientSession(
                proxy=self._proxy,
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                max_field_size=_HEADER_LIMIT,
                max_line_size=_HEADER_LIMIT,
            ) as session,
            self._client(session) as refunds,
        ):
            yield refunds

    def _client(self, session: aiohttp.ClientSession | None) -> RefundsClient:
        """Make a client with the key of ``STRIPE_API_KEY``, or refuse.

        The key comes from nowhere else: every process list and shell history would show
        an option.
        """
        key = os.environ.get("STRIPE_API_KEY")
        if key is None:
            refuse(
                "STRIPE_API_KEY is not set: put your secret key (sk_test_...) there, "
                "or try `async-refunds demo`, which needs none"
            )
        try:
            return RefundsClient(
                key,
                session=session,
                base_url=self._address,
                stripe_account=self._account,
                stripe_context=self._context,
                app_info="cli",
            )
        except ValueError as error:
            text = str(error).replace("api_key", "STRIPE_API_KEY")
            text = text.replace("stripe_context", "--context")
            refuse(text.replace("base_url", "--base-url"))

    @property
    def mode(self) -> str:
        """``live`` or ``test``."""
        return mode_name(self.livemode)

    def _describe(self) -> str:
        parts = [f"{self.base_url} with {self.kind_of_key}"]
        if self._account is not None:
            parts.append(f"account {self._account}")
        if self._context is not None:
            parts.append(f"context {self._context}")
        if self._proxy is None:
            parts.append("no proxy")
        else:
            shown = self._proxy.with_user(None)  # and with it the password
            parts.append(f"proxy {shown} (from the environment)")
        return ", ".join(parts)


def connect_to_run(
    journal: str, run: Run, *, live: bool, base_url: str | None
) -> Connection:
    """Return the connection to the API of a run, or refuse.

    Args:
        journal: The path of the journal, for messages.
        run: What it is about.
        live: Whether a live key is allowed.
        base_url: What the user gave for the address.
    """
    context = run.options.get("context")
    made = Connection(
        live=live,
        base_url=run.base_url,
        context=None if context is None else str(context),
    )
    if made.livemode != run.livemode:
        refuse(
            f"{journal!r} is a run in {mode_name(run.livemode)} mode, and "
            f"STRIPE_API_KEY is {made.kind_of_key}; nothing was sent"
        )
    if base_url is not None and base_url.rstrip("/") != run.base_url:
        given = os.environ.get(_ADDRESS) == base_url
        refuse(
            f"{journal!r} is a run at {run.base_url}, and "
            f"{_ADDRESS if given else '--base-url'} names another address; nothing was "
            "sent"
        )
    if base_url is None and needs_address(run):
        refuse(
            f"{journal!r} is a live run at {run.base_url}: to send a live key there, "
            f"add --base-url {run.base_url}"
        )
    return made


def _kind() -> str:
    """Return what kind of key may move real money: any that is no test key."""
    if os.environ["STRIPE_API_KEY"].startswith(_LIVE_KEYS):
        return "a live key"
    return "a key of an unknown kind (not sk_test_..., not sk_live_...), taken for live"


def mode_name(live: bool) -> str:  # noqa: FBT001 - the mode itself
    """Return ``live`` or ``test``."""
    return "live" if live else "test"


def _proxy(base_url: str) -> URL | None:
    """Return the proxy that the environment names for an address, or refuse it.

    As curl does: ``HTTPS_PROXY``, ``HTTP_PROXY`` or else ``ALL_PROXY``, in either case,
    unless ``NO_PROXY`` has the host. No proxy reaches a loopback address of this host.
    """
    url, proxies = URL(base_url), getproxies()
    host = url.host or ""
    text = proxies.get(url.scheme) or proxies.get("all")
    if not text or host in _LOOPBACK or proxy_bypass(host):
        return None
    # curl takes a proxy without a scheme for http too.
    try:
        proxy = URL(text if "://" in text else f"http://{text}")
    except ValueError:
        proxy = URL()
    if proxy.scheme not in ("http", "https") or not proxy.host:
        refuse(
            "the proxy that the environment names (HTTPS_PROXY, ALL_PROXY) must be "
            "http://host:port or https://host:port; nothing was sent"
        )
    return proxy
