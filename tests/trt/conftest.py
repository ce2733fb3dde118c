"""Helper modules of this folder and the tiny model of ``tests/runtime``, handed out as fixtures."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from snl_runtime.errors import BackendUnavailableError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import EngineEntry, ParityReport, read_manifest, write_manifest


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
        path = folder / "line.trt"
        path.write_bytes(content)
        manifest = read_manifest(model.manifest)
        values = {
            "file": path.name,
            "sha256": sha256_file(path),
            "library": "tensorrt",
            "library_version": "10.3.0",
            "compute_capability": ["8.9"],
            "precision": "fp16",
            "built_at": "2024-05-01T12:00:00+00:00",
            "parity": passed_report(path) if parity else None,
            "options": {"verified_on": "not verified on a device"},
        }
        write_manifest(model.manifest, manifest.with_engine(EngineEntry(**{**values, **entry})))
        return path

    return write


def passed_report(path, **changes):
    report = ParityReport(
        subject_file=path.name,
        subject_sha256=sha256_file(path),
        reference="line.onnx",
        frames_source="by hand",
        frame_count=3,
        score_max_abs=0.0,
        score_p99_abs=0.0,
        map_max_abs=0.0,
        map_p99_abs=0.0,
        map_scale=1.0,
        tolerance=0.02,
        auroc_drift=None,
        flips=0,
        guard_band=0.0,
        more_lenient=0,
        passed_by_reference=0,
        refused_by_guard_band=0,
        passed=True,
        failures=[],
        verified_on="a fake",
        created_at="2024-05-01T12:00:00+00:00",
    )
    return dataclasses.replace(report, **changes)


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
