"""What the machine is: versions, GPU, its memory and its peak bandwidth."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from table import CheckFailedError, NotRunError

import snl_runtime
from snl_runtime.cuda.api import describe_device

_PACKAGES = ("snl-edge", "numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings")
_JETSON_RELEASE = Path("/etc/nv_tegra_release")
_SANITIZER_STATUS = 86


def versions() -> str:
    """Return interpreter, system and packages; needs no GPU."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    jetson = f", {_JETSON_RELEASE.read_text(encoding='utf-8').splitlines()[0]}" if _JETSON_RELEASE.is_file() else ""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}{jetson}, {', '.join(found)}"


def gpu() -> str:
    """Return name, driver, memory and peak bandwidth."""
    device = describe_device()
    free, total = memory_bytes()
    return (
        f"{device.name}, SM{device.compute_capability}, driver for CUDA {device.driver_version}, {total / 2**30:.1f} GiB ({free / 2**30:.1f} free), "
        f"peak bandwidth {peak_bytes_per_s() / 1e9:.0f} GB/s"
    )


def memory_bytes() -> tuple[int, int]:
    """Return free and all memory of the current device."""
    free, total = _call("cudaMemGetInfo")
    return int(free), int(total)


def peak_bytes_per_s() -> float:
    """Return memory clock times bus width, two transfers a clock; what the driver states, not a measurement."""
    runtime = _runtime()
    attributes = runtime.cudaDeviceAttr
    (clock_khz,) = _call("cudaDeviceGetAttribute", attributes.cudaDevAttrMemoryClockRate, 0)
    (width_bits,) = _call("cudaDeviceGetAttribute", attributes.cudaDevAttrGlobalMemoryBusWidth, 0)
    return 2.0 * int(clock_khz) * 1e3 * int(width_bits) / 8


def sanitize() -> str:
    """Run the kernel check under NVIDIA's memory checker."""
    describe_device()  # raises where there is no GPU
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise NotRunError("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    script = str(Path(__file__).with_name("run.py"))
    # Errors of API calls are exceptions of ours already; cuda-bindings makes dozens while it looks for functions of the driver.
    options = ["--error-exitcode", str(_SANITIZER_STATUS), "--leak-check", "full", "--report-api-errors", "no"]
    command = [program, *options, sys.executable, script, "--only", "kernels"]
    path = os.pathsep.join(filter(None, (str(Path(snl_runtime.__file__).parents[1]), os.environ.get("PYTHONPATH"))))  # from a checkout too
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env={**os.environ, "PYTHONPATH": path})
    summary = next((line for line in reversed(done.stdout.splitlines()) if "ERROR SUMMARY" in line), "no summary").strip("= ")
    if done.returncode == _SANITIZER_STATUS or "| passed: " not in done.stdout:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()[-1]
        raise CheckFailedError(f"exit status {done.returncode}, {summary}; last line: {said[:200]}")
    return summary


def _call(name: str, *arguments: Any) -> tuple[Any, ...]:
    describe_device()  # also makes the primary context current
    status, *values = getattr(_runtime(), name)(*arguments)
    if int(status) != 0:
        raise CheckFailedError(f"{name} answers {status}")
    return tuple(values)


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise NotRunError(f"the package cuda-bindings is missing ({error})") from error
    return runtime
