"""The models that are timed: networks exported without training, whose times do not depend on their weights, and the tiny model of the tests."""

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.files import atomic_write_bytes, sha256_file
from snl_runtime.model.manifest import Manifest, manifest_path, replace_manifest

if TYPE_CHECKING:
    from snl_export.graph import AffinityLayout, Precision

GRAPHS: dict[str, dict[str, object]] = {
    "rd": {"preset": "best", "model.method": "rd", "model.whitening": False},
    "best": {"preset": "best"},
    "snl-plain-score": {"score.affinity_weight": 0.0},
    "snl": {},
    "best-memory-512": {"preset": "best", "memory.centers": 512},
    "best-memory-2048": {"preset": "best", "memory.centers": 2048},
    "memory-512": {"preset": "best", "model.method": "memory", "memory.centers": 512},
}
"""Settings of each float graph over the preset of the paper: plain reverse distillation with a smoothed map, ``best``, the paper's networks without
and with the affinity error in the score, ``best`` with a memory, and a memory alone."""
QUANTIZED = {"best-int8": "default", "best-int8-all": "all"}
"""Graphs of ``best`` with convolutions in 8 bits: those that ``snl-export --int8`` quantizes, and stem and layer1 as well (``--int8-parts``)."""
_RANGE_IMAGES = 4
_FIXTURES = Path(__file__).parents[2] / "tests" / "runtime" / "detector_fixtures.py"


def graph_path(
    folder: Path, name: str, size_px: int, *, teacher: str = "resnet18", layout: "AffinityLayout" = "rows", precision: "Precision" = "fp32"
) -> Path:
    """Return where :func:`untrained_graph` puts a graph."""
    return folder / f"{name}-{teacher}-{size_px}-{layout}{'' if precision == 'fp32' else f'-{precision}'}.onnx"


def untrained_graph(
    folder: Path, name: str, size_px: int, *, teacher: str = "resnet18", layout: "AffinityLayout" = "rows", precision: "Precision" = "fp32"
) -> Path:
    """Return a graph of :data:`GRAPHS` or :data:`QUANTIZED`, exported into ``folder`` unless it is there; needs the extra export."""
    path = graph_path(folder, name, size_px, teacher=teacher, layout=layout, precision=precision)
    if path.exists():
        return path
    if name in QUANTIZED:
        return _quantized(untrained_graph(folder, "best", size_px, teacher=teacher, layout=layout), path, QUANTIZED[name], size_px)
    import torch
    from torch.nn import functional as F

    from snl_export.graph import SnlGraph
    from snl_export.onnx_export import BatchSize, export_onnx
    from snl_train.config import load_config
    from snl_train.models.teacher_student import build_model

    config = load_config(None, {**GRAPHS[name], "model.teacher": teacher, "model.teacher_weights": "random"})
    torch.manual_seed(0)
    size_hw = (size_px, size_px)
    model = build_model(config.model, config.memory, size_hw=size_hw)
    if model.memory is not None:  # centers of an empty memory are all zero: libraries compute equal convolutions once
        model.memory.take_centers([F.normalize(torch.rand_like(codebook.centers)) for codebook in model.memory.books])
    graph = SnlGraph(model, config.score, size_hw=size_hw, precision=precision, layout=layout)
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(graph, path, size_hw=size_hw, batch=BatchSize(), metadata="{}")
    return path


def _quantized(float_model: Path, path: Path, parts: str, size_px: int) -> Path:
    """Quantize an untrained graph on generated pictures: their ranges change values, not times."""
    import cv2
    import onnx

    from snl_calibration.quantize import DEFAULT_PARTS, PARTS, quantize_backbone

    with tempfile.TemporaryDirectory() as images:
        pictures = [Path(images) / f"{seed}.png" for seed in range(_RANGE_IMAGES)]
        for seed, picture in enumerate(pictures):
            cv2.imwrite(str(picture), tiny_model().good_frame(seed, size_px))
        result = quantize_backbone(onnx.load(float_model), pictures, parts=PARTS if parts == "all" else DEFAULT_PARTS)
    atomic_write_bytes(path, result.model.SerializeToString(deterministic=True))
    return path


def add_manifest(model: Path, size_px: int, *, max_batch: int, precision: "Precision" = "fp32") -> None:
    """Say beside an exported graph how many images it takes at once; without a decision in it, verdicts are ERROR with a score."""
    shape = ["N", 1, size_px, size_px]
    manifest = Manifest(
        model_file=model.name,
        model_sha256=sha256_file(model),
        files={},
        input={
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "rgb",
            "size_hw": [size_px, size_px],
            "batch": "dynamic",
            "max_batch": max_batch,
        },
        outputs={"anomaly_map": {"dtype": "float32", "shape": shape}, "anomaly_score": {"dtype": "float32", "shape": ["N"]}},
        graph={"precision": precision},
        classes=[],
        training={},
        training_image_sha256=[],
        held_out=[],
        created_at="2026-01-01T00:00:00+00:00",
    )
    replace_manifest(manifest_path(model), lambda _: manifest)


def tiny_model() -> Any:
    """Return the module of the tests that makes the tiny model, and pictures of its parts."""
    spec = importlib.util.spec_from_file_location("snl_benchmark_fixtures", _FIXTURES)
    if spec is None or spec.loader is None:
        raise ValueError(f"{_FIXTURES} is missing; run this in a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
