"""What an exception on the way to a verdict says about the frames that it met."""

import contextlib
import logging
from collections.abc import Iterator

from snl_runtime.detector.inspection import Inspection
from snl_runtime.errors import BackendError, BackendTimeoutError, DetectorClosedError, FrameError, GoldenSampleError
from snl_runtime.verdict.ruling import Ruling, error

logger = logging.getLogger(__name__)


class BusyError(Exception):
    """The backend is taken; becomes a verdict, never leaves the detector."""


@contextlib.contextmanager
def explaining(*inspections: Inspection) -> Iterator[None]:
    """Turn an exception of the block into the ruling on the frames, which may be any objects: a bug must stop the part, not the line.

    Raises:
        DetectorClosedError: If the block did; that is the caller's mistake and no frame's.
    """
    try:
        yield
    except DetectorClosedError:
        raise
    except Exception as fault:  # noqa: BLE001
        for inspection in inspections:
            inspection.ruling = _explain(fault)


def _explain(fault: Exception) -> Ruling:
    if isinstance(fault, FrameError):
        return error(fault.reason_code, str(fault))
    codes = {BusyError: "backend_busy", BackendTimeoutError: "timeout", GoldenSampleError: "golden_mismatch"}
    for kind, code in codes.items():
        if isinstance(fault, kind):
            return error(code, str(fault))
    if isinstance(fault, BackendError):
        return error("backend_error", str(fault))
    logger.error("a frame could not be inspected", exc_info=fault)
    return error("internal_error", f"{type(fault).__name__} while inspecting the frame; the log has the traceback")
