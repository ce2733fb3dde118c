"""How much memory this process takes, and how much an opened model holds on a GPU."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snl_runtime.cuda import api as cuda_api
from snl_runtime.errors import BackendUnavailableError

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector

_STATUS = Path("/proc/self/status")
_ON_CUDA = re.compile(r"cuda(?::(\d+))?\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """What the operating system counts for this process.

    Attributes:
        resident_bytes: In physical memory now, the files that libraries were loaded from included.
        peak_bytes: The most that was ever resident.
    """

    resident_bytes: int
    peak_bytes: int


def process_memory() -> ProcessMemory | None:
    """Return the memory of this process; None where the system does not state both figures in ``/proc`` (anything but Linux)."""
    with contextlib.suppress(OSError):
        fields = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE))
        if "VmRSS" in fields and "VmHWM" in fields:
            return ProcessMemory(resident_bytes=int(fields["VmRSS"]) * 1024, peak_bytes=int(fields["VmHWM"]) * 1024)
    return None


def close_and_count_device_bytes(detector: "SnlDetector") -> int | None:
    """Close a detector and return how many bytes of its GPU become free; None if it works on no CUDA device or CUDA cannot be asked.

    The driver counts all processes together: what another one takes or frees in that moment falls into the figure. The CUDA context itself, some
    hundred megabytes for each process, stays and is not in it.
    """
    found = _ON_CUDA.match(detector.device)
    api = None
    with contextlib.suppress(BackendUnavailableError):
        api = cuda_api.load_cuda() if found else None
    if found is None or api is None:
        detector.close()
        return None
    with cuda_api.device_scope(api, int(found[1] or 0)):
        before = api.free_bytes()
        detector.close()
        return max(0, api.free_bytes() - before)
