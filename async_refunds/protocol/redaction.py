"""Keep the API key and the customer's e-mail address out of what gets printed.

Logs, tracebacks and pickles travel far. So the key lives in a string whose ``repr``
hides it, and text from Stripe is scrubbed before it becomes part of an error. Nor does
any of it give orders to a terminal, or begin a line of a log.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NoReturn, Self, SupportsIndex, TypeAlias, get_type_hints, overload

import msgspec

from async_refunds.models import Expandable, Refund, attach, id_of

# A refund whose expanded objects are replaced by ids contains no list.
JSON: TypeAlias = "dict[str, JSON] | str | float | bool | None"

_EXPANDABLE = frozenset(
    name for name, hint in get_type_hints(Refund).items() if hint == Expandable
)

# Stripe's keys: secret, restricted, publishable, and the secrets of webhooks. Case is
# ignored because a proxy's error page may have folded it.
# The underscore may be escaped as in a URL, in JSON, in HTML or in MIME.
_UNDERSCORE = (
    r"(?:_|%(?:25)*5F|\\+[ux](?:00)?5F|&(?:amp;)*#0*95;?|&(?:amp;)*#x0*5F;?|=5F)"
)
_KEY = re.compile(
    rf"((?:[srp]k{_UNDERSCORE}(?:(?:test|live|org){_UNDERSCORE})*)"
    rf"|(?:whsec{_UNDERSCORE}))[a-z0-9_*%]+",
    re.IGNORECASE,
)

# The first letters of one, or so much of it that it is no word, wherever it stands.
_WHOLE_KEY = re.compile(
    r"(?<![a-z0-9])(?:[srp]k_(?:test|live|org)_|whsec_)[a-z0-9]"
    r"|(?:[srp]k_(?:test|live|org)_|whsec_)[a-z0-9]{16}",
    re.IGNORECASE,
)

# The at sign in the spellings of Unicode, URLs, HTML, JSON, other languages and MIME,
# escaped any number of times and padded with zeros.
_AT = re.compile(
    r"""[@\uff20\ufe6b]
    | %(?:25)*(?:40|u0040)
    | \+AEA-
    | &(?:amp;)*(?: \#0*64(?!\d) | \#x0*40 | commat )
    | \\+ (?: u0040 | U00000040 | x40 | [ux]\{0*40\} | 0*100(?!\d) )
    | u\+0*40
    | =40(?=[\w-]+\.\w)
    | [(\[{<]at[)\]}>]""",
    re.IGNORECASE | re.VERBOSE,
)
# What neither of them matches if it has no ``k_`` and no ``c_``: most of what is looked
# at is an id or a status, and each search costs more than a microsecond.
_PLAIN = re.compile("[A-Za-z0-9_ ]*")
_WHOLE_ADDRESS = re.compile(
    rf"\w(?:{_AT.pattern})[\w-]+\.\w", re.IGNORECASE | re.VERBOSE
)
_WORD = re.compile(r"\S+")
_ADDRESS = "[e-mail]"

# Stripe's longest message is 40,000 characters (maxLength in its schema), and a proxy's
# page has no limit. An error message should fit one screen.
_MESSAGE_LIMIT = 1000


class SecretStr(str):
    """A string that hides its value from ``repr``.

    aiohttp keeps the request's headers in local variables and in `RequestInfo`, whose
    reprs end up in tracebacks with locals. ``str()`` and the wire get the real value.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __getitem__(self, part: SupportsIndex | slice) -> SecretStr:
        # rich cuts a long string short before it takes the repr of the rest.
        return SecretStr(super().__getitem__(part))

    def __copy__(self) -> Self:
        # Recorders of HTTP traffic copy the headers of a request.
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("an API key cannot be pickled")


class SecretBytes(bytes):
    """Bytes that hide their value from ``repr``, such as a body with an address."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    @overload
    def __getitem__(self, part: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, part: slice, /) -> SecretBytes: ...
    def __getitem__(self, part: SupportsIndex | slice, /) -> int | SecretBytes:
        # For rich, as above.
        found = super().__getitem__(part)
        return found if isinstance(found, int) else SecretBytes(found)


def scrub(text: str) -> str:
    """Return the text with API keys masked and e-mail addresses removed.

    A word with an at sign in it is removed as a whole. If the sign stands at the edge
    of a word, or alone, the neighbouring word goes with it.
    """
    if _PLAIN.fullmatch(text):
        folded = text.lower()
        if "k_" not in folded and "c_" not in folded:
            return text
    text = _KEY.sub(r"\1***", text)
    if not _AT.search(text):
        return text
    # Word by word, because `\S*@\S*` takes quadratic time on a long word without one.
    words = list(_WORD.finditer(text))
    cut = [False] * len(words)
    for place, word in enumerate(words):
        signs = list(_AT.finditer(word[0]))
        if not signs:
            continue
        cut[place] = True
        if signs[0].start() == 0 and place:
            cut[place - 1] = True
        if signs[-1].end() >= len(word[0].rstrip(";")) and place + 1 < len(words):
            cut[place + 1] = True
    parts: list[str] = []
    end = 0
    for word, is_address in zip(words, cut, strict=True):
        parts += [text[end : word.start()], _ADDRESS if is_address else word[0]]
        end = word.end()
    return "".join([*parts, text[end:]])


def excerpt(text: str, longest: int = _MESSAGE_LIMIT) -> str:
    """Return what an error or the log may quote of a text from outside.

    It is scrubbed, stands on one line, and nothing in it is obeyed by a terminal.

    Args:
        text: Such as a server's or a database's.
        longest: Characters after which it is cut.
    """
    return escape_controls(scrub(text)[:longest])[:longest]


def escape_controls(text: str) -> str:
    """Return the text on one line, without anything that a terminal would obey.

    Controls, ends of lines, and what changes the direction of writing are escaped as in
    Python's literals; letters and spaces of any script stay.
    """
    if text.isprintable():  # as almost all are, of a hundred thousand refunds
        return text
    return "".join(
        letter if is_shown(letter) else ascii(letter)[1:-1] for letter in text
    )


def is_shown(letter: str) -> bool:
    """Tell whether a character is drawn where it stands, and does nothing else."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def mask_keys(text: str) -> str:
    """Return the text with Stripe's keys masked; ``task_1`` stays, as an address does.

    For names and paths that people gave, which `scrub` could change beyond recognition.
    """
    return _KEY.sub(r"\1***", text) if contains_key(text) else text


def contains_key(text: str) -> bool:
    """Tell whether a text contains one of Stripe's keys, and not only ``task_1``."""
    return _WHOLE_KEY.search(text) is not None


def contains_address(text: str) -> bool:
    """Tell whether a text contains an e-mail address, and not only an at sign."""
    return _WHOLE_ADDRESS.search(text) is not None


def redact_refund(refund: Refund) -> Refund:
    """Return the refund fit for an error: no address in any field, and no body.

    Expanded objects become ids again: a charge alone has a dozen places for addresses.
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
