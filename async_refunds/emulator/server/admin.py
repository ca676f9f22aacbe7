"""The admin API under ``/_emulator``: what Stripe, banks and time do by themselves.

JSON over HTTP, without authentication: every client that reaches the emulator may
use it, except other pages in a browser (`browsers`). ``/_emulator/ui`` is a page that
does.
"""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from .browsers import is_loopback, refusal
from .ui import asset

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_refunds.emulator.api.request import RawRequest

ADMIN = "/_emulator"

_NAMES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
}

_JSON = {"Content-Type": "application/json"}
# A browser takes nothing for what it is not, and shows it to no other page.
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class AdminAnswer(NamedTuple):
    """What to answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class AdminApi:
    """Calls functions over HTTP.

    Args:
        operations: By method and path below ``/_emulator``, such as ``POST /clock``,
            the function to call. The JSON body has the fields that the function has
            parameters; a positional-only parameter takes the whole body. A path such
            as ``/refunds/{id}`` calls it with the id instead. What the function
            returns is the answer; `ValueError` is answered with 400, and `KeyError`,
            of a function with an id, with 404.
    """

    def __init__(self, operations: Mapping[str, Callable[..., object]]) -> None:
        self._operations = operations

    def answer(self, raw: RawRequest) -> AdminAnswer:
        """Return the answer of a request: JSON, or a file of the page."""
        refused = refusal(raw.headers)
        if refused is not None:
            return _json(403, _error(refused))
        file = asset(raw.path.removeprefix(f"{ADMIN}/"))
        if file is not None and raw.method == "GET":
            if not is_loopback(raw.headers):
                where = f"http://127.0.0.1:PORT{ADMIN}/ui on its machine"
                return _json(403, _error(f"the page is at {where} only"))
            return AdminAnswer(200, file.body, {**_SAFE, **file.headers})
        answer: object
        if raw.malformed is not None:
            status, answer = 400, _error(raw.malformed.message)
        else:
            try:
                status, answer = self._call(raw)
            except ValueError as error:  # those of msgspec are among them
                status, answer = 400, _error(str(error))
        return _json(status, answer)

    def _call(self, raw: RawRequest) -> tuple[int, object]:
        path = raw.path.removeprefix(ADMIN).rstrip("/")
        operation = self._operations.get(f"{raw.method} {path}")
        if operation is not None:
            return 200, _call(operation, raw.body)
        if raw.method == "GET" and not path:
            endpoints = {
                name.replace(" ", f" {ADMIN}"): {} if "{id}" in name else _fields(each)
                for name, each in self._operations.items()
            }
            return 200, {"endpoints": endpoints}
        folder, _, rest = path.removeprefix("/").partition("/")
        item, slash, action = rest.partition("/")
        operation = self._operations.get(
            f"{raw.method} /{folder}/{{id}}{slash}{action}"
        )
        if operation is None or not item:
            where = f"{raw.method} {raw.path}"
            return 404, _error(f"there is no {where}; GET {ADMIN} lists what there is")
        try:
            return 200, operation(item)
        except KeyError:
            return 404, _error(f"there is no {item!r} in /{folder}")


def _json(status: int, answer: object) -> AdminAnswer:
    return AdminAnswer(status, msgspec.json.encode(answer), {**_SAFE, **_JSON})


def _error(message: str) -> dict[str, str]:
    return {"error": message}


def _fields(operation: Callable[..., object]) -> dict[str, str]:
    """Return the fields of the body that a function takes: the type, the default."""
    parameters = inspect.signature(operation).parameters.values()
    types = get_type_hints(operation) if parameters else {}
    shown: dict[str, str] = {}
    for parameter in parameters:
        kind = types[parameter.name]
        if parameter.kind is parameter.POSITIONAL_ONLY:
            (fields,) = (each for each in get_args(kind) if each is not NoneType)
            return _fields(fields)
        shown[parameter.name] = _name_of(kind)
        if parameter.default is not parameter.empty:
            default = msgspec.json.encode(parameter.default).decode()
            shown[parameter.name] += f" = {default}"
    return shown


def _name_of(kind: Any) -> str:  # noqa: ANN401 - any type that JSON has
    """Return how JSON calls a type."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_name_of, parts))
    if len(parts) == 1:
        return f"array of {_name_of(parts[0])}"
    return _NAMES.get(kind, "object")


def _call(operation: Callable[..., object], body: bytes) -> object:
    """Call a function with the parameters that a body gives."""
    parameters = inspect.signature(operation).parameters.values()
    if not parameters:
        return operation()
    types = get_type_hints(operation, include_extras=True)
    body = body or b"{}"
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return operation(msgspec.json.decode(body, type=types[parameter.name]))
    fields: list[Any] = [
        (parameter.name, types[parameter.name])
        if parameter.default is parameter.empty
        else (parameter.name, types[parameter.name], parameter.default)
        for parameter in parameters
    ]
    kind = msgspec.defstruct("Body", fields, kw_only=True, forbid_unknown_fields=True)
    return operation(**msgspec.structs.asdict(msgspec.json.decode(body, type=kind)))
