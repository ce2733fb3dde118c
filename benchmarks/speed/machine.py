"""What a figure must stand beside: versions, GPU, and the peak that the driver states."""

import platform
from pathlib import Path
from typing import Any

from snl_runtime.bench import machine
from snl_runtime.cuda.api import CudaApi
from snl_runtime.errors import BackendUnavailableError, InferenceError

PACKAGES = (*machine.PACKAGES, "cuda-bindings", "torch")
_JETSON_RELEASE = Path("/etc/nv_tegra_release")


def versions() -> str:
    """Return interpreter, system and packages; needs no GPU."""
    found = [f"{name} {version}" for name, version in machine.installed_versions(PACKAGES).items()]
    jetson = f", {_JETSON_RELEASE.read_text(encoding='utf-8').splitlines()[0]}" if _JETSON_RELEASE.is_file() else ""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}{jetson}, {', '.join(found)}"


def describe_gpu(api: CudaApi) -> str:
    """Return name, compute capability and driver of the first GPU.

    Raises:
        BackendUnavailableError: If the driver or the GPU is missing.
    """
    api.device_count()
    device = api.describe(0)
    return f"{device.name}, SM{device.compute_capability}, driver for CUDA {device.driver_version}"


def peak_bytes_per_s() -> float:
    """Return memory clock times bus width, two transfers a clock, of the first GPU; what the driver states, not a measurement.

    Raises:
        BackendUnavailableError: If the package cuda-bindings is missing.
        InferenceError: If the driver does not say.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailableError(f"the package cuda-bindings is missing ({error}): pip install 'snl-edge[gpu]'") from error
    clock_khz = _attribute(runtime, runtime.cudaDeviceAttr.cudaDevAttrMemoryClockRate)
    width_bits = _attribute(runtime, runtime.cudaDeviceAttr.cudaDevAttrGlobalMemoryBusWidth)
    return 2.0 * clock_khz * 1e3 * width_bits / 8


def _attribute(runtime: Any, attribute: Any) -> int:
    status, value = runtime.cudaDeviceGetAttribute(attribute, 0)
    if int(status) != 0 or not value:
        raise InferenceError(f"the driver does not state {attribute.name}: {status}")
    return int(value)
