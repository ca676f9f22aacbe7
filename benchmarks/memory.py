"""What a process holds of the machine's memory, as it can tell of itself.

Nothing is imported that a process under measurement might not have anyway.
"""

from __future__ import annotations

import gc
import resource
import sys


def peak() -> int:
    """Return the most bytes that this process had resident at once."""
    if sys.platform == "linux":
        # getrusage(2) of a new process begins with what its parent had when it forked.
        return _status("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def resident() -> int:
    """Return the bytes that are resident when garbage is collected.

    Where the system does not tell (elsewhere than on Linux) it is the peak.
    """
    gc.collect()
    return _status("VmRSS") if sys.platform == "linux" else peak()


def _status(name: str) -> int:
    # proc_pid_status(5): lines as "VmHWM:     44820 kB".
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - see above
        for line in lines:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
