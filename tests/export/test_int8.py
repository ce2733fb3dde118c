"""``snl-export --int8`` writes a file whose maps, ranking and verdicts are the checkpoint's, or nothing."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from snl_calibration import quantize
from snl_calibration.quantize import PARTS, find_convolutions
from snl_export.bundle_writer import ExportedBundle, ExportOptions, export_bundle
from snl_export.cli import main
from snl_export.graph import SnlGraph
from snl_export.int8 import Int8Options
from snl_export.onnx_export import BatchSize, export_onnx
from snl_runtime.errors import ConfigError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import read_manifest
from snl_runtime.scorer import Scorer
from snl_train.checkpoint import load_checkpoint, save_checkpoint
from snl_train.config import ModelConfig, TrainConfig
from snl_train.models import build_model


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{index}.png"), cells.repeat(8, 0).repeat(8, 1))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("method", "teacher", "expected"),
    [
        # ResNet-18: stem and 4 of layer1, 5 each of layer2 and layer3, bottleneck 3 + 5, one 3x3 convolution in the first block of 3 decoder stages
        ("snl-rd", "resnet18", {"early": 5, "teacher": 10, "bottleneck": 8, "student": 3}),
        # the forward student has the teacher's layers without the last block of each stage
        ("snl-fd", "resnet18", {"early": 5 + 1 + 2, "teacher": 10, "bottleneck": 0, "student": 3 + 3}),
    ],
)
def test_convolutions_of_a_real_graph(method: str, teacher: str, expected: dict[str, int], tmp_path: Path) -> None:
    config = TrainConfig(model=ModelConfig(method=method, teacher=teacher, teacher_weights="random"), image_size=(32, 32))
    torch.manual_seed(0)
    graph = SnlGraph(build_model(config.model), config.score, size_hw=(32, 32))
    export_onnx(graph, tmp_path / "x.onnx", size_hw=(32, 32), batch=BatchSize(fixed=1), metadata="{}")
    found = find_convolutions(onnx.load(tmp_path / "x.onnx"), PARTS)
    assert {part: sum(convolution.part == part for convolution in found) for part in PARTS} == expected


def test_int8_export_says_what_it_is_and_opens(checkpoint_path: Path, tmp_path: Path, good: Path, ready_made, capsys) -> None:
    ready_made()
    out = tmp_path / "out" / "line.onnx"
    assert (
        main(["--ckpt", str(checkpoint_path), "--out", str(out), "--int8", "--calib-data", str(good), "--int8-parts", "student", "--engine", "none"])
        == 0
    )
    graph = read_manifest(out.with_suffix(".json")).graph
    assert graph["precision"] == "int8"
    assert graph["int8_parts"] == ["student"]
    assert graph["int8_convolutions"] == 6
    assert graph["calibration_image_count"] == 4
    assert graph["golden_tolerance"] == 0.1
    (report,) = read_manifest(out.with_suffix(".json")).parity
    assert report.passed
    assert report.map_correlation_min >= 0.95
    printed = capsys.readouterr().out
    assert "parity passed on" in printed
    assert f"maps correlate by {report.map_correlation_min:.4f} or more (median {report.map_correlation_median:.4f})" in printed
    model = onnx.load(out)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 0
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    with Scorer(out):
        pass


def test_same_export_gives_the_same_file(checkpoint_path: Path, tmp_path: Path, good: Path, ready_made) -> None:
    ready_made()
    arguments = ["--ckpt", str(checkpoint_path), "--int8", "--calib-data", str(good), "--int8-parts", "student", "--engine", "none", "--out"]
    for name in ("a", "b"):
        assert main([*arguments, str(tmp_path / name / "line.onnx")]) == 0
    assert sha256_file(tmp_path / "a" / "line.onnx") == sha256_file(tmp_path / "b" / "line.onnx")


def test_int8_that_ruins_the_map_is_refused_with_the_figures(
    checkpoint_path: Path, earlier: Path, good: Path, ready_made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(earlier.parent)
    ready_made()
    monkeypatch.setattr(quantize, "LARGEST", 1)  # three values instead of 255
    arguments = ["--ckpt", str(checkpoint_path), "--out", str(earlier), "--int8", "--calib-data", str(good), "--engine", "none"]
    assert main(arguments) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    for figure in (r"maps correlate by -?0\.\d{4} or more \(median -?0\.\d{4}\)", "map values differ by up to", "0 verdicts flip", "--int8-parts"):
        assert re.search(figure, last)
    assert contents(earlier.parent) == before
    assert [path.name for path in earlier.parent.iterdir() if path.is_dir()] == ["good"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "needs --calib-data"),
        (["--calib-data", "x"], "belong to --int8"),
        (["--int8", "--fp16", "--calib-data", "x"], "exclude each other"),
        (["--int8", "--calib-data", "nowhere"], "nowhere is not a folder"),
        (["--int8", "--calib-data", "x", "--int8-parts", "head"], "must be among"),
    ],
)
def test_wrong_option_is_one_line_and_status_2(
    arguments: list[str], message: str, checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--ckpt", str(checkpoint_path), "--out", "x.onnx", "--engine", "none", *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_auroc_change_alone_is_refused(checkpoint_path: Path, exported: ExportedBundle) -> None:
    """Planted through the meter: maps agree, but two frames of 40 change places by less than a map's tenth."""
    from snl_runtime.parity.meter import LIMITS, ParityMeter, ScoredFrame

    meter = ParityMeter(LIMITS["int8"])
    values = np.linspace(0, 1, 64).reshape(8, 8)
    for index in range(20):
        for is_bad, base in ((False, 1.0 + index / 1000), (True, 1.019 + index / 1000 + 1e-4)):
            moved = base + (0.02 if not is_bad and index == 19 else 0.0)
            frame = ScoredFrame(
                name=f"{index}",
                reference_score=base,
                reference_map=values * base,
                subject_score=moved,
                subject_map=values * moved,
                is_anomalous=is_bad,
            )
            meter.add(frame)
    report = meter.report(subject_file="x", subject_sha256="0" * 64, reference="r", frames_source="f", verified_on="here")
    assert not report.passed
    assert all("AUROC" in failure for failure in report.failures)


def test_quantizing_does_not_import_torch(good: Path, exported: ExportedBundle) -> None:
    code = (
        "import sys, onnx; from pathlib import Path; from snl_calibration.quantize import calibration_images, quantize_backbone; "
        f"quantize_backbone(onnx.load({str(exported.model_path)!r}), calibration_images(Path({str(good)!r})), threads=1); "
        "assert 'torch' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_int8_is_refused_for_a_teacher_whose_convolutions_it_does_not_know(checkpoint_path: Path, good: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    model = dataclasses.replace(checkpoint.config.model, teacher="torchvision:resnet18")
    save_checkpoint(tmp_path / "x.pt", dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, model=model)))
    with pytest.raises(ConfigError, match="and not of torchvision:resnet18; leave it out"):
        export_bundle(tmp_path / "x.pt", tmp_path / "x.onnx", ExportOptions(precision="int8", int8=Int8Options(calib_data=good)))
