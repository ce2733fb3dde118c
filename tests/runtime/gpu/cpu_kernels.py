"""The kernels' own source compiled as C++ for the CPU, and launched with the arguments that the GPU would get."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from snl_runtime.gpu.kernels import KERNEL_NAMES, kernel_source

SHIM = Path(__file__).with_name("cuda_on_cpu.h")
GUARD_BYTES = 256
GUARD = 0xA5
# A GPU contracts a * b + c into one rounding, a CPU without FMA does not: the reference implementations must agree with both.
VARIANTS = {"separate": ("-ffp-contract=off",), "contracted": ("-mfma", "-ffp-contract=fast")}


def find_compiler():
    return shutil.which("g++") or shutil.which("clang++")


def has_fma():
    try:
        return " fma " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def build(folder, variant):
    """Return the library of every kernel; ``folder`` receives the files."""
    source = folder / f"kernels_{variant}.cpp"
    exports = "\n".join(f"EXPORT_KERNEL({name})" for name in KERNEL_NAMES)
    source.write_text(f'#include "{SHIM}"\n{kernel_source()}\n{exports}\n')
    library = source.with_suffix(".so")
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-unknown-pragmas")
    command = [find_compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", *warnings, *VARIANTS[variant], str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


class CpuKernels:
    """Launches kernels on arrays of this process; addresses are those of the arrays."""

    def __init__(self, library):
        self._library = library

    def launch(self, name, *, grid, block, stream=None, arguments, seed=0):
        declared = getattr(self._library, f"count_{name}")()
        assert declared == len(arguments), f"{name} declares {declared} arguments, got {len(arguments)}"
        assert all(side >= 1 for side in (*grid, *block)), f"{name}: grid {grid}, block {block}"
        assert block[0] * block[1] * block[2] <= 1024 or seed, f"{name}: {block} is more than a GPU runs"
        assert max(grid[1:]) <= 65535, f"{name}: grid {grid} is more than a GPU runs"
        values = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        status = getattr(self._library, f"run_{name}")((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_uint(seed), values)
        assert status == 0, f"{name}: threads of a block wait at a barrier that others never reach"


class Guarded:
    """An array between two guard zones, filled with a value that no kernel writes by chance."""

    def __init__(self, shape, dtype, fill=GUARD):
        byte_count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._bytes = np.full(byte_count + 2 * GUARD_BYTES, GUARD, np.uint8)
        inner = self._bytes[GUARD_BYTES : GUARD_BYTES + byte_count]
        inner[:] = fill
        self.array = inner.view(dtype).reshape(shape)

    @property
    def pointer(self):
        return ctypes.c_void_p(self.array.ctypes.data)

    def check(self):
        """Return the array if nothing was written beside it."""
        assert (self._bytes[:GUARD_BYTES] == GUARD).all(), "written before the array"
        assert (self._bytes[-GUARD_BYTES:] == GUARD).all(), "written behind the array"
        return self.array


def pointer(array):
    """Return the address of an array, null for None."""
    return ctypes.c_void_p(0 if array is None else array.ctypes.data)


class Shuffled:
    """Runs blocks and threads in random order and interrupts them at atomics; optionally all threads as one block, so that all interleave."""

    def __init__(self, kernels, seed, *, as_one_block=False):
        self._kernels = kernels
        self._seed = seed
        self._as_one_block = as_one_block

    def launch(self, name, *, grid, block, stream=None, arguments):
        if self._as_one_block:
            assert grid[1:] == block[1:] == (1, 1), "only a grid of one dimension can become one block"
            grid, block = (1, 1, 1), (grid[0] * block[0], 1, 1)
        self._kernels.launch(name, grid=grid, block=block, stream=stream, arguments=arguments, seed=self._seed)
