"""Which backend runs a model when nobody names one.

The rule reads the file's suffix, what is installed, and the model's newest decision, and never a clock, so that a line gets the same backend at
every start. ``.trt`` runs on TensorRT. ``.onnx`` on a CPU runs where that decision was calibrated; without one on OpenVINO, which is installed by
choice and is the quicker of the two on x86, elsewhere on ONNX Runtime first. What is not installed is left out. On any other device ``.onnx`` runs on
ONNX Runtime.
"""

import platform
from collections.abc import Callable
from pathlib import Path

from snl_runtime.errors import ConfigError

_BY_SUFFIX = {".onnx": "onnxruntime", ".trt": "tensorrt"}
_X86 = ("x86_64", "amd64")
"""What ``platform.machine`` calls the processors on which OpenVINO was measured to be quicker than ONNX Runtime."""


def choose_backend(path: Path, *, device: str | None, calibrated_on: str | None, is_installed: Callable[[str], bool]) -> str:
    """Return the name of a backend that runs the file.

    Args:
        path: The model file.
        device: What the caller asked for; None and ``cpu``, in any case, are a CPU.
        calibrated_on: Backend of the newest decision on this file, None without one.
        is_installed: Whether the packages of a built-in backend are there.

    Raises:
        ConfigError: If no backend runs files of that suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise ConfigError(f"no backend runs '{suffix}' files ({path.name}); expected {' or '.join(_BY_SUFFIX)}")
    if suffix != ".onnx" or (device or "cpu").lower() != "cpu":
        return _BY_SUFFIX[suffix]
    preferred = ("openvino", "onnxruntime") if platform.machine().lower() in _X86 else ("onnxruntime", "openvino")
    installed = [name for name in preferred if is_installed(name)]
    if calibrated_on in installed:
        return calibrated_on
    return installed[0] if installed else _BY_SUFFIX[suffix]
