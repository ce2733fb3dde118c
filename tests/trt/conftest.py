"""Helper modules of this folder and the tiny model of ``tests/runtime``, handed out as fixtures."""

import importlib.util
from pathlib import Path

import pytest

from snl_runtime.errors import BackendUnavailableError


def _load(path):
    spec = importlib.util.spec_from_file_location(f"snl_tests_trt_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    """No test compiles kernels by accident; where they count, they are put in."""

    def refuse(api):
        raise BackendUnavailableError("these tests have no kernels")

    monkeypatch.setattr("snl_runtime.gpu.path.load_kernels", refuse)


@pytest.fixture(scope="session")
def gpu():
    """The GPU in NumPy."""
    return _load(Path(__file__).with_name("fake_gpu.py"))


@pytest.fixture(scope="session")
def dlpack_producer():
    """Makes DLPack capsules as another package would."""
    return _load(Path(__file__).with_name("dlpack_producer.py"))


@pytest.fixture(scope="session")
def model_fixtures():
    """The tiny calibrated model and its NumPy reference."""
    return _load(Path(__file__).parents[1] / "runtime" / "detector_fixtures.py")


@pytest.fixture
def cuda(gpu):
    return gpu.FakeCuda()


@pytest.fixture
def library(gpu, cuda, model_fixtures):
    """A TensorRT that computes the tiny model's map."""

    def answer(images):
        return model_fixtures._maps_of(images.tobytes())

    return gpu.FakeLibrary(cuda, answer, (model_fixtures.SIZE, model_fixtures.SIZE))


@pytest.fixture
def write_engine(tmp_path, model_fixtures):
    """Write the tiny model with an engine that its manifest lists; returns the engine's path."""

    def write(*, parity=True, content=b"a plan", folder=tmp_path, **entry):
        model = model_fixtures.ModelFolder(folder)
        model.write()
        return model.give_engine({} if parity else None, content=content, **{"options": {"verified_on": "not verified on a device"}, **entry})

    return write


@pytest.fixture
def engine_path(write_engine):
    return write_engine(parity=False)


@pytest.fixture
def installed(monkeypatch, cuda, library):
    """The fakes in place of CUDA and TensorRT for everything that opens a backend by suffix."""
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.backends.tensorrt.backend.open_library", lambda name: library)
    return library


@pytest.fixture
def shifted(library):
    """Let the engine give other maps than its ONNX file."""
    honest = library.answer

    def shift(change):
        library.answer = lambda images: change(honest(images))

    return shift
