"""Cancel many refunds, each account at its own pace, and account for every id."""

from .leases import Leases
from .runner import Batch, Progress, cancel_many

__all__ = ["Batch", "Leases", "Progress", "cancel_many"]
