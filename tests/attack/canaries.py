"""The secrets of a case, in the spellings that they travel in, and the search for them.

The API key and the local part of every address hold a word that nothing else holds.
"""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk_test_CanaryKey4eC39HqLyjWDarjtT1zdp7dc"
_WORDS = ("CanaryKey", "canary.mail")

# What stands for the @ of an address in JSON, HTML and URLs, with and without padding,
# escaped once and twice.
_SIGNS = (
    "@",
    "%40",
    "&#64;",
    "&#x40;",
    "&#X0040;",
    "&#00064;",
    "&commat;",
    "\\u0040",
    "\\\\u0040",
    "\\x40",
    "%2540",
    "%252540",
    "&amp;#64;",
    "&amp;#x40;",
    "&amp;commat;",
    "\uff20",
    "\ufe6b",
    "\\u{40}",
    "&#64",
    "=40",
)
SPELLINGS = len(_SIGNS)


def address(spelling: int) -> str:
    """Return a customer's address in one of the spellings."""
    return f"canary.mail{_SIGNS[spelling % SPELLINGS]}example.com"


_SHOWN: dict[str, Callable[[BaseException], str]] = {
    "str": str,
    "repr": repr,
    "vars": lambda each: repr(vars(each)),
    "pickle": lambda each: pickle.dumps(each).decode("latin-1"),
    "copy": lambda each: repr(vars(copy.deepcopy(each))),
}


def leaks(error: BaseException, *, deep: bool) -> list[str]:
    """Return where an error shows a secret; ``deep`` looks at the locals too."""
    texts: dict[str, str] = {}
    for name, show in _SHOWN.items():
        try:
            texts[name] = show(error)
        except Exception as failed:  # noqa: BLE001 - whatever it is, it is a finding
            return [f"{name} fails: {failed!r}"]
    if deep:
        found = traceback.TracebackException.from_exception(error, capture_locals=True)
        # The attack's own frames hold the secrets by right.
        for stack in _stacks(found):
            for frame in stack:
                if "tests/attack" not in frame.filename:
                    where = f"locals of {frame.name}"
                    texts[where] = repr(frame.locals)
        texts["traceback"] = "".join(traceback.format_exception(error))
    return [name for name, text in texts.items() if shows_secret(text)]


def _stacks(found: traceback.TracebackException) -> list[traceback.StackSummary]:
    stacks = [found.stack]
    for cause in (found.__cause__, found.__context__):
        if cause is not None:
            stacks += _stacks(cause)
    return stacks


def shows_secret(text: str) -> bool:
    """Tell whether a text holds the API key or an address."""
    return any(word in text for word in _WORDS)
