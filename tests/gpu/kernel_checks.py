"""The CUDA kernels against their reference implementations in NumPy, on whatever GPU is handed in, and under NVIDIA's memory checker."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from snl_runtime.cuda.api import device_scope
from snl_runtime.cuda.resources import CudaStream
from snl_runtime.gpu.checks import check_stages, check_views
from snl_runtime.gpu.kernels import load_kernels
from snl_runtime.gpu.pipeline import DevicePostprocess, DevicePreprocess

ROOT = Path(__file__).parents[2]
CHANNELS = {"bgr": 3, "rgb": 3, "bgra": 4, "rgba": 4, "gray": 0}
SANITIZER_STATUS = 86


def make_frame(size_hw, color, *, dtype=np.uint8):
    """Return noise, which shows an error of any pixel, with the frame's first and last rows white and black."""
    shape = (*size_hw, CHANNELS[color]) if CHANNELS[color] else size_hw
    most = np.iinfo(dtype).max
    frame = np.random.default_rng(0).integers(0, most + 1, shape).astype(dtype)
    frame[: size_hw[0] // 5], frame[-(size_hw[0] // 5) :] = most, 0
    return frame


def check_kernels(api, size_hw, frames):
    """Compare input, views, statistics, map, regions, normalization map and images with what the host computes.

    Args:
        api: CUDA; everything happens on its first device.
        size_hw: Network size.
        frames: (frame, color, region of interest or None), see :func:`snl_runtime.gpu.checks.check_stages`.

    Raises:
        BackendError: If anything differs by more than is allowed.
    """
    with (
        device_scope(api, 0),
        load_kernels(api) as kernels,
        CudaStream(api) as stream,
        DevicePreprocess(api, kernels, stream, size_hw) as before,
        DevicePostprocess(api, kernels, stream, size_hw) as after,
    ):
        check_stages(api, stream, before, after, size_hw, frames=frames)
        check_views(api, kernels, stream, size_hw)


def sanitize(program, tests):
    """Run tests in another process under ``compute-sanitizer`` and fail with what it said, unless they passed and it saw no error."""
    # Errors of API calls are exceptions of ours already; cuda-bindings makes dozens while it looks for functions of the driver.
    options = ["--error-exitcode", str(SANITIZER_STATUS), "--leak-check", "full", "--report-api-errors", "no"]
    command = [program, *options, sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT)
    summary = next((line for line in reversed(done.stdout.splitlines()) if "ERROR SUMMARY" in line), "no summary").strip("= ")
    said = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()[-1]
    assert done.returncode == 0, f"exit status {done.returncode}, {summary}; last line: {said}"
    assert " passed" in done.stdout, f"no test ran; last line: {said}"
    assert summary.startswith("ERROR SUMMARY: 0 errors"), summary
