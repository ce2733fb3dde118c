"""A half-precision graph is judged by what half storage gives, not by ONNX Runtime on a CPU, which computes half in fp32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from snl_export import gate, onnx_export
from snl_export.bundle_writer import ExportedBundle, ExportOptions, export_bundle
from snl_export.graph import SnlGraph
from snl_export.half_check import evaluate_by_reference, evaluate_in_half
from snl_export.onnx_export import BatchSize, export_onnx
from snl_runtime.errors import ParityRefusedError
from snl_runtime.model.golden import GoldenSamples
from snl_runtime.parity.frames import derived_frames
from snl_train.checkpoint import load_checkpoint
from snl_train.config import ScoreConfig
from snl_train.evaluation import CheckpointScorer

SIZE_HW = (32, 32)


class AllHalfGraph(SnlGraph):
    """The planted fault: norms, 1 - cos and means in half, as a converter makes them from an fp32 graph."""

    feature_scale = 50.0

    def head(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        maps = []
        for t_map, s_map in zip(teacher, student):
            height, width = t_map.shape[-2:]
            t, s = ((x * self.feature_scale).half().flatten(2) for x in (t_map, s_map))
            t, s = (x / (x * x).sum(dim=1, keepdim=True).sqrt() for x in (t, s))
            affinity = (s.transpose(1, 2) @ s - t.transpose(1, 2) @ t).abs().mean(dim=2)
            cells = (1 - (t * s).sum(dim=1) + affinity).reshape(-1, 1, height, width)
            maps.append(nn.functional.interpolate(cells, size=self.size_hw, mode="bilinear", align_corners=False))
        return (maps[0] + maps[1] + maps[2]).float()


@pytest.fixture(scope="module")
def images(checkpoint_path: Path) -> np.ndarray:
    return np.ascontiguousarray(load_checkpoint(checkpoint_path).golden_images[:1, :32, :32])


def make_graph(kind: type[SnlGraph], checkpoint_path: Path, size_hw: tuple[int, int] = SIZE_HW, precision: str = "fp16") -> SnlGraph:
    return kind(load_checkpoint(checkpoint_path).build_model(), ScoreConfig(), size_hw=size_hw, precision=precision)


def plain_maps(graph: SnlGraph, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return graph(torch.from_numpy(images))[0][:, 0].numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1]) if a.std() > 0 else 0.0


def test_evaluation_rounds_like_the_half_kernels_of_pytorch(checkpoint_path: Path, images: np.ndarray) -> None:
    graph = make_graph(SnlGraph, checkpoint_path)
    expected = plain_maps(graph, images)  # PyTorch's own half kernels, slow and true
    np.testing.assert_allclose(evaluate_in_half(graph, images).maps, expected, atol=2e-3)


def test_all_half_head_is_blind_in_half_storage_and_looks_sound_on_onnx_runtime(checkpoint_path: Path, images: np.ndarray, tmp_path: Path) -> None:
    full = plain_maps(make_graph(SnlGraph, checkpoint_path, precision="fp32"), images)
    planted = make_graph(AllHalfGraph, checkpoint_path)
    path = tmp_path / "planted.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "check_contract", lambda *_, **__: None)
        export_onnx(planted, path, size_hw=SIZE_HW, batch=BatchSize(fixed=1), metadata="{}")
        by_reference = evaluate_by_reference(planted, images)
    by_onnx_runtime = onnxruntime.InferenceSession(str(path)).run(None, {"image": images})[0]
    assert correlation(by_onnx_runtime[0, 0], full[0]) > 0.99
    in_half = evaluate_in_half(planted, images).maps
    for maps in (in_half, by_reference.maps):
        assert not np.isfinite(maps).all() or correlation(maps, full) < 0.9


def test_all_half_head_is_refused_by_its_types(checkpoint_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityRefusedError, match="must compute norms, means and scores in fp32"):
        export_onnx(make_graph(AllHalfGraph, checkpoint_path), tmp_path / "x.onnx", size_hw=SIZE_HW, batch=BatchSize(fixed=1), metadata="{}")


def test_all_half_head_is_refused_by_its_values(checkpoint_path: Path, exported: ExportedBundle) -> None:
    reference, golden = golden_of(checkpoint_path)
    planted = make_graph(AllHalfGraph, checkpoint_path, size_hw=(64, 64))
    with pytest.raises(ParityRefusedError, match="not finite|map differs"):
        gate.check_half(planted, exported.model_path, reference, golden, derived_frames(golden.images[:1]), reference_name="checkpoint line.pt")


def test_all_half_head_is_refused_by_the_reference_evaluator(
    checkpoint_path: Path, exported: ExportedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "check_contract", lambda *_, **__: None)
    _, golden = golden_of(checkpoint_path)
    small, full = make_graph(AllHalfGraph, checkpoint_path), make_graph(SnlGraph, checkpoint_path, precision="fp32")
    with pytest.raises(ParityRefusedError, match="not finite|map differs"):
        gate.check_half_by_reference(small, full, exported.model_path, golden, reference_name="checkpoint line.pt")


def test_overflow_in_a_convolution_is_refused_and_names_the_layer(checkpoint_path: Path, exported: ExportedBundle) -> None:
    reference, golden = golden_of(checkpoint_path)
    graph = make_graph(SnlGraph, checkpoint_path, size_hw=(64, 64))
    name, layer = next((name, part) for name, part in graph.named_modules() if "student" in name and isinstance(part, nn.Conv2d))
    layer.weight.data.fill_(6e4)
    with pytest.raises(ParityRefusedError, match=f"layer {name} leaves the range of half"):
        gate.check_half(graph, exported.model_path, reference, golden, derived_frames(golden.images[:1]), reference_name="checkpoint line.pt")


def golden_of(checkpoint_path: Path) -> tuple[CheckpointScorer, GoldenSamples]:
    checkpoint = load_checkpoint(checkpoint_path)
    reference = CheckpointScorer(checkpoint)
    scores, maps = reference.score_inputs(checkpoint.golden_images)
    return reference, GoldenSamples(images=checkpoint.golden_images, scores=scores, maps=maps)


def test_half_export_passes_three_evaluations_and_says_where_none_of_them_ran(checkpoint_path: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions(precision="fp16"))
    reports = bundle.manifest.parity
    assert [report.passed for report in reports] == [True, True, True]
    assert [report.verified_on.split()[0] for report in reports] == ["onnxruntime", "torch", "onnx"]
    assert all("not verified on a device" in report.verified_on for report in reports[1:])
    assert bundle.manifest.graph["precision"] == "fp16"
    assert bundle.manifest.graph["golden_tolerance"] == 2e-2
    types = {tensor.data_type for tensor in onnx.load(bundle.model_path).graph.initializer if len(tensor.dims) == 4 and max(tensor.dims[2:]) > 1}
    assert types == {onnx.TensorProto.FLOAT16}
