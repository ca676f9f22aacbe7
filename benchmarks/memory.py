"""What a process holds of the machine's memory, as it can tell of itself."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """Return the most bytes that this process had resident at once."""
    if _STATUS.exists():
        # getrusage(2) of a new process begins with what its parent had when it forked.
        return _status("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes everywhere but on macOS.
    return most if sys.platform == "darwin" else most * 1024


def resident() -> int:
    """Return the bytes that are resident now; garbage is collected before."""
    gc.collect()
    return _status("VmRSS") if _STATUS.exists() else peak()


def _status(name: str) -> int:
    # proc_pid_status(5): lines as "VmHWM:     44820 kB".
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in {_STATUS}")
