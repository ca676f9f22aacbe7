"""An API key that a callable gives, so that it can be rotated without a restart."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, TypeAlias

from .errors import AuthenticationError
from .protocol import validation
from .protocol.redaction import SecretStr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .transport.session import Session

KeyProvider: TypeAlias = "Callable[[], str | Awaitable[str]]"


class ProvidedKey:
    """Gives a session the key of a provider, and another one after a 401.

    Args:
        provider: Returns the key, or an awaitable of it.
        session: Where the key goes.
    """

    def __init__(self, provider: KeyProvider, session: Session) -> None:
        self._provider = provider
        self._session = session
        self._key: SecretStr | None = None
        self._lock = asyncio.Lock()
        self.generation = 0
        """How often the key has changed."""

    @property
    def livemode(self) -> bool:
        """Whether the key may move real money; true while it is not known."""
        return self._key is None or validation.is_live(self._key)

    async def load(self) -> None:
        """Ask for the first key, unless there is one.

        Raises:
            AuthenticationError: The provider failed, or gave no key.
        """
        if self._key is None:
            async with self._lock:
                if self._key is None:
                    self._set(await self._provide())

    async def renew(self, generation: int) -> bool:
        """Replace a key that was refused; return whether there is another one.

        Args:
            generation: Of the refused key. If the key has changed since, nobody is
                asked.
        """
        async with self._lock:
            if generation != self.generation:
                return True
            try:
                key = await self._provide()
            except AuthenticationError:
                return False
            if key == self._key or validation.is_live(key) != self.livemode:
                return False
            self._set(key)
            return True

    def _set(self, key: SecretStr) -> None:
        self._key = key
        self.generation += 1
        self._session.set_api_key(key)

    async def _provide(self) -> SecretStr:
        try:
            given = self._provider()
            found = await given if inspect.isawaitable(given) else given
            secret = SecretStr(found) if isinstance(found, str) else type(found)
            del given, found
            return SecretStr(validation.api_key(secret))
        except Exception as error:  # noqa: BLE001 - the provider's own, with no secret
            raise AuthenticationError(
                f"the api_key callable gave no key ({type(error).__name__}); nothing "
                "was sent"
            ) from None
