"""The client: cancel a refund, read one, go through them all."""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
import secrets
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from async_refunds.protocol import error_mapping, requests, validation
from async_refunds.protocol.redaction import SecretStr, without_email
from async_refunds.transport.session import Session, authorization

from .call import Call, CallContext
from .retry import RetryBudget, RetryPolicy
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType

    import aiohttp

    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import CreatedRange, RefundPage, Request

    from .call import Watch
    from .models import Attempt, Refund

T = TypeVar("T")

STRIPE_VERSION = "2026-10-28.endive"
"""The API version these models were written for (Stripe's own client 16.1)."""

_DEFAULT_POLICY = RetryPolicy()


class RefundsClient:
    """Cancels and reads refunds over one pool of connections.

    Use it in one event loop, and close it there (``async with`` does)::

        async with RefundsClient(api_key) as refunds:
            refund = await refunds.cancel("re_1Nispe2eZvKYlo2Cd31jOCgZ")

    Args:
        api_key: A secret (``sk_``) or restricted (``rk_``) key.
        session: Your own aiohttp session: its connector, proxy, CA and tracing are
            used, and it is never closed here; its middlewares are not run. Without one,
            the client makes its own at the first call and closes it.
        base_url: An origin; plain http on a loopback address only.
        stripe_version: The API version to ask for.
        stripe_account: The connected account to act on, unless a call names one.
        stripe_context: The ``Stripe-Context`` header, for keys of an organisation.
        retry: How often and how long to try.
        attempt_timeout: Seconds for one attempt, of which the wait for a connection
            may take half.
        on_attempt: Called with each `Attempt` as it ends. What it raises is logged,
            and never harms the call.
        app_info: Your application, as ``my-shop/1.4``, for ``User-Agent``.

    Raises:
        TypeError, ValueError: An argument that cannot be right; nothing is sent.
    """

    # Also a client whose making failed has a repr, in the traceback of that.
    _shown = "not made"

    def __init__(
        self,
        api_key: str,
        *,
        session: aiohttp.ClientSession | None = None,
        base_url: str = "https://api.stripe.com",
        stripe_version: str = STRIPE_VERSION,
        stripe_account: str | None = None,
        stripe_context: str | None = None,
        retry: RetryPolicy = _DEFAULT_POLICY,
        attempt_timeout: float = 30.0,
        on_attempt: Callable[[Attempt], object] | None = None,
        app_info: str | None = None,
    ) -> None:
        # First of all, so that no traceback from here on can show the key.
        secret = SecretStr(api_key) if isinstance(api_key, str) else type(api_key)
        del api_key
        secret = SecretStr(validation.api_key(secret))
        if not isinstance(retry, RetryPolicy):
            raise TypeError("retry must be a RetryPolicy")
        if on_attempt is not None and (
            not callable(on_attempt)
            or inspect.iscoroutinefunction(on_attempt)
            or inspect.iscoroutinefunction(getattr(on_attempt, "__call__", None))  # noqa: B004 - whether it is a coroutine, not whether it is there
        ):
            raise TypeError("on_attempt must be a plain function")
        self._stripe_account = (
            None if stripe_account is None else validation.account_id(stripe_account)
        )
        origin = validation.base_url(base_url)
        attempt_timeout = validation.seconds("attempt_timeout", attempt_timeout)
        headers = {
            "Authorization": authorization(secret),
            "Stripe-Version": validation.version(stripe_version),
            "User-Agent": f"async-refunds/{__version__}"
            + (f" {validation.app_info(app_info)}" if app_info is not None else ""),
            "Accept": "application/json",
        }
        if stripe_context is not None:
            headers["Stripe-Context"] = validation.context(stripe_context)
        self._caller = CallContext(
            session=Session(
                origin=origin,
                headers=headers,
                attempt_timeout=attempt_timeout,
                borrowed=session,
            ),
            policy=retry,
            budget=RetryBudget(),
            attempt_timeout=attempt_timeout,
            on_attempt=on_attempt,
            sleep=asyncio.sleep,
            random=random.random,
        )
        self._livemode = validation.is_live(secret)
        self._base_url = origin
        self._shown = f"{'live' if self._livemode else 'test'} {origin}"

    @property
    def base_url(self) -> str:
        """Where the API is: ``scheme://host[:port]``."""
        return self._base_url

    @property
    def livemode(self) -> bool:
        """Whether the key may move real money: any that is not plainly a test key."""
        return self._livemode

    @property
    def stripe_account(self) -> str | None:
        """The connected account that a call acts on if it names none."""
        return self._stripe_account

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
        returns, the refund is canceled. If it raises `OutcomeUnknownError`, it may be.
        If it raises anything else, this call canceled nothing. A task that is cancelled
        in the midst of it knows as little as the former, so a caller who may be
        cancelled gives the key.

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
            OutcomeUnknownError: It may be canceled; ask again with the error's key.
            RefundNotCancelableError: Its state forbids it; the error has the refund.
            RefundNotFoundError: No such refund for this key, account and mode.
            AuthenticationError, PermissionDeniedError: The key is not good for it.
            IdempotencyError: The key was used for another request.
            RateLimitError: Stripe's limit held through all retries.
            APIConnectionError: Nothing reached Stripe.
            APIStatusError: Any other refusal.
            TypeError, ValueError: A bad argument; nothing was sent.
            RuntimeError: The client is closed, or of another event loop.
        """
        # Read once: what the caller does to it meanwhile must not come in after a send.
        expand = validation.expand(expand) if expand else ()
        request = requests.cancel_request(
            refund_id,
            idempotency_key=(
                secrets.token_hex(16) if idempotency_key is None else idempotency_key
            ),
            expand=expand,
            stripe_account=self._account(stripe_account),
        )
        call = self._begin(timeout)
        until = call.settling_from
        last = await call.attempt(request, until)
        if last.retry:
            last = await call.insist(last, request, until)
        refund = last.value
        if refund is not None:
            call.remember(refund, last.reply, request.idempotency_key)
            return refund
        if not call.ambiguous and not error_mapping.is_state_refusal(last.reply):
            raise error_mapping.error_of(request, last.reply, call.attempts)
        refund = await self._seen(call, request, expand)
        if (
            refund is not None
            and refund.status == "canceled"
            and (call.ambiguous or already_canceled_ok)
        ):
            return refund
        raise error_mapping.unsettled(
            request,
            last.reply,
            None if refund is None else without_email(refund),
            ambiguous=call.ambiguous,
            attempts=call.attempts,
        )

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
            APIStatusError: Stripe, or something before it, refused or failed.
            TypeError, ValueError: A bad argument; nothing was sent.
            RuntimeError: The client is closed, or of another event loop.
        """
        request = requests.retrieve_request(
            refund_id, expand=expand, stripe_account=self._account(stripe_account)
        )
        call = self._begin(timeout)
        last = await _read(call, request)
        if last.value is None:
            raise error_mapping.error_of(request, last.reply, call.attempts)
        call.remember(last.value, last.reply, None)
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
        """Go through all refunds, newest first, a request per page.

        Stripe has no filter by status: look at ``refund.status``.

        Args:
            charge: Only those of this charge.
            payment_intent: Only those of this payment intent.
            created: Only those created then: Unix seconds, or bounds such as
                ``{"gte": 1767225600, "lt": 1769904000}``.
            starting_after: The id of the refund to go on after.
            limit: Refunds per page, 1 to 100; not a limit to the whole.
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
        while True:
            call = self._begin(timeout)
            last = await _read(call, request)
            page = last.value
            if page is None:
                raise error_mapping.error_of(request, last.reply, call.attempts)
            for refund in page.data:
                call.remember(refund, last.reply, None)
                yield refund
            if not page.has_more:
                return
            request = requests.next_page(request, page)

    async def close(self) -> None:
        """Close the connections this client opened; a session given stays open."""
        await self._caller.session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<RefundsClient {self._shown}>"

    def _account(self, stripe_account: str | None) -> str | None:
        return self._stripe_account if stripe_account is None else stripe_account

    def _begin(self, timeout: float | None) -> Call:
        caller = self._caller
        if timeout is None:
            timeout = caller.policy.deadline
        else:
            timeout = validation.seconds("timeout", timeout)
        clock, watch = caller.session.open().time, caller.watch
        return Call(
            caller, clock, clock(), timeout, watch is not None and watch.ambiguous
        )

    async def _seen(
        self, call: Call, request: Request[Refund], expand: Sequence[str]
    ) -> Refund | None:
        """Read the refund of a cancel, with what time the call has left."""
        read = requests.retrieve_request(
            request.refund_id, expand=expand, stripe_account=request.stripe_account
        )
        last = await _read(call, read)
        refund = last.value
        if refund is not None:
            call.remember(refund, last.reply, request.idempotency_key)
        return refund


def watched(refunds: RefundsClient, watch: Watch) -> RefundsClient:
    """Return the same client, on the same connections, for the calls of a batch.

    It shares all that the calls of a client share, and is never closed by itself. It
    asks of the account that a call names, or of the key's own: a batch may have been
    begun by a client with another default.
    """
    same = copy.copy(refunds)
    vars(same)["_stripe_account"] = None
    caller: CallContext = vars(refunds)["_caller"]
    vars(same)["_caller"] = msgspec.structs.replace(caller, watch=watch)
    return same


async def _read(call: Call, request: Request[T]) -> Classification[T]:
    """Exchange a read within what is left of the call."""
    last = await call.attempt(request, call.deadline)
    return await call.insist(last, request, call.deadline) if last.retry else last
