"""One awaited method of the client: `Call`, and what the calls of a client share."""

from .call import Call
from .context import CallContext, CallObserver, InProgress, RetryGate

__all__ = ["Call", "CallContext", "CallObserver", "InProgress", "RetryGate"]
