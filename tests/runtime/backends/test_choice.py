"""Without a name, a backend is chosen by the file, the newest decision and what is installed: the same at every start."""

import importlib

import pytest

from snl_runtime import backends
from snl_runtime.backends import choice, open_backend
from snl_runtime.model.bundle import open_bundle


@pytest.fixture
def lone_model(tmp_path):
    """A file without a manifest; nothing in it is read."""
    path = tmp_path / "x.onnx"
    path.write_bytes(b"graph")
    return path


def chosen_name(monkeypatch, model, *, installed, machine="x86_64", device=None):
    """Return the backend that opens a model, of a path or bundle, where only some packages are installed."""
    monkeypatch.setattr(backends, "_is_installed", lambda package: package in installed)
    monkeypatch.setattr(choice.platform, "machine", lambda: machine)
    monkeypatch.setattr(backends, "_factory", lambda name: lambda *arguments, **options: name)
    return open_backend(model, device=device)


@pytest.mark.parametrize(
    ("installed", "machine", "device", "expected"),
    [
        ({"onnxruntime", "openvino"}, "x86_64", None, "openvino"),
        ({"onnxruntime", "openvino"}, "AMD64", "CPU", "openvino"),
        ({"onnxruntime", "openvino"}, "aarch64", None, "onnxruntime"),
        ({"openvino"}, "aarch64", None, "openvino"),
        ({"onnxruntime"}, "x86_64", "cpu", "onnxruntime"),
        ({"onnxruntime", "openvino"}, "x86_64", "cuda:1", "onnxruntime"),
        (set(), "x86_64", None, "onnxruntime"),  # whose error says what to install
    ],
)
def test_model_without_a_decision_runs_on_openvino_where_it_is_installed(monkeypatch, lone_model, installed, machine, device, expected):
    assert chosen_name(monkeypatch, open_bundle(lone_model), installed=installed, machine=machine, device=device) == expected


@pytest.mark.parametrize(
    ("backends_of_decisions", "installed", "expected"),
    [
        (["onnxruntime"], {"onnxruntime", "openvino"}, "onnxruntime"),
        (["openvino"], {"onnxruntime", "openvino"}, "openvino"),
        (["openvino", "onnxruntime"], {"onnxruntime", "openvino"}, "onnxruntime"),  # the newest
        (["onnxruntime on cuda:0 (A GPU), frames prepared there"], {"onnxruntime", "openvino"}, "onnxruntime"),
        (["onnxruntime"], {"openvino"}, "openvino"),
        (["fpga"], {"onnxruntime", "openvino"}, "openvino"),
    ],
)
def test_model_runs_on_the_backend_of_its_newest_decision_if_that_is_installed(monkeypatch, model_folder, backends_of_decisions, installed, expected):
    decisions = [{"product": f"part{index}", "backend": backend} for index, backend in enumerate(backends_of_decisions)]
    assert chosen_name(monkeypatch, open_bundle(model_folder.write(decisions=decisions)), installed=installed) == expected


def test_decision_on_another_file_chooses_nothing(monkeypatch, model_folder):
    bundle = open_bundle(model_folder.write(decisions=[{"product": "part", "backend": "onnxruntime", "model_sha256": "0" * 64}]))
    assert bundle.calibrated_on is None
    assert chosen_name(monkeypatch, bundle, installed={"onnxruntime", "openvino"}) == "openvino"


def test_folder_of_a_packages_name_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "fpga_runtime").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not backends._is_installed("fpga_runtime")
    (tmp_path / "fpga_runtime" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert backends._is_installed("fpga_runtime")


@pytest.mark.parametrize(
    ("calibrated_on", "runs_on", "is_told"),
    [
        ("onnxruntime", "onnxruntime", False),
        ("onnxruntime", "openvino", True),
        ("openvino", "onnxruntime", True),
        ("onnxruntime on cuda:0, frames prepared there", "onnxruntime", True),
        ("fpga", "openvino", True),
    ],
)
def test_decision_of_another_backend_or_device_is_told(model_folder, calibrated_on, runs_on, is_told):
    from snl_runtime.detector.detector import SnlDetector

    path = model_folder.write(decisions=[{"product": "part", "backend": calibrated_on}])
    with SnlDetector(path, backend=runs_on) as detector:
        moved = [note for note in detector.notes if "calibrated on" in note]
    assert len(moved) == is_told
    assert all(f"'part': calibrated on {calibrated_on}, and the model runs on {runs_on}" in note for note in moved)
