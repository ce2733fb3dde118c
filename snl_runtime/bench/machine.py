"""What a figure must stand beside: processor, system and versions."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Sequence

PACKAGES = (
    "snl-edge", "numpy", "opencv-python-headless", "opencv-python", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx",
)  # fmt: skip
"""What takes part in a verdict."""


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the version of each package that is installed, in the order of ``packages``."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def processor() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - no file of the user's
        for line in lines:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
