"""API keys: which mode a key opens, and how a bad key is refused.

https://docs.stripe.com/keys
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from .errors import SUPPORT, StripeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_refunds.emulator.state.refunds import Partition
    from async_refunds.emulator.state.stripe_state import StripeState

# The account that the keys themselves belong to. Only messages name it.
PLATFORM = "acct_1Platform00000000"

# How many characters of a key a message may show, besides the prefix.
SHOWN = 4

# An organization's key may name its mode as well; test mode is the default here.
# https://docs.stripe.com/keys/organization-api-keys
_PREFIX = re.compile(r"(sk|rk|pk)_(test|live)_|(sk_org)_(?:(test|live)_)?", re.ASCII)
_KEY = re.compile(rf"(?:{_PREFIX.pattern})[A-Za-z0-9_]+", re.ASCII)

# The header tells browsers and curl to ask for a key.
_unauthorized = partial(
    StripeError, 401, headers={"WWW-Authenticate": 'Basic realm="Stripe"'}
)


def named_account(headers: Mapping[str, str]) -> str | None:
    """Return the account that a request names; a context is a path that ends in it.

    https://docs.stripe.com/context
    """
    account = headers.get("Stripe-Account")
    if not account:
        account = (headers.get("Stripe-Context") or "").rpartition("/")[2]
    return account or None


def authenticate(
    state: StripeState, headers: Mapping[str, str], account: str | None
) -> tuple[str, Partition]:
    """Return the API key, and the refunds of the account and mode that it opens.

    Args:
        state: Knows the accounts and the keys.
        headers: Those of the request.
        account: The account that the request names.

    Raises:
        StripeError: 401, the key is missing or invalid; 400, an organization's key
            comes without a context or version; 403, it cannot act for the account.
    """
    key, livemode, organization = _parse(headers.get("Authorization"))
    if key in state.expired_keys:
        raise _unauthorized(
            f"Expired API Key provided: {masked(key)}", code="api_key_expired"
        )
    if organization:
        # The first message is Stripe's own, the second is like it:
        # https://github.com/stripe/stripe-python/pull/1660
        for name, what in (
            ("Stripe-Context", " with your target account"),
            ("Stripe-Version", ""),
        ):
            if not headers.get(name):
                raise StripeError(
                    400,
                    f"Please include the {name} header{what} when using an Organization"
                    " API key.",
                )
    if account == PLATFORM:
        account = None
    if account is not None and not state.refunds.has_account(account):
        raise StripeError(
            403,
            f"The provided key '{masked(key)}' does not have access to account"
            f" '{account}' (or that account does not exist). Application access may"
            " have been revoked.",
            code="account_invalid",
        )
    return key, state.refunds.partition(account, livemode=livemode)


def check_permission(
    state: StripeState, key: str, endpoint: str, account: str | None
) -> None:
    """Refuse a restricted key that must not use the endpoint.

    Raises:
        StripeError: 403, the key lacks the permission.
    """
    allowed = state.restricted_keys.get(key)
    if allowed is None or endpoint in allowed:
        return
    writes = endpoint in {"cancel", "expire"}
    permission = "rak_charge_write" if writes else "rak_charge_read"
    raise StripeError(
        403,
        f"The provided key '{masked(key)}' does not have the required permissions for"
        f" this endpoint on account '{account or PLATFORM}'. Having the '{permission}'"
        " permission would allow this request to continue.",
    )


def masked(key: str) -> str:
    """Return the key with all but its prefix and its last characters hidden."""
    prefix = _PREFIX.match(key)
    start = prefix.end() if prefix else 0
    shown = key[-SHOWN:] if len(key) - start > SHOWN else ""
    return key[:start] + "*" * (len(key) - start - len(shown)) + shown


# A client has few keys, and sends one with each request.
@lru_cache
def _parse(authorization: str | None) -> tuple[str, bool, bool]:
    """Return the key of a header, and whether it is live and an organization's."""
    key = _credentials(authorization)
    if not key:
        raise _unauthorized(
            "You did not provide an API key. You need to provide your API key in the"
            " Authorization header, using Bearer auth (e.g. 'Authorization: Bearer"
            " YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for"
            f" details, or {SUPPORT}"
        )
    match = _KEY.fullmatch(key)
    if match is None:
        raise _unauthorized(f"Invalid API Key provided: {masked(key)}")
    kind, mode, organization, organization_mode = match.groups()
    if kind == "pk":
        raise _unauthorized(
            "This API call cannot be made with a publishable API key. Please use a"
            " secret API key. You can find a list of your API keys at"
            " https://dashboard.stripe.com/account/apikeys.",
            code="secret_key_required",
        )
    return key, "live" in (mode, organization_mode), organization is not None


def _credentials(authorization: str | None) -> str:
    """Return the key of a bearer or basic header; an empty string if it has none."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[0]
        except (binascii.Error, ValueError):
            return ""
    return ""
