"""JSON: an object per line, Stripe's list answer, arrays, and webhook events."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, cast

import msgspec

from async_refunds.protocol.redaction import scrub

from .list_rows import (
    ACCOUNT_NAMES,
    ID_NAMES,
    BadLine,
    UnreadableError,
    checked,
    looks_like_account,
    plain_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_refunds.results import CancelRequest

JSON_LINES = (".jsonl", ".ndjson")
"""Endings of files that have an object per line, whatever their first line is."""


_OF_A_LIST = frozenset({"data", "has_more", "url", "count", "total_count"})
"""The keys of a list that scripts wrote without its kind. Any other one could name an
account."""


def entries_of_json(
    lines: Iterator[str], *, one_per_line: bool
) -> Iterator[CancelRequest | BadLine]:
    """Yield a `CancelRequest` for each refund, a `BadLine` for each other entry.

    Args:
        lines: The text.
        one_per_line: Whether each line is a value. Otherwise the first one decides.

    Raises:
        UnreadableError: It is not JSON, or ends too early.
    """
    before: list[str] = []
    for line in lines:
        before.append(line)
        if line.strip():
            break
    else:
        raise UnreadableError("is empty")
    if one_per_line or _is_whole(before[-1]):
        return _from_lines(chain(before, lines))
    return _from_document("".join(chain(before, lines)))


def _is_whole(line: str) -> bool:
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _from_lines(lines: Iterator[str]) -> Iterator[CancelRequest | BadLine]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is not a JSON object of a refund: {scrub(str(error))}"
        else:
            yield from _from_value(number, value)


def _from_document(text: str) -> Iterator[CancelRequest | BadLine]:
    """Yield the refunds of JSON over many lines; one value may follow the other."""
    decoder, place = json.JSONDecoder(), 0
    while rest := text[place:].lstrip():
        place = len(text) - len(rest)
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"is not JSON ({scrub(str(error))})") from error
        line = text.count("\n", 0, place) + 1
        yield from _from_value(line, value)


def _from_value(number: int, value: object) -> Iterator[CancelRequest | BadLine]:
    if isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _from_value(number, each)
    elif isinstance(value, str):
        yield checked(number, value.strip(), "")
    elif not isinstance(value, dict):
        yield number, "is not a JSON object of a refund"
    else:
        yield from _from_dict(number, cast("dict[str, object]", value))


def _from_dict(
    number: int, value: dict[str, object]
) -> Iterator[CancelRequest | BadLine]:
    kind, data = value.get("object"), value.get("data")
    if kind in ("list", "search_result") or (data and value.keys() <= _OF_A_LIST):
        yield from _from_value(number, data)
    elif kind == "event":
        refund = cast("dict[str, object]", data if isinstance(data, dict) else {})
        found = refund.get("object")
        if isinstance(found, dict):
            account = {"stripe_account": value.get("account")}
            found = {**cast("dict[str, object]", found), **account}
        yield from _from_value(number, found)
    else:
        yield _from_object(number, value)


def _from_object(number: int, value: dict[str, object]) -> CancelRequest | BadLine:
    by_name = {plain_name(key): (key, each) for key, each in value.items()}
    refund_id: object = None
    for name in ID_NAMES:
        _, refund_id = by_name.get(name, ("", None))
        if refund_id is not None:
            break
    if refund_id is None:
        return number, "has neither refund_id nor id"
    accounts: dict[str, str] = {}
    for name, (key, each) in by_name.items():
        known = name in ACCOUNT_NAMES
        if known and each is not None and not isinstance(each, str):
            return number, f"{scrub(ascii(key))} is not an account id"
        if isinstance(each, str) and (known or each.startswith("acct_")):
            accounts[key] = each.strip()
        elif each and looks_like_account(name):
            return (
                number,
                f"{scrub(ascii(key))} may name an account: call it stripe_account",
            )
    if len({*accounts.values()} - {""}) > 1:
        return number, "names more than one account"
    if not isinstance(refund_id, str):
        return number, "has an id that is not text"
    return checked(number, refund_id.strip(), "".join({*accounts.values()} - {""}))
