"""Keep the API key and the customer's e-mail address out of what gets printed.

Logs, tracebacks and pickles travel further than anybody planned. So the key lives in
a string that will not show itself, and what Stripe wrote is scrubbed before it becomes
part of an error.
"""

from __future__ import annotations

import re
from typing import NoReturn, SupportsIndex, TypeAlias, get_type_hints

import msgspec

from async_refunds.models import Expandable, Refund, attach, id_of

# What a refund without its expansions is made of: it holds no list.
JSON: TypeAlias = "dict[str, JSON] | str | float | bool | None"

_EXPANDABLE = frozenset(
    name for name, hint in get_type_hints(Refund).items() if hint == Expandable
)

# Stripe's keys: secret, restricted, publishable. Case is kept loose because a proxy's
# error page may have folded it.
_KEY = re.compile(r"((?:sk|rk|pk)_(?:test_|live_)?)[a-z0-9_*]+", re.IGNORECASE)
# A word with an @ is taken for an address whole: `\S*@\S*` would go over a long word
# without one again from each of its letters, and a body may hold a megabyte of them.
_WORD = re.compile(r"\S+")
# The sign as it is, full width, and as URLs and HTML spell it.
_AT = re.compile(r"@|\uff20|%40|&#64;|&commat;", re.IGNORECASE)


class SecretStr(str):
    """A string that works as one and shows itself in no ``repr``.

    aiohttp keeps the request's headers in local variables and in `RequestInfo`, whose
    reprs go into tracebacks with locals; ``str()`` and the wire get the real value.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __getitem__(self, part: SupportsIndex | slice) -> SecretStr:
        # rich cuts a long string short before it asks for the repr of what is left.
        return SecretStr(super().__getitem__(part))

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a client with its API key is neither pickled nor copied")


def scrub(text: str) -> str:
    """Return the text with every API key masked and every e-mail address cut out."""
    text = _KEY.sub(r"\1***", text)
    return _WORD.sub(lambda word: "[e-mail]" if _AT.search(word[0]) else word[0], text)


def without_email(refund: Refund) -> Refund:
    """Return the refund fit for an error: no address in any field, and no body.

    What was expanded is its id again: a charge alone has a dozen places for addresses.
    """
    fields = msgspec.to_builtins(refund)
    for name, value in fields.items():
        if name in _EXPANDABLE:
            fields[name] = id_of(value)
    clean = msgspec.convert(_scrubbed(fields), Refund)
    attach(clean, msgspec.structs.replace(refund.last_response, body=b""))
    return clean


def _scrubbed(value: JSON) -> JSON:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {scrub(key): _scrubbed(item) for key, item in value.items()}
    return value
