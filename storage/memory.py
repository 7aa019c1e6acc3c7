"""How much memory this process holds, and the most it has held since it was last asked to forget."""

import resource
import sys
from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "5"  # what Linux takes to mean: let the peak be what is resident now


def forget_peak() -> None:
    """Lets the peak be counted anew, where the system can; elsewhere it stays that of the whole process."""
    try:
        _FORGET.write_text(_PEAK)
    except OSError:
        return


def peak_bytes() -> int:
    """The most bytes that were resident since `forget_peak`."""
    found = _status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Bytes that are resident now; the peak where the system does not say."""
    found = _status("VmRSS")
    return peak_bytes() if found is None else found


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
