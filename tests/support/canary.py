"""Canaries for keys, secrets and addresses, and all the places where one may show."""

from __future__ import annotations

import copy
import logging
import pickle
import pprint
import traceback
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk_live_CANARYofTheKey51"
SECRET = "whsec_CANARYofTheEndpoint51"
EMAIL = "canary.of@the-customer.example"


def spelled(text: str) -> bool:
    """Tell whether a text shows one of the canaries."""
    return any(each in text for each in ("CANARY", "canaryof", "canary.of"))


class Lines(logging.Handler):
    """Every log record of every logger, with all that is in it."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [record.getMessage(), repr(vars(record)), self.format(record)]


def printed(error: BaseException, *, besides: str) -> Iterator[str]:
    """Yield all that an error gives away, but for what the frames of a file hold."""
    yield from (str(error), repr(error), repr(error.args), pprint.pformat(vars(error)))
    yield repr(pickle.dumps(error))
    yield repr(vars(copy.deepcopy(error)))
    yield from traceback_of(error, besides=besides)
    console = Console(file=StringIO(), width=200)
    console.print(error)
    console.print(vars(error))
    assert isinstance(console.file, StringIO)
    yield console.file.getvalue()


def traceback_of(error: BaseException, *, besides: str) -> Iterator[str]:
    """Yield each frame with its locals, but for those of a file, and what is linked."""
    tree: traceback.TracebackException | None
    tree = traceback.TracebackException.from_exception(error, capture_locals=True)
    while tree is not None:
        for frame in tree.stack:
            # The frames of a test hold the canaries by design.
            if frame.filename != besides:
                yield f"{frame.filename}:{frame.lineno} {frame.locals}"
        tree = tree.__cause__ or tree.__context__
    linked: BaseException | None = error
    while linked is not None:
        yield repr(linked)
        linked = linked.__cause__ or linked.__context__
