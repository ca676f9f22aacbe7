"""Refuse an invalid argument with a sentence that says what to give instead.

Ids go into a URL and keys into a header, so a value that passes here can only be the
one path segment or header value that was meant: ``..`` survives yarl's quoting, and a
line feed would start another header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .redaction import contains_address, contains_key, scrub

if TYPE_CHECKING:
    from collections.abc import Iterable

# re_ for most, pyr_ for those of the older payments API; otherwise opaque
# (https://docs.stripe.com/upgrades#what-changes-does-stripe-consider-to-be-backward-compatible
# allows ids up to 255 characters).
_REFUND_ID = re.compile(r"(?:re|pyr)_[A-Za-z0-9_]{1,251}")
_ACCOUNT_ID = re.compile(r"acct_[A-Za-z0-9_]{1,250}")
# "the context is an account ID", or a path of them below an organisation
# (https://docs.stripe.com/context).
_CONTEXT = re.compile(r"[A-Za-z0-9_]{1,255}(?:/[A-Za-z0-9_]{1,255}){0,9}")
_API_KEY = re.compile(r"(?:sk|rk)_[A-Za-z0-9_]{1,252}")
# Up to 255 characters (https://docs.stripe.com/api/idempotent_requests); visible
# ASCII, since a header carries it.
_LONGEST_KEY = 255
_IDEMPOTENCY_KEY = re.compile(rf"[!-~]{{1,{_LONGEST_KEY}}}")
_VERSION = re.compile(r"[A-Za-z0-9._;= -]{1,255}")
_APP_INFO = re.compile(r"[ -~]{1,255}")
_EXPAND = re.compile(r"[A-Za-z0-9_.]{1,255}")
_OBJECT_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
# Without another underscore there is no room for an API key in it.
_REQUEST_ID = re.compile(r"req_[A-Za-z0-9]{1,251}")
_MAX_SECONDS = 1e9  # over 30 years; more is a mistake, and overflows event loops
# Requests per second: more than any limit of Stripe's, and than one process can send.
_MAX_RATE = 1e6
# Labels of 1 to 63 characters: Python's own look-up fails on others with a bare error.
_HOST = re.compile(r"(?!.{254})[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*\.?")

# Ids of other objects that are easily mistaken for a refund's.
_OTHER_IDS = {
    "ch_": "a charge",
    "py_": "a payment",
    "pi_": "a payment intent",
    "cs_": "a checkout session",
    "in_": "an invoice",
    "txn_": "a balance transaction",
    "cus_": "a customer",
}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    # The text itself: a format string would take another one of a subclass, such as an
    # enum's member, than was checked here.
    return str.__str__(value)


def _shown(value: str) -> str:
    shown = scrub(repr(value))
    return shown if len(shown) <= 80 else f"{shown[:77]}..."  # noqa: PLR2004 - a line


def _matching(pattern: re.Pattern[str], name: str, value: object, wanted: str) -> str:
    # Most values are plain and valid, and each function call counts in a cancel.
    if (
        type(value) is str
        and pattern.fullmatch(value)
        and "k_" not in value
        and "ec_" not in value
    ):
        return value
    text = _text(name, value)
    _refuse_key(name, text)
    if not pattern.fullmatch(text):
        raise ValueError(f"{name} must be {wanted}, not {_shown(text)}")
    return text


def _refuse_key(name: str, text: str) -> None:
    """Refuse an API key where it would go into a URL, a log or a journal."""
    if contains_key(text):
        raise ValueError(f"{name} contains an API key, which must not be sent there")


def refund_id(value: object) -> str:
    """Return the id of a refund: ``re_`` or ``pyr_``, letters, digits, underscores.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not the id of a refund. The message says whose id it looks like.
    """
    if (
        type(value) is str
        and _REFUND_ID.fullmatch(value)
        and "k_" not in value
        and "ec_" not in value
    ):
        return value  # as above
    text = _text("refund_id", value)
    _refuse_key("refund_id", text)
    if _REFUND_ID.fullmatch(text):
        return text
    for prefix, thing in _OTHER_IDS.items():
        if text.startswith(prefix):
            raise ValueError(
                f"{_shown(text)} is the id of {thing}; a refund's begins with re_ or "
                f"pyr_ (list the refunds of {thing} to find it)"
            )
    raise ValueError(
        f"{_shown(text)} is not a refund id, which looks like "
        "re_1Nispe2eZvKYlo2Cd31jOCgZ (re_ or pyr_, then letters, digits, _)"
    )


def account_id(value: object) -> str:
    """Return the id of a connected account, ``acct_...``.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not of that form.
    """
    return _matching(_ACCOUNT_ID, "stripe_account", value, "acct_, letters and digits")


def context(value: object) -> str:
    """Return the value of a ``Stripe-Context`` header.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not ids parted by slashes.
    """
    return _matching(_CONTEXT, "stripe_context", value, "account ids parted by /")


def idempotency_key(value: object) -> str:
    """Return an idempotency key: 1 to 255 visible ASCII characters.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Empty, too long, with a character that no header carries, or with
            an e-mail address.
    """
    if (
        type(value) is str
        and value.isalnum()
        and value.isascii()
        and len(value) <= _LONGEST_KEY
    ):
        return value  # as above; a key of ours is like this
    wanted = "1 to 255 visible ASCII characters"
    text = _matching(_IDEMPOTENCY_KEY, "idempotency_key", value, wanted)
    # Errors and log records show the key, since it is needed to ask again. Letters,
    # digits and hyphens alone, as in a UUID, are no address.
    if not text.replace("-", "").isalnum() and contains_address(text):
        raise ValueError(
            "idempotency_key contains an e-mail address, which would be logged: use "
            "an id of your own"
        )
    return text


def api_key(value: object) -> str:
    """Return a secret (``sk_``) or restricted (``rk_``) API key.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Another kind of key, or none. The text never holds the value.
    """
    if not isinstance(value, str):
        raise TypeError("api_key must be a str")
    if _API_KEY.fullmatch(value):
        return value
    if not value:
        raise ValueError(
            "api_key is empty: give a secret key (sk_...) or a restricted one (rk_...)"
        )
    if value != value.strip():
        raise ValueError("api_key has white space around it: strip it off")
    if value.startswith("pk_"):
        raise ValueError(
            "api_key is a publishable key (pk_...), which cannot cancel refunds: use "
            "a secret key (sk_...) or a restricted one (rk_...)"
        )
    raise ValueError(
        "api_key must be a secret key (sk_...) or a restricted one (rk_...)"
    )


def is_request_id(text: str) -> bool:
    """Tell whether a ``Request-Id`` header can be what it says, and is safe to log."""
    return _REQUEST_ID.fullmatch(text) is not None


def is_live(key: str) -> bool:
    """Tell whether a key may move real money: any that is not plainly a test key."""
    return not key.startswith(("sk_test_", "rk_test_"))


def version(value: object) -> str:
    """Return the value of a ``Stripe-Version`` header.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not fit for a header.
    """
    return _matching(_VERSION, "stripe_version", value, "such as 2026-10-28.endive")


def object_id(name: str, value: object) -> str:
    """Return the id of a charge or a payment intent; Stripe knows its many forms.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not letters, digits and underscores.
    """
    return _matching(_OBJECT_ID, name, value, "an id of letters, digits and _")


def run_name(value: object) -> str:
    """Return the name of a run, which every worker and operator sees.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Empty, or with an API key in it.
    """
    text = _text("run", value)
    _refuse_key("run", text)
    if not text:
        raise ValueError("run must have a name, such as 2026-11-27")
    return text


def whole(name: str, value: object, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return a whole number within bounds.

    Raises:
        TypeError: Not an ``int``.
        ValueError: Out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, not {value}")
    return value


def bounds(value: Mapping[str, object]) -> Mapping[str, object]:
    """Return the bounds of ``created``: any of gt, gte, lt, lte.

    Raises:
        TypeError: Not a mapping.
        ValueError: Another bound than those.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"created must be Unix seconds or a dict of bounds, "
            f"not {type(value).__name__}"
        )
    if unknown := value.keys() - {"gt", "gte", "lt", "lte"}:
        raise ValueError(f"created has no bound {_shown(str(min(unknown, key=str)))}")
    return value


def app_info(value: object) -> str:
    """Return what the caller adds to ``User-Agent``, as ``my-shop/1.4``.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not 1 to 255 printable ASCII characters.
    """
    wanted = "1 to 255 printable ASCII characters"
    return _matching(_APP_INFO, "app_info", value, wanted)


def expand(value: Iterable[str]) -> tuple[str, ...]:
    """Return the fields to expand, such as ``("charge", "payment_intent")``.

    Raises:
        TypeError: One ``str`` instead of several, or something else among them.
        ValueError: Not a dotted path of field names.
    """
    if isinstance(value, str):
        raise TypeError(f"expand must be a sequence: expand=[{_shown(value)}]")
    wanted = "a field's name, or a path such as data.charge"
    return tuple(_matching(_EXPAND, "expand", field, wanted) for field in value)


def seconds(name: str, value: object) -> float:
    """Return a positive number of seconds.

    Raises:
        TypeError: Not a number.
        ValueError: Zero, negative, not a number at all, or over 30 years.
    """
    return _positive(name, value, "seconds", _MAX_SECONDS)


def rate(name: str, value: object) -> float:
    """Return a number of requests per second.

    Raises:
        TypeError: Not a number.
        ValueError: Zero, negative, not a number at all, or more than can be sent.
    """
    return _positive(name, value, "requests per second", _MAX_RATE)


def _positive(name: str, value: object, unit: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0 {unit}, not {value}")
    if value > most:
        # Not the value itself, which may have hundreds of digits.
        raise ValueError(f"{name} must be at most {most:,.0f} {unit}")
    return float(value)


def base_url(value: object, *, plain_http: bool = False) -> str:
    """Return ``scheme://host[:port]``, built from its checked parts.

    Plain http shows the secret key to everybody on the way, since every request carries
    it. So it is for a loopback address, or for a test key.

    Args:
        value: An origin.
        plain_http: Whether http may go to any host.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Not https (or http where allowed), or more than an origin.
    """
    text = _text("base_url", value)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("base_url is not a URL") from None
    if (
        parts.username is not None
        or parts.query
        or parts.fragment
        or parts.path not in ("", "/")
        or parts.scheme not in ("https", "http")
    ):
        raise ValueError(
            "base_url must be an origin such as https://api.stripe.com or "
            "http://127.0.0.1:12111, with no path, query or user name"
        )
    host, loopback = _checked_host(host)
    if parts.scheme == "http" and not loopback and not plain_http:
        raise ValueError(
            "base_url must be https: plain http shows the API key to everybody on the "
            "way, so a live key goes to a loopback address such as "
            "http://127.0.0.1:12111 only"
        )
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def _checked_host(host: str) -> tuple[str, bool]:
    """Return a host in its one unambiguous spelling, and whether it is loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ValueError("base_url has no valid host name") from None
        return host, host == "localhost"
    if "%" in host:  # a scope: the address means another host on each machine
        raise ValueError("base_url has an address with a scope")
    shown = f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - IPv6
    return shown, address.is_loopback
