"""A teacher of timm goes the way of the ResNets: its graph scores like the checkpoint, and the file like the graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("timm", reason="needs timm, the extra teachers")

from snl_export.graph import SnlGraph  # noqa: E402
from snl_export.onnx_export import BatchSize, export_onnx  # noqa: E402
from snl_runtime.backends import open_backend  # noqa: E402
from snl_runtime.errors import ConfigError  # noqa: E402
from snl_train import scoring  # noqa: E402
from snl_train.config import ModelConfig, ScoreConfig  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.models import TeacherStudent, build_model  # noqa: E402
from tolerances import EXPORTED_FP16_ABS, EXPORTED_FP32_ABS  # noqa: E402

SIZE_HW = (32, 64)
SCORE = ScoreConfig(affinity_weight=0.0, smoothing_sigma=2.0)
TEACHERS = {"efficientnet": "timm:test_efficientnet", "vit": "timm:test_vit"}


def made_model(teacher: str, method: str) -> TeacherStudent:
    torch.manual_seed(3)
    config = ModelConfig(method=method, teacher=TEACHERS[teacher], teacher_weights="random", centers=3)
    memory = MemoryConfig(centers=70, layers=(1,)) if method == "memory" else None
    model = build_model(config, memory, size_hw=SIZE_HW).eval()
    if model.memory is not None:
        model.memory.take_centers([torch.nn.functional.normalize(torch.randn_like(book.centers)) for book in model.memory.books])
    return model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.ascontiguousarray(np.random.default_rng(1).integers(0, 256, (2, 4, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2))


def expected_map(model: TeacherStudent, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        teacher, student = model(model.normalize(torch.from_numpy(pixels)))
        maps, _ = scoring.score_features(teacher, student, SIZE_HW, SCORE, memory=model.memory)
    return maps.numpy()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("teacher", "method"),
    [("efficientnet", "memory"), ("vit", "memory"), pytest.param("efficientnet", "rd", marks=SLOW), pytest.param("vit", "snl-rd", marks=SLOW)],
)
def test_file_scores_like_the_checkpoint(teacher: str, method: str, pixels: np.ndarray, tmp_path: Path) -> None:
    model = made_model(teacher, method)
    path = tmp_path / "line.onnx"
    export_onnx(SnlGraph(model, SCORE, size_hw=SIZE_HW), path, size_hw=SIZE_HW, batch=BatchSize(), metadata="{}")
    expected = expected_map(model, pixels)
    maps, scores = np.zeros((2, 1, *SIZE_HW), np.float32), np.zeros(2, np.float32)
    with open_backend(path, "onnxruntime") as backend:
        backend.infer(pixels, maps, scores)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=EXPORTED_FP32_ABS * float(expected.max()))
    assert {node.op_type for node in onnx.load(path).graph.node if "image" in node.input} == {"Cast"}


def test_activations_inside_batch_norms_survive_the_folding_in_half_precision(pixels: np.ndarray) -> None:
    model = made_model("efficientnet", "rd")
    expected = expected_map(model, pixels)
    with torch.no_grad():
        maps, _ = SnlGraph(model, SCORE, size_hw=SIZE_HW, precision="fp16")(torch.from_numpy(pixels))
    np.testing.assert_allclose(maps.numpy(), expected, rtol=0, atol=EXPORTED_FP16_ABS * float(expected.max()))


def test_layer_norms_are_not_halved() -> None:
    with pytest.raises(ConfigError, match="teacher timm:test_vit has layer norms.*without --fp16"):
        SnlGraph(made_model("vit", "memory"), SCORE, size_hw=SIZE_HW, precision="fp16")
