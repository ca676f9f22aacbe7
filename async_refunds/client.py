"""The client: cancel a refund, read one, list them all."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Self

from . import telemetry
from .call import Call, CallContext, InProgress
from .credentials import ProvidedKey, credentials_digest
from .errors import APIError
from .protocol import requests, validation
from .protocol.error_mapping import error_for
from .protocol.redaction import SecretStr
from .retry import RetryBudget, RetryPolicy
from .transport.session import Session
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import FrameType, TracebackType

    import aiohttp

    from .call import CallObserver, RetryGate
    from .credentials import KeyProvider
    from .models import Attempt, CallRecord, Refund
    from .protocol.decoding import RefundPage
    from .protocol.outcome import SentBefore
    from .protocol.requests import CreatedRange, Request
    from .telemetry import CallStartHook

STRIPE_VERSION = "2026-10-28.endive"
"""The API version these models were written for (Stripe's own client 16.1)."""

_DEFAULT_POLICY = RetryPolicy()
_OWN_BUDGET = RetryBudget()
"""Stands for a budget of the client's own; never used itself."""


class RefundsClient:
    """Cancels, reads and lists refunds over one pool of connections.

    Use it in one asyncio event loop, and close it there (``async with`` does)::

        async with RefundsClient(api_key) as refunds:
            refund = await refunds.cancel("re_1Nispe2eZvKYlo2Cd31jOCgZ")

    Args:
        api_key: A secret (``sk_``) or restricted (``rk_``) key, or a callable that
            returns one or an awaitable of one. The callable is called at the first
            call, and once more when Stripe answers 401, so that a key can be rotated.
        session: Your own aiohttp session. Its connector, proxy, CA and tracing are
            used, and the client never closes it; its middlewares are not run. Without
            one, the client makes its own at the first call and closes it.
        base_url: An origin. Plain http goes to a loopback address only, or anywhere
            with a test key.
        stripe_version: The API version to request.
        stripe_account: The connected account to act on, unless a call names one.
        stripe_context: The ``Stripe-Context`` header, for keys of an organization.
        retry: How often and how long to try.
        retry_budget: Limits the retries of all calls together. Share one between
            clients, or give ``None`` for no limit.
        attempt_timeout: Seconds for one attempt, of which the wait for a connection
            may take half.
        on_attempt: Called with each `Attempt` when it ends, but not with one whose call
            is cancelled meanwhile: that is in the `CallRecord` only.
        on_call: Called with a `CallRecord` when a call ends, also one that was
            cancelled.
        on_call_start: Called with a `CallStart` when a call begins, in its task. May
            return a function, which is called with the `CallRecord` when it ends; see
            ``async_refunds.integrations.opentelemetry``. What a hook raises is logged
            and never harms the call.
        app_info: Your application, as ``my-shop/1.4``, for ``User-Agent``.

    Raises:
        TypeError, ValueError: An argument is not valid; nothing is sent.
    """

    # Also a client whose construction failed has a repr, in the traceback of that.
    _made = False
    _open = False

    def __init__(
        self,
        api_key: str | KeyProvider,
        *,
        session: aiohttp.ClientSession | None = None,
        base_url: str = "https://api.stripe.com",
        stripe_version: str = STRIPE_VERSION,
        stripe_account: str | None = None,
        stripe_context: str | None = None,
        retry: RetryPolicy = _DEFAULT_POLICY,
        retry_budget: RetryBudget | None = _OWN_BUDGET,
        attempt_timeout: float = 30.0,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[CallRecord], object] | None = None,
        on_call_start: CallStartHook | None = None,
        app_info: str | None = None,
    ) -> None:
        # First of all, so that no traceback from here on can show the key, or the repr
        # of a callable that holds it.
        provided = ProvidedKey(api_key) if callable(api_key) else None
        secret: Any = SecretStr(api_key) if isinstance(api_key, str) else type(api_key)
        del api_key
        key = None if provided is not None else SecretStr(validation.api_key(secret))
        if not isinstance(retry, RetryPolicy):
            raise TypeError("retry must be a RetryPolicy")
        if retry_budget is not None and not isinstance(retry_budget, RetryBudget):
            raise TypeError("retry_budget must be a RetryBudget or None")
        _check_hook("on_attempt", on_attempt)
        _check_hook("on_call", on_call)
        _check_hook("on_call_start", on_call_start)
        self._stripe_account = (
            None if stripe_account is None else validation.account_id(stripe_account)
        )
        origin = validation.base_url(
            base_url, plain_http=key is not None and not validation.is_live(key)
        )
        attempt_timeout = validation.seconds("attempt_timeout", attempt_timeout)
        transport = Session(
            origin=origin,
            headers=_headers(stripe_version, stripe_context, app_info),
            api_key=key,
            attempt_timeout=attempt_timeout,
            borrowed=session,
        )
        if provided is not None:
            provided.connect(transport)
        self._provided = provided
        self._context = CallContext(
            session=transport,
            policy=retry,
            budget=RetryBudget() if retry_budget is _OWN_BUDGET else retry_budget,
            attempt_timeout=attempt_timeout,
            on_attempt=on_attempt,
            on_call=on_call,
            on_call_start=on_call_start,
            credentials=self._provided,
            in_progress=InProgress(),
        )
        self._credentials_digest = (
            "" if key is None else credentials_digest(key, stripe_context)
        )
        self._key_is_live = key is None or validation.is_live(key)
        self._base_url = origin
        self._made = True
        self._open = session is None
        self._made_at = _caller(self) if self._open else ""
        telemetry.set_up_logging()

    @property
    def base_url(self) -> str:
        """Where the API is: ``scheme://host[:port]``."""
        return self._base_url

    @property
    def livemode(self) -> bool:
        """Whether the key may move real money.

        Any key may that is not plainly a test key, or that is not known yet.
        """
        if self._provided is not None:
            return self._provided.livemode
        return self._key_is_live

    @property
    def stripe_account(self) -> str | None:
        """The connected account that a call acts on if it names none."""
        return self._stripe_account

    @property
    def retry_budget(self) -> RetryBudget | None:
        """What limits the retries of all calls; ``None`` if nothing does."""
        return self._context.budget

    @property
    def calls_in_progress(self) -> int:
        """Calls that have begun and not ended, also those that sleep or wait."""
        return self._context.in_progress.calls

    @property
    def connections_in_use(self) -> int:
        """Requests that have, or are about to get, a connection."""
        return self._context.session.connections_in_use

    @property
    def waiting_for_connection(self) -> int:
        """Requests that wait for a connection, because the own pool has none free."""
        return self._context.session.waiting_for_connection

    async def cancel(
        self,
        refund_id: str,
        *,
        expand: Sequence[str] = (),
        idempotency_key: str | None = None,
        stripe_account: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - one deadline is the promise
        already_canceled_ok: bool = False,
    ) -> Refund:
        """Cancel a refund in ``requires_action``, and return it canceled.

        The money goes back to the balance; the customer is not repaid by it. If this
        returns, the refund is canceled. If it raises `OutcomeUnknownError`, the refund
        may be canceled. If it raises anything else, this call canceled nothing, except
        for `asyncio.CancelledError`: a task that is cancelled during the call, also by
        `asyncio.timeout` or `wait_for` around it, leaves the refund perhaps canceled. A
        caller whose task may be cancelled should give the key.

        Args:
            refund_id: ``re_...`` or ``pyr_...``.
            expand: Fields to send as objects, such as ``["charge"]``.
            idempotency_key: Up to 255 visible ASCII characters that stand for this
                intent; Stripe keeps its answer for 24 hours. A random one if not given.
            stripe_account: The connected account, in place of the client's.
            timeout: Seconds for the whole call, in place of the policy's deadline.
            already_canceled_ok: Return a refund that was canceled before, rather than
                raise.

        Raises:
            OutcomeUnknownError: It may be canceled; call again with the error's key.
            RefundNotCancelableError: Its state forbids it; the error has the refund.
            RefundNotFoundError: No such refund for this key, account and mode.
            AuthenticationError, PermissionDeniedError: The key may not do it.
            IdempotencyError: The key was used for another request.
            RateLimitError: Stripe's limit held through all retries.
            APIConnectionError: No connection; nothing that was sent canceled it.
            APIStatusError: Any other refusal.
            TypeError, ValueError: A bad argument; nothing was sent.
            RuntimeError: The client or its session is closed, or of another event loop.
        """
        request = requests.cancel_request(
            refund_id,
            idempotency_key=(
                os.urandom(16).hex() if idempotency_key is None else idempotency_key
            ),
            expand=expand,
            stripe_account=self._account(stripe_account),
        )
        conclusion = await begin_call(self, timeout).cancel(request)
        if conclusion.error is None or (
            already_canceled_ok and conclusion.outcome == "already_canceled"
        ):
            assert conclusion.refund is not None  # noqa: S101 - see `Conclusion`
            return conclusion.refund
        raise conclusion.error

    async def retrieve(
        self,
        refund_id: str,
        *,
        expand: Sequence[str] = (),
        stripe_account: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - one deadline is the promise
    ) -> Refund:
        """Return a refund as it is now.

        Args:
            refund_id: ``re_...`` or ``pyr_...``.
            expand: Fields to send as objects, such as ``["charge"]``.
            stripe_account: The connected account, in place of the client's.
            timeout: Seconds for the whole call, in place of the policy's deadline.

        Raises:
            RefundNotFoundError: No such refund for this key, account and mode.
            APIConnectionError: No answer came.
            APIStatusError: Stripe, or a server in front of it, refused or failed.
            TypeError, ValueError: A bad argument; nothing was sent.
            RuntimeError: The client or its session is closed, or of another event loop.
        """
        request = requests.retrieve_request(
            refund_id, expand=expand, stripe_account=self._account(stripe_account)
        )
        call = begin_call(self, timeout)
        last = await call.read(request)
        if last.value is None:
            raise error_for(request, last, call.attempts, call.stopped)
        call.attach_last_response(last.value, last.reply, None)
        return last.value

    def list(
        self,
        *,
        charge: str | None = None,
        payment_intent: str | None = None,
        created: CreatedRange | int | None = None,
        starting_after: str | None = None,
        limit: int = 100,
        expand: Sequence[str] = (),
        stripe_account: str | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Refund]:
        """Iterate over all refunds, newest first, with one request per page.

        Stripe has no filter by status: look at ``refund.status``.

        Args:
            charge: Only those of this charge.
            payment_intent: Only those of this payment intent.
            created: Only those created then: Unix seconds, or bounds such as
                ``{"gte": 1767225600, "lt": 1769904000}``.
            starting_after: The id of the refund after which to begin.
            limit: Refunds per page, 1 to 100; not a limit of the whole.
            expand: Fields to send as objects, such as ``["data.charge"]``.
            stripe_account: The connected account, in place of the client's.
            timeout: Seconds for each page, in place of the policy's deadline.

        Raises:
            APIConnectionError, APIStatusError: As `retrieve`, from the iteration.
            TypeError, ValueError: A bad argument, at once; nothing was sent.
        """
        request = requests.list_request(
            charge=charge,
            payment_intent=payment_intent,
            created=created,
            starting_after=starting_after,
            limit=limit,
            expand=expand,
            stripe_account=self._account(stripe_account),
        )
        if timeout is not None:
            validation.seconds("timeout", timeout)
        return self._pages(request, timeout)

    async def _pages(
        self,
        request: Request[RefundPage],
        timeout: float | None,  # noqa: ASYNC109 - one deadline is the promise
    ) -> AsyncIterator[Refund]:
        queries = {request.query}
        while True:
            call = begin_call(self, timeout)
            last = await call.read(request)
            page = last.value
            if page is None:
                raise error_for(request, last, call.attempts, call.stopped)
            for refund in page.data:
                call.attach_last_response(refund, last.reply, None)
                yield refund
            if not page.has_more:
                return
            request = requests.next_page(request, page)
            if request.query in queries:
                raise APIError(
                    "the list of refunds could not be read: its pages go in a circle",
                    attempts=call.attempts,
                )
            queries.add(request.query)

    async def close(self, drain: float = 0.0) -> None:
        """Close the connections that this client opened; a session given stays open.

        No new call begins. What is in progress fails, and a cancel among it is unknown,
        unless it ends within ``drain`` seconds.

        Args:
            drain: Seconds to wait for the calls in progress. The next page of a
                `list` is a new call.

        Raises:
            TypeError, ValueError: ``drain`` is no number of seconds; nothing is closed.
        """
        seconds = validation.seconds("drain", drain) if drain else 0.0
        self._open = False
        session = self._context.session
        session.refuse_new_calls()
        try:
            if seconds:
                await self._context.in_progress.wait_idle(seconds)
        finally:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if self._open and self._context.session.is_open:
            warnings.warn(
                f"{self!r}, made at {self._made_at}, was not closed: use `async with` "
                "or `await client.close()`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        if not self._made:
            return "<RefundsClient not made>"
        return f"<RefundsClient {'live' if self.livemode else 'test'} {self._base_url}>"

    def _account(self, stripe_account: str | None) -> str | None:
        return self._stripe_account if stripe_account is None else stripe_account


def begin_call(
    refunds: RefundsClient,
    timeout: float | None,
    *,
    sent_before: SentBefore | None = None,
    observer: CallObserver | None = None,
    retry_gate: RetryGate | None = None,
    permit: Callable[[], bool] | None = None,
) -> Call:
    """Return a new call of a client, for this package's own use.

    Args:
        refunds: The client, on whose connections the call goes.
        timeout: Seconds for the whole call, in place of the policy's deadline.
        sent_before: What may have been sent with the same key before.
        observer: Sees each attempt.
        retry_gate: Decides when the next retry may go out.
        permit: Asked before each send, as late as possible; ``False`` sends nothing.

    Raises:
        TypeError, ValueError: The timeout is no number of seconds.
        RuntimeError: The client or its session is closed, or of another event loop.
    """
    context = refunds._context  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the client's own module
    if timeout is None:
        timeout = context.policy.deadline
    else:
        timeout = validation.seconds("timeout", timeout)
    clock = context.session.open().time
    # By position, which takes half the time.
    return Call(
        context,
        clock,
        clock(),
        timeout,
        sent_before,
        False,  # noqa: FBT003 - by position: nothing of this call was sent yet
        observer,
        retry_gate,
        permit,
    )


def digest_of(refunds: RefundsClient) -> str:
    """Return the `credentials_digest` of a client; empty if its key may change."""
    return refunds._credentials_digest  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the client's own module


async def load_key(refunds: RefundsClient, seconds: float | None = None) -> None:
    """Have a callable give its key, so that the client's `livemode` is known.

    Args:
        refunds: The client.
        seconds: How long that may take, in place of the policy's deadline.

    Raises:
        APITimeoutError: It took longer.
        AuthenticationError: The callable failed, or gave no key.
    """
    provided = refunds._context.credentials  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the client's own module
    if provided is not None:
        await provided.load(deadline_of(refunds) if seconds is None else seconds)


def deadline_of(refunds: RefundsClient) -> float:
    """Return the seconds that a call of a client takes at most."""
    return refunds._context.policy.deadline  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the client's own module


def _headers(
    stripe_version: str, stripe_context: str | None, app_info: str | None
) -> dict[str, str]:
    """Return what every request sends, besides the key."""
    agent = f"async-refunds/{__version__}"
    if app_info is not None:
        agent += f" {validation.app_info(app_info)}"
    headers = {
        "Stripe-Version": validation.version(stripe_version),
        "User-Agent": agent,
        "Accept": "application/json",
    }
    if stripe_context is not None:
        headers["Stripe-Context"] = validation.context(stripe_context)
    return headers


def _check_hook(name: str, hook: object) -> None:
    if hook is not None and (
        not callable(hook)
        or inspect.iscoroutinefunction(hook)
        or inspect.iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004 - whether it is a coroutine, not whether it is there
    ):
        raise TypeError(f"{name} must be a plain function")


def _caller(refunds: RefundsClient) -> str:
    """Return file and line of the code that makes a client, also one of a subclass."""
    frame = sys._getframe(2)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a traceback costs hundreds of times more
    while _is_constructor(frame, refunds) and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_constructor(frame: FrameType, refunds: RefundsClient) -> bool:
    code = frame.f_code
    return (
        code.co_name == "__init__"
        and frame.f_locals.get(code.co_varnames[0]) is refunds
    )
