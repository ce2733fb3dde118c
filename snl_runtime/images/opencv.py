"""OpenCV, imported on first use, because a plain install and ``-h`` work without it."""

from types import ModuleType

from snl_runtime.errors import BackendUnavailableError


def load_opencv() -> ModuleType:
    """Return the module ``cv2``.

    Raises:
        BackendUnavailableError: If no OpenCV package is installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise BackendUnavailableError(
            f"reading and resizing images needs OpenCV ({error}): pip install 'snl-edge[cpu]' (or gpu, openvino, gui)"
        ) from error
    module: ModuleType = cv2
    return module
