"""An API key that a callable gives, so that it can be rotated without a restart."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import inspect
import os
import re
from typing import TYPE_CHECKING, TypeAlias

from . import telemetry
from .errors import APITimeoutError, AuthenticationError
from .protocol import validation
from .protocol.redaction import SecretStr
from .transport.connections import closes_coroutine, is_cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .transport.session import Session

# A variable of the environment that is missing. A key begins with small letters.
_VARIABLE = re.compile(r"[A-Z][A-Z_]{0,63}")

KeyProvider: TypeAlias = "Callable[[], str | Awaitable[str]]"


def credentials_digest(api_key: str, stripe_context: str | None) -> str:
    """Return eight hex digits that tell whether two clients act on the same account.

    It may be kept and shown. It has 32 bits, and a key has some hundred: very many keys
    have the same digest, so it does not tell which one was used.

    Args:
        api_key: The key.
        stripe_context: With keys of an organization, which of its accounts.
    """
    text = f"{api_key} {stripe_context or ''}".encode()
    return hashlib.blake2s(text, digest_size=4, person=b"refunds").hexdigest()


class ProvidedKey:
    """Gives a session the key of a provider, and another one after a 401.

    Args:
        provider: Returns the key, or an awaitable of it.
    """

    def __init__(self, provider: KeyProvider) -> None:
        self._provider = provider
        self._session: Session | None = None
        self._key: SecretStr | None = None
        self._lock = asyncio.Lock()
        self._answers = 0  # of the provider, good or not, but not if it is broken off
        self._failure = ""
        """What the provider raised when it last gave no key."""

    def connect(self, session: Session) -> None:
        """Give the key to this session, now and whenever it changes."""
        self._session = session

    @property
    def livemode(self) -> bool:
        """Whether the key may move real money; true while it is not known."""
        return self._key is None or validation.is_live(self._key)

    async def load(self, seconds: float) -> None:
        """Call the provider for the first key, unless there is one.

        The calls that wait here while the provider is called share its answer.

        Raises:
            APITimeoutError: The provider took longer than so many seconds.
            AuthenticationError: The provider failed, or gave no key.
        """
        if self._key is not None:
            return
        answers = self._answers
        try:
            async with asyncio.timeout(seconds), self._lock:
                if self._key is not None:
                    return
                if answers != self._answers:
                    raise _no_key(self._failure)
                self._set(await self._provide())
        except TimeoutError:
            raise APITimeoutError(
                "the api_key callable gave no key in time; nothing was sent"
            ) from None

    async def renew(self, generation: int, seconds: float) -> bool:
        """Replace a key that was refused; return whether there is another one.

        The calls that wait here while the provider is called share its answer.

        Args:
            generation: Of the refused key, as the session counts them. If the key has
                changed since, the provider is not called.
            seconds: How long to wait for the provider.
        """
        answers, session = self._answers, self._session
        assert session is not None  # noqa: S101 - `connect` comes before
        try:
            async with asyncio.timeout(seconds), self._lock:
                if generation == session.key_generation and answers == self._answers:
                    await self._replace()
                return generation != session.key_generation
        except (TimeoutError, AuthenticationError) as error:
            telemetry.log_no_key(error)
            return False

    async def _replace(self) -> None:
        key = await self._provide()
        # A key of the other mode would not find the refund, or move real money.
        if key != self._key and validation.is_live(key) == self.livemode:
            self._set(key)

    def _set(self, key: SecretStr) -> None:
        assert self._session is not None  # noqa: S101 - `connect` comes before
        self._key = key
        self._session.set_api_key(key)

    async def _provide(self) -> SecretStr:
        task, key = asyncio.current_task(), None
        failure = ""
        try:
            given = self._provider()
            found = await given if inspect.isawaitable(given) else given
            secret = SecretStr(found) if isinstance(found, str) else type(found)
            del given, found
        except (KeyboardInterrupt, SystemExit):
            raise  # meant for the process
        except BaseException as error:
            if closes_coroutine(error, task) or (
                isinstance(error, asyncio.CancelledError) and is_cancelled()
            ):
                raise
            failure = _cause(error)
        else:
            key, failure = _checked(secret)
        self._answers += 1
        # Outside of the `except`: the provider's error and its frames may show a key.
        if key is None:
            self._failure = failure
            raise _no_key(failure)
        return key


def _checked(given: SecretStr | type) -> tuple[SecretStr | None, str]:
    """Return the key that a provider gave, or why it is none."""
    if isinstance(given, type):
        return None, f"it gave {given.__name__}, not str"
    try:
        return SecretStr(validation.api_key(given)), ""
    except ValueError as error:
        return None, str(error)  # which does not hold it


def _cause(error: BaseException) -> str:
    """Return what may be told of a provider's error: no text that may hold a key."""
    name = type(error).__name__
    if isinstance(error, KeyError) and len(error.args) == 1:
        (missing,) = error.args
        if isinstance(missing, str) and _VARIABLE.fullmatch(missing):
            return f"{name}: {missing}"
    # Other modules have numbers of their own, such as those of TLS.
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        number = error.errno or 0
        if number in errno.errorcode:
            return f"{name}: {os.strerror(number)}"
    return name


def _no_key(failure: str) -> AuthenticationError:
    return AuthenticationError(
        f"the api_key callable gave no key ({failure}); nothing was sent"
    )
