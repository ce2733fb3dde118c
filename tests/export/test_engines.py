"""``snl-export`` builds an engine where it can, verifies it where it runs, and says which of the two it could not do."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from snl_export.cli import parity_line
from snl_export.engines import build_planned_engine, engine_lines, plan_engine
from snl_runtime.backends.tensorrt.builder import local_target
from snl_runtime.backends.tensorrt.library import load_library
from snl_runtime.cuda.api import DeviceDescription
from snl_runtime.errors import BackendUnavailableError, ConfigError, ParityRefusedError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import manifest_path, read_manifest, write_manifest

pytest.importorskip("onnxruntime")

# The GPU, the TensorRT and the tiny model of the runtime's tests, as fixtures of this module.
_spec = importlib.util.spec_from_file_location("snl_tests_export_engine_fixtures", Path(__file__).parents[1] / "runtime" / "conftest.py")
_runtime = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_runtime)
fixtures, model_fixtures, no_kernels = _runtime.fixtures, _runtime.model_fixtures, _runtime.no_kernels
gpu, cuda, library = _runtime.gpu, _runtime.cuda, _runtime.library


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def station(monkeypatch, cuda, library, cache_folder):
    """A fake GPU with the installed TensorRT-RTX as its library; engines are built for real and run by the fake."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this Python or platform")
    rtx = load_library("tensorrt-rtx")
    library.name, library.version = "tensorrt-rtx", rtx.version
    monkeypatch.setenv("SNL_EDGE_CACHE", str(cache_folder))
    monkeypatch.setattr("snl_runtime.cuda.api.load_cuda", lambda: cuda)
    monkeypatch.setattr("snl_runtime.backends.tensorrt.backend.open_library", lambda name: library)
    monkeypatch.setattr("snl_runtime.backends.tensorrt.builder.installed_libraries", lambda: [rtx])
    return library


@pytest.fixture
def model(model_fixtures, tmp_path):
    return model_fixtures.ModelFolder(tmp_path).write()


def build(model, target):
    return build_planned_engine(model, read_manifest(manifest_path(model)), target, frames=None)


def test_with_a_gpu_the_engine_is_built_for_it_and_verified_without_being_asked(station, model):
    plan = plan_engine(None, ())
    assert plan.why_not is None
    engine = build(model, plan.target)
    assert engine.entry.compute_capability == ["8.9"]
    assert engine.entry.parity.passed
    assert engine.why_unverified is None
    (line,) = engine_lines(engine)
    assert line.endswith("verified on " + engine.entry.parity.verified_on)
    assert "not verified" not in line
    assert set(engine.manifest.decisions_for(sha256_file(engine.path))) == {"bottle"}


def test_without_a_gpu_nothing_is_built_unless_asked_and_the_reason_is_given(station, cuda):
    cuda.devices = []
    plan = plan_engine(None, ())
    assert plan.target is None
    assert "no CUDA device" in plan.why_not
    assert "--engine tensorrt-rtx builds without a GPU" in plan.why_not


def test_without_a_gpu_an_engine_that_was_asked_for_is_listed_as_not_verified(station, cuda, model):
    cuda.devices = []
    engine = build(model, plan_engine("tensorrt-rtx", (89, 120)).target)
    assert engine.entry.compute_capability == ["8.9", "12.0"]
    assert engine.entry.parity is None
    assert engine.entry.options["verified_on"] == "not verified on a device"
    built, advice = engine_lines(engine)
    assert "not verified on a device: there is no CUDA device here" in built
    assert advice == "verify it where it runs: snl-run --engine line.trt --rebuild"


def test_engine_for_another_gpu_than_the_one_at_hand_is_listed_as_not_verified(station, model):
    engine = build(model, plan_engine("tensorrt-rtx", (120,)).target)
    assert engine.entry.parity is None
    assert "built for compute capability 12.0" in engine.why_unverified


def test_engine_that_scores_otherwise_is_refused_and_keeps_its_report(station, model):
    honest = station.answer
    station.answer = lambda images: honest(images) * 1.1
    with pytest.raises(ParityRefusedError, match=r"line\.trt does not score like line\.onnx on onnxruntime cpu.*line\.onnx stands") as refusal:
        build(model, plan_engine(None, ()).target)
    assert refusal.value.exit_status == 3
    (entry,) = read_manifest(manifest_path(model)).engines
    assert not entry.parity.passed


def test_engine_that_flips_one_verdict_is_exported_with_its_guard_band_and_what_it_costs(station, model, model_fixtures):
    """It is off by half of what fp32 may be off by, and the threshold lies between its score and the ONNX file's for one golden sample."""
    manifest = read_manifest(manifest_path(model))
    peaks = sorted(float(model_fixtures.reference_map(image).max()) for image in model_fixtures.ModelFolder(model.parent).golden_images)
    threshold = peaks[-1] * 1.00025
    decision = dataclasses.replace(manifest.decisions[0], pass_threshold=threshold, reject_threshold=threshold)
    write_manifest(manifest_path(model), dataclasses.replace(manifest, decisions=[decision]))
    honest = station.answer
    station.answer = lambda images: honest(images) * np.float32(1.0005)
    report = build(model, plan_engine(None, ()).target).entry.parity
    assert (report.passed, report.more_lenient) == (True, 0)
    assert report.flips >= 1
    assert 1 <= report.refused_by_guard_band <= report.passed_by_reference
    assert parity_line(report).endswith(
        f"{report.flips} flips, the guard band is {report.guard_band:.3g}, {report.refused_by_guard_band} of {report.passed_by_reference} verdicts "
        "PASS of the model are not PASS under it"
    )
    (entry,) = read_manifest(manifest_path(model)).engines
    inherited = read_manifest(manifest_path(model)).decisions_for(entry.sha256)["bottle"]
    assert inherited.pass_threshold == pytest.approx(threshold - report.guard_band, rel=1e-9)


def test_gpu_that_rtx_does_not_know_gets_no_engine_and_the_advice(station, cuda):
    cuda.devices = [DeviceDescription(name="Fake Orin", compute_capability=87, driver_version="12.6")]
    with pytest.raises(BackendUnavailableError, match=r"SM75, .*SM121, this GPU \(Fake Orin\) is SM87: install tensorrt"):
        local_target()
    assert "Fake Orin" in plan_engine(None, ()).why_not


def test_machine_without_any_tensorrt_says_what_to_install(station, monkeypatch):
    monkeypatch.setattr("snl_runtime.backends.tensorrt.builder.installed_libraries", list)
    assert "no usable TensorRT is installed: pip install tensorrt or tensorrt-rtx" in plan_engine(None, ()).why_not


def test_no_engine_when_none_is_wanted():
    assert plan_engine("none", ()).why_not == "--engine none was given"
    with pytest.raises(ConfigError):
        plan_engine("none", (86,))
