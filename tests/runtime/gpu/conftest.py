"""The kernels compiled for the CPU, as a fixture per way of rounding, and detectors that run them."""

import contextlib
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from snl_runtime.backends.onnxruntime import backend as onnxruntime_backend
from snl_runtime.backends.onnxruntime import session as onnxruntime_session
from snl_runtime.backends.onnxruntime.context import OnnxRuntimeContext
from snl_runtime.cuda import api as cuda_api
from snl_runtime.cuda.resources import CudaModule, DeviceBuffer
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.gpu.kernels import KERNEL_NAMES


def _load(name):
    spec = importlib.util.spec_from_file_location(f"snl_tests_gpu_path_{name}", Path(__file__).with_name(f"{name}.py"))
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


@pytest.fixture(scope="session")
def device_detector():
    """The module of engines, frames and comparisons for detectors on a GPU in NumPy."""
    return _load("device_detector")


@pytest.fixture
def fake(kernels, make_gpu, monkeypatch, model_fixtures, gpu, device_detector):
    """A GPU with working kernels, where ONNX Runtime and TensorRT find it."""
    cuda, session = make_gpu(kernels), device_detector.Session
    cuda.refuses_capture = False
    size = model_fixtures.SIZE
    library = gpu.FakeLibrary(cuda, lambda images: model_fixtures.reference_maps(images.tobytes()), (size, size))
    monkeypatch.setattr(cuda_api, "load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.gpu.path.load_kernels", lambda api: CudaModule(api, b"code"))
    monkeypatch.setattr("snl_runtime.backends.tensorrt.backend.open_library", lambda name: library)
    names = {name: getattr(onnxruntime, name) for name in ("SessionOptions", "RunOptions", "ExecutionMode", "GraphOptimizationLevel")}

    def open_fake(path, sess_options, providers):
        if providers == ["CPUExecutionProvider"]:
            return onnxruntime.InferenceSession(path, sess_options=sess_options, providers=providers)
        given = providers[0][1]
        if given.get("enable_cuda_graph") == "1" and cuda.refuses_capture:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        if (stream := given.get("user_compute_stream")) is None:
            return device_detector.CudaSession(path, sess_options)
        return session(cuda, path, int(stream), capture=given.get("enable_cuda_graph") == "1")

    provided = SimpleNamespace(
        InferenceSession=open_fake, get_available_providers=lambda: ["CUDAExecutionProvider"], set_default_logger_severity=lambda level: None, **names
    )
    monkeypatch.setattr(onnxruntime_session, "load_onnxruntime", lambda: provided)
    monkeypatch.setattr(onnxruntime_backend, "OnnxRuntimeContext", functools.partial(OnnxRuntimeContext, device_type="cpu"))
    for name in ("spoil", "replay"):
        monkeypatch.setattr(session, name, staticmethod(getattr(session, name)))  # put back after the test
    cuda.library = library
    return cuda


@pytest.fixture
def open_on(fake, tmp_path, model_fixtures, write_engine, monkeypatch):
    """Open the detector of the tiny model on ``host``, ``onnxruntime`` or ``tensorrt``; ``changes``: of its decisions, ``normalizations``: by
    product; ``ignored``: cells that an ignore mask hides."""
    with contextlib.ExitStack() as opened:

        def open_detector(where, *, changes=None, normalizations=None, ignored=None, **options):
            folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            write = model_fixtures.ModelFolder.write
            monkeypatch.setattr(model_fixtures.ModelFolder, "write", lambda self, **kwargs: write(self, decisions=changes, **kwargs))
            path = write_engine(folder=folder)
            monkeypatch.setattr(model_fixtures.ModelFolder, "write", write)
            for product, values in (normalizations or {}).items():
                model_fixtures.ModelFolder(folder).give_normalization(values, product)
            if ignored is not None:
                model_fixtures.ModelFolder(folder).give_ignore_mask(ignored)
            if where == "tensorrt":
                return opened.enter_context(SnlDetector(path, **options))
            if where == "onnxruntime":
                return opened.enter_context(SnlDetector(path.with_suffix(".onnx"), device="cuda", **options))
            return opened.enter_context(SnlDetector(path.with_suffix(".onnx"), **options))

        yield open_detector
        fake.failing.clear()


@pytest.fixture
def on_gpu(fake):
    """Put an array into the GPU's memory; it is released after the test."""
    with contextlib.ExitStack() as opened:

        def put(array):
            array = np.ascontiguousarray(array)
            buffer = DeviceBuffer(fake, max(1, array.nbytes))
            fake.view(buffer.handle, array.nbytes, "device")[...] = array.reshape(-1).view(np.uint8)
            opened.callback(buffer.close)
            interface = {
                "shape": array.shape,
                "typestr": array.dtype.str,
                "data": (buffer.handle, False),
                "strides": None,
                "stream": None,
                "version": 3,
            }
            return SimpleNamespace(shape=array.shape, dtype=array.dtype, __cuda_array_interface__=interface)

        yield put


@pytest.fixture(scope="session")
def frames(device_detector, model_fixtures):
    """name -> (image, color): usable frames, then unusable ones."""
    return device_detector.make_frames(model_fixtures)
