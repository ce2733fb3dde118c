"""The kernels compiled for the CPU, as a fixture per way of rounding."""

import importlib.util
from pathlib import Path

import pytest

from snl_runtime.kernels import KERNEL_NAMES


def _load(name):
    spec = importlib.util.spec_from_file_location(f"snl_tests_kernels_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cpu():
    """The module that compiles and launches kernels on the CPU."""
    return _load("cpu_kernels")


@pytest.fixture(scope="session", params=["separate", "contracted"])
def kernels(request, cpu, tmp_path_factory):
    """Every kernel as C++ on the CPU, with and without fused multiply-add."""
    if cpu.find_compiler() is None:
        pytest.skip("needs a C++ compiler (g++ or clang++) to run the kernels on the CPU")
    if request.param == "contracted" and not cpu.has_fma():
        pytest.skip("needs a CPU with fused multiply-add")
    return cpu.CpuKernels(cpu.build(tmp_path_factory.mktemp("kernels"), request.param))


@pytest.fixture
def make_gpu(gpu):
    """Return a GPU in NumPy that runs the given kernels, or only takes launches down; those of ``broken`` do nothing."""

    class Gpu(gpu.FakeCuda):
        def __init__(self, launcher=None):
            super().__init__()
            self.kernels = dict.fromkeys(KERNEL_NAMES)
            self.launcher = launcher
            self.broken = set()

        def launch_kernel(self, kernel, *, grid, block, stream, arguments, shared_bytes=0):
            self._called("launch_kernel")
            name = KERNEL_NAMES[kernel]
            copies = [type(argument)(argument.value) for argument in arguments]  # CUDA copies them before the call returns

            def work():
                self.ran.append(name)
                if self.launcher is not None and name not in self.broken:
                    self.launcher.launch(name, grid=grid, block=block, arguments=copies)

            self.push(stream, work)

    return Gpu
