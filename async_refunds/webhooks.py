"""Webhooks: check that an event is Stripe's, and decode the refund in it.

An event closes what a call left unknown if it shows the refund of the call, in the same
account, as canceled. With the idempotency key of that call, which each event names that
a request has caused, it was that call. The key alone proves nothing: each account has
keys of its own, and another request may have had the same
(https://docs.stripe.com/webhooks, https://docs.stripe.com/api/events/object).
"""

from __future__ import annotations

import hmac
import re
import time
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .errors import SignatureVerificationError, WebhookError
from .models import Refund  # noqa: TC001 - a struct's field
from .protocol import validation
from .protocol.decoding import decode_refund
from .protocol.redaction import SecretBytes, SecretStr, contains_key, excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable

# charge.refund.updated is the older name of refund.updated for a refund of a charge.
_TYPES = frozenset(
    {"charge.refund.updated", "refund.created", "refund.failed", "refund.updated"}
)
_SCHEME = "v1"
# As much of an event's type as an error may show.
_TYPE = re.compile(r"[a-z0-9_.]{1,100}")


class RefundEvent(msgspec.Struct, frozen=True):
    """What Stripe tells of a refund by itself."""

    id: str
    """``evt_...``. Stripe may send the same event several times, in any order."""
    type: Literal[
        "charge.refund.updated", "refund.created", "refund.failed", "refund.updated"
    ]
    created: int
    """Unix time in seconds."""
    livemode: bool
    refund: Refund
    """The refund as it was then. Its e-mail addresses are not removed."""
    account: str | None
    """The connected account that the refund is of; ``None`` for your own."""
    idempotency_key: str | None
    """Of the request that caused the event, such as a cancel of this package; ``None``
    if there was no request, or none with a key."""
    request_id: str | None
    """``req_...`` of that request."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"RefundEvent({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Other programs may name a request after a customer.
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [
            (name, excerpt(value) if isinstance(value, str) else value)
            for name, value in fields
        ]


def refund_event(
    body: bytes | str,
    signature: str | None,
    secrets: str | Iterable[str],
    tolerance: float = 300.0,
    *,
    now: float | None = None,
) -> RefundEvent:
    """Check the signature of a webhook's body and return the refund event in it.

    Args:
        body: The body of the request as it arrived, not parsed and written again.
        signature: The ``Stripe-Signature`` header, or ``None`` if it is missing.
        secrets: The endpoint's signing secret (``whsec_...``), or several while it is
            being rotated, or for an endpoint of your account and one of Connect.
        tolerance: Seconds that the signature may be old, or ahead of this clock.
            Stripe's own library accepts any time in the future.
        now: Unix time in seconds, in place of the clock's.

    Raises:
        SignatureVerificationError: No secret made this signature for this body, or it
            is too old, or of the future. Answer 400.
        WebhookError: Stripe sent it, but it is no event of a refund. ``event_type``
            says what it is; answer 200, so that Stripe does not send it again.
        TypeError, ValueError: A bad argument, such as an empty secret.
    """
    # First of all, so that no traceback from here on can show a secret or an address.
    hidden_body, hidden_secrets = _hidden_body(body), _hidden_secrets(secrets)
    del body, secrets
    if signature is not None and not isinstance(signature, str):
        raise TypeError(
            f"signature must be the text of the Stripe-Signature header, not "
            f"{type(signature).__name__}"
        )
    raw = _checked_body(hidden_body)
    _verify(
        raw,
        signature,
        _checked_secrets(hidden_secrets),
        validation.seconds("tolerance", tolerance),
        time.time() if now is None else now,
    )
    return _decode(raw)


def _verify(
    body: SecretBytes,
    signature: str | None,
    secrets: list[SecretStr],
    tolerance: float,
    now: float,
) -> None:
    """Check the signature as https://docs.stripe.com/webhooks#verify-manually does."""
    if not signature:
        raise SignatureVerificationError("the webhook has no Stripe-Signature header")
    try:
        items = [item.split("=", 2) for item in signature.split(",")]
        timestamp = int(next(item[1] for item in items if item[0] == "t"))
        given = [item[1] for item in items if item[0] == _SCHEME]
    except (ValueError, LookupError, StopIteration):
        raise SignatureVerificationError(
            "the webhook's Stripe-Signature header cannot be read"
        ) from None
    if not any(_is_signed_with(secret, timestamp, body, given) for secret in secrets):
        raise SignatureVerificationError(
            "the webhook was not signed with any of the secrets, or its body is not "
            "the one that was signed"
        )
    if abs(now - timestamp) > tolerance:
        when = "old" if timestamp < now else "in the future"
        raise SignatureVerificationError(
            f"the webhook was signed {abs(now - timestamp):.0f} s {when}: more than "
            f"the tolerance of {tolerance:g} s"
        )


def _is_signed_with(
    secret: SecretStr, timestamp: int, body: SecretBytes, given: list[str]
) -> bool:
    # Neither the bytes of the secret nor those that are signed get a name.
    digest = hmac.digest(secret.encode(), b"%d.%b" % (timestamp, body), "sha256")
    expected = digest.hex().encode()
    for each in given:
        # It takes the same time wherever the texts differ.
        if hmac.compare_digest(expected, each.encode(errors="replace")):
            return True
    return False


class _Cause(msgspec.Struct):
    id: str | None = None
    idempotency_key: str | None = None


class _Data(msgspec.Struct):
    object: msgspec.Raw


class _Event(msgspec.Struct):
    object: Literal["event"]
    id: str
    type: str
    created: int
    livemode: bool
    data: _Data
    account: str | None = None
    request: _Cause | str | None = None
    """A plain id in API versions before 2017-05-25."""


_EVENT = msgspec.json.Decoder(_Event)


def _decode(body: SecretBytes) -> RefundEvent:
    try:
        event = _EVENT.decode(body)
    except (ValueError, RecursionError):
        # The text of the error may quote the body.
        raise WebhookError("the webhook is signed, but is not an event") from None
    if event.type not in _TYPES:
        known = _TYPE.fullmatch(event.type) and not contains_key(event.type)
        shown = event.type if known else "of an unknown type"
        del event  # a traceback may show it
        raise WebhookError(
            f"the webhook is not a refund event, but {shown}", event_type=shown
        )
    refund = decode_refund(event.data.object)
    if refund is None:
        kind = event.type
        del event  # as above
        raise WebhookError(
            f"the webhook's {kind} has no refund that can be read", event_type=kind
        )
    cause = event.request
    if not isinstance(cause, _Cause):
        cause = _Cause(id=cause)
    return RefundEvent(
        id=event.id,
        type=event.type,  # type: ignore[arg-type]  # one of _TYPES, which are the same
        created=event.created,
        livemode=event.livemode,
        refund=refund,
        account=event.account,
        idempotency_key=cause.idempotency_key,
        request_id=cause.id,
    )


def _hidden_body(body: object) -> SecretBytes | type:
    """Return a body that no repr shows; of what is none, only its type."""
    if isinstance(body, str):
        try:
            return SecretBytes(body.encode(errors="surrogateescape"))
        except UnicodeEncodeError:  # nobody signed that
            return SecretBytes(body.encode(errors="replace"))
    return SecretBytes(body) if isinstance(body, (bytes, bytearray)) else type(body)


def _checked_body(body: SecretBytes | type) -> SecretBytes:
    if isinstance(body, SecretBytes):
        return body
    raise TypeError(
        f"body must be the bytes of the request as they arrived, not {body.__name__}: "
        "another way to write the same JSON has another signature"
    )


def _hidden_secrets(secrets: object) -> list[SecretStr | None] | None:
    """Return secrets that no repr shows; ``None`` stands for what is no text."""
    if isinstance(secrets, str):
        return [SecretStr(secrets)]
    try:
        found: list[object] = list(secrets)  # type: ignore[call-overload]  # any iterable
    except TypeError:
        return None
    return [SecretStr(each) if isinstance(each, str) else None for each in found]


def _checked_secrets(secrets: list[SecretStr | None] | None) -> list[SecretStr]:
    if secrets is None:
        raise TypeError("secrets must be a str or several")
    checked: list[SecretStr] = []
    for secret in secrets:
        if secret is None:
            raise TypeError("secrets must be signing secrets (whsec_...)")
        if not secret.strip():
            raise ValueError("secrets has an empty one: give the endpoint's whsec_...")
        # The error of its encoding would hold it.
        if any("\ud800" <= letter <= "\udfff" for letter in secret):
            raise ValueError("secrets has one that is no text: give the whsec_...")
        if secret.startswith(("sk_", "rk_", "pk_")):
            raise ValueError("secrets has an API key: give the endpoint's whsec_...")
        checked.append(secret)
    if not checked:
        raise ValueError("secrets is empty: give the endpoint's whsec_...")
    return checked
