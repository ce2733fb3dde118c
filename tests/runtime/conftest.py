"""What the tests of the runtime share: the tiny model, a GPU and a TensorRT in NumPy, and files.

Helper modules are handed out as fixtures: with import-mode importlib a test cannot import its neighbor.
"""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.errors import BackendUnavailableError


def _load(name):
    spec = importlib.util.spec_from_file_location(f"snl_tests_runtime_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fixtures():
    """The tiny calibrated model, its NumPy reference, fake backends, and how to draw good and bad frames."""
    return _load("detector_fixtures")


@pytest.fixture(scope="session")
def model(fixtures):
    """The same, for tests of commands, where it is the model of the line."""
    return fixtures


@pytest.fixture(scope="session")
def model_fixtures(fixtures):
    """The same, for tests of engines and kernels, which have fixtures of their own."""
    return fixtures


@pytest.fixture
def model_folder(fixtures, tmp_path):
    return fixtures.ModelFolder(tmp_path)


@pytest.fixture
def full_tensorrt():
    """A stand-in for the package tensorrt, which has no wheel here."""
    return _load("fake_tensorrt").FakeTensorRt()


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    """No test compiles kernels by accident; where they count, they are put in."""

    def refuse(api):
        raise BackendUnavailableError("these tests have no kernels")

    monkeypatch.setattr("snl_runtime.gpu.path.load_kernels", refuse)


@pytest.fixture(scope="session")
def gpu():
    """The GPU in NumPy."""
    return _load("fake_gpu")


@pytest.fixture
def cuda(gpu):
    return gpu.FakeCuda()


@pytest.fixture
def library(gpu, cuda, model_fixtures):
    """A TensorRT that computes the tiny model's map."""

    def answer(images):
        return model_fixtures.reference_maps(images.tobytes())

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


@pytest.fixture
def engine(model, tmp_path):
    (tmp_path / "model").mkdir()
    return model.ModelFolder(tmp_path / "model").write()


@pytest.fixture
def parts(model, tmp_path):
    """A folder with six good parts, two bad ones and a truncated file, in this order."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for seed in range(6):
        cv2.imwrite(str(folder / f"a_good{seed}.png"), model.good_frame(seed))
    for seed in range(2):
        cv2.imwrite(str(folder / f"b_bad{seed}.png"), model.bad_frame(seed))
    (folder / "c_cut.png").write_bytes((folder / "a_good0.png").read_bytes()[:300])
    return folder


def write_video(path, count, *, size_hw=(48, 64), fourcc="MJPG"):
    """A real video of noise: no two frames are equal."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), 25, size_hw[::-1])
    assert writer.isOpened()
    random = np.random.default_rng(7)
    for _ in range(count):
        writer.write(random.integers(0, 256, (*size_hw, 3), dtype=np.uint8))
    writer.release()
    return Path(path)


@pytest.fixture(scope="session")
def make_video():
    return write_video
