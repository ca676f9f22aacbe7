"""API keys: which mode they open, and what a refusal says.

https://docs.stripe.com/keys
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from functools import lru_cache

from .errors import SUPPORT, StripeError

# The realm Stripe names, so that a browser or curl knows to ask for a key.
CHALLENGE = {"WWW-Authenticate": 'Basic realm="Stripe"'}

# How much of a key a message may show.
SHOWN = 4

_KEY = re.compile(r"(sk|rk|pk)_(test|live)_[A-Za-z0-9_]+", re.ASCII)
_MARK = re.compile(r"(?:sk|rk|pk)_(?:test|live)_", re.ASCII)


def masked(key: str) -> str:
    """Return the key with all but its prefix and its last characters hidden."""
    mark = _MARK.match(key)
    start = mark.end() if mark else 0
    hidden = max(0, len(key) - start - SHOWN)
    if not hidden:
        return key[:start] + "*" * (len(key) - start)
    return key[:start] + "*" * hidden + key[-SHOWN:]


def read_key(authorization: str | None) -> str:
    """Return the key of a bearer or basic ``Authorization`` header.

    Raises:
        StripeError: 401, there is none.
    """
    scheme, _, rest = (authorization or "").strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(rest, validate=True).decode()
        except (binascii.Error, ValueError):
            decoded = ""
        rest = decoded.partition(":")[0]
    elif scheme.lower() != "bearer":
        rest = ""
    if not rest:
        raise StripeError(
            401,
            "You did not provide an API key. You need to provide your API key in the"
            " Authorization header, using Bearer auth (e.g. 'Authorization: Bearer"
            " YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for"
            f" details, or {SUPPORT}",
            headers=CHALLENGE,
        )
    return rest


# A caller has few keys, and sends one with each request.
@lru_cache
def _opened(authorization: str | None) -> tuple[str, bool]:
    key = read_key(authorization)
    match = _KEY.fullmatch(key)
    if match is None:
        raise StripeError(
            401, f"Invalid API Key provided: {masked(key)}", headers=CHALLENGE
        )
    kind, mode = match.groups()
    if kind == "pk":
        raise StripeError(
            401,
            "This API call cannot be made with a publishable API key. Please use a"
            " secret API key. You can find a list of your API keys at"
            " https://dashboard.stripe.com/account/apikeys.",
            code="secret_key_required",
            headers=CHALLENGE,
        )
    return key, mode == "live"


@dataclass(slots=True)
class Keys:
    """What the emulator was told of single keys; any other well-formed key is good.

    Attributes:
        expired: Keys that are no longer taken.
        restricted: By key, the endpoints it may still use.
    """

    expired: set[str] = field(default_factory=set[str])
    restricted: dict[str, frozenset[str]] = field(
        default_factory=dict[str, frozenset[str]]
    )

    def read(self, authorization: str | None) -> tuple[str, bool]:
        """Return the key of a header, and whether it opens the live mode.

        Raises:
            StripeError: 401, there is none, it is no secret key, or has expired.
        """
        key, livemode = _opened(authorization)
        if key in self.expired:
            raise StripeError(
                401,
                f"Expired API Key provided: {masked(key)}",
                code="api_key_expired",
                headers=CHALLENGE,
            )
        return key, livemode

    def permit(self, key: str, endpoint: str, account: str) -> None:
        """Let the key use an endpoint, or not.

        Raises:
            StripeError: 403, the key is restricted and lacks the permission.
        """
        allowed = self.restricted.get(key)
        if allowed is None or endpoint in allowed:
            return
        writes = endpoint in {"cancel", "expire"}
        permission = "rak_charge_write" if writes else "rak_charge_read"
        raise StripeError(
            403,
            f"The provided key '{masked(key)}' does not have the required permissions"
            f" for this endpoint on account '{account}'. Having the '{permission}'"
            " permission would allow this request to continue.",
        )


def no_access(key: str, account: str) -> StripeError:
    """403: the key knows no such connected account."""
    return StripeError(
        403,
        f"The provided key '{masked(key)}' does not have access to account"
        f" '{account}' (or that account does not exist). Application access may have"
        " been revoked.",
        code="account_invalid",
    )
