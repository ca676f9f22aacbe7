"""Errors that version 0.1.0 pickled are read, as a job queue may hold them."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path

import pytest

import async_refunds
from async_refunds import APIStatusError, OutcomeUnknownError, RefundsError

PICKLES: dict[str, str] = json.loads(
    (Path(__file__).parents[1] / "support" / "errors_0_1_0.json").read_text()
)


@pytest.mark.parametrize("name", PICKLES)
def test_error_that_version_0_1_0_pickled_is_read(name: str) -> None:
    error = pickle.loads(base64.b64decode(PICKLES[name]))  # noqa: S301 - our own bytes
    assert type(error) is getattr(async_refunds, name)
    assert isinstance(error, RefundsError)
    assert str(error) == error.message == f"the message of {name}"
    assert error.idempotency_key == "key"
    (attempt,) = error.attempts
    assert (attempt.status, attempt.request_id, attempt.seconds) == (503, "req_1", 0.25)
    assert attempt.stopped is error.retries_stopped_by is None
    if isinstance(error, APIStatusError):
        assert (error.status_code, error.code, error.param) == (400, "c", "p")
    if isinstance(error, OutcomeUnknownError):
        assert error.refund is not None
        assert error.refund.last_response.idempotency_key == "key"


def test_every_error_of_that_version_is_there() -> None:
    assert len(PICKLES) == 14
