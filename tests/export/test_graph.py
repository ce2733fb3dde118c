"""The exported graph computes the paper's map from raw pixels, in every layout, alignment and precision."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from snl_export.channels import InferenceCram
from snl_export.graph import SnlGraph
from snl_runtime.errors import ConfigError
from snl_train import scoring
from snl_train.config import ModelConfig, ScoreConfig
from snl_train.models import TeacherStudent, build_model
from tolerances import EXPORTED_FP16_ABS, EXPORTED_FP32_ABS

SIZE_HW = (32, 64)


@pytest.fixture(scope="module")
def models() -> dict[str, TeacherStudent]:
    made = {}
    for method in ("snl-rd", "fd"):
        torch.manual_seed(3)
        model = build_model(ModelConfig(method=method, teacher="resnet18", teacher_weights="random", centers=4))
        for part in model.student.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0, 0.2)
        made[method] = model.eval()
    return made


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, *SIZE_HW, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def literal_map(teacher: list[np.ndarray], student: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """Eq. 1 and 10 to 13 position by position; bilinear resize with half-pixel centers."""
    total = np.zeros(size_hw)
    for t_map, s_map in zip(teacher, student):
        channels, height, width = t_map.shape
        t, s = (x.reshape(channels, -1).astype(np.float64) for x in (t_map, s_map))
        t, s = t / np.linalg.norm(t, axis=0), s / np.linalg.norm(s, axis=0)
        cells = np.zeros(height * width)
        for j in range(height * width):
            errors = [abs(s[:, i] @ s[:, j] - t[:, i] @ t[:, j]) for i in range(height * width)]
            cells[j] = 1 - t[:, j] @ s[:, j] + np.mean(errors)
        total += bilinear(cells.reshape(height, width), size_hw)
    return total


def bilinear(cells: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    result = np.zeros(size_hw)
    for y in range(size_hw[0]):
        for x in range(size_hw[1]):
            v = min(max((y + 0.5) * cells.shape[0] / size_hw[0] - 0.5, 0), cells.shape[0] - 1)
            u = min(max((x + 0.5) * cells.shape[1] / size_hw[1] - 0.5, 0), cells.shape[1] - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, cells.shape[0] - 1), min(x0 + 1, cells.shape[1] - 1)
            top = cells[y0, x0] * (1 - u + x0) + cells[y0, x1] * (u - x0)
            bottom = cells[y1, x0] * (1 - u + x0) + cells[y1, x1] * (u - x0)
            result[y, x] = top * (1 - v + y0) + bottom * (v - y0)
    return result


@pytest.mark.parametrize("layout", ["rows", "triangle"])
@pytest.mark.parametrize("tile_rows", [1, 5, 1000])
def test_head_equals_the_paper_position_by_position(layout: str, tile_rows: int, models: dict[str, TeacherStudent]) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(1, c, h, w, generator=generator) for c, h, w in ((5, 4, 6), (7, 2, 3))]
    student = [t + 0.3 * torch.randn(t.shape, generator=generator) for t in teacher]
    graph = SnlGraph(models["fd"], ScoreConfig(), size_hw=SIZE_HW, tile_rows=tile_rows, layout=layout)
    expected = literal_map([t[0].numpy() for t in teacher], [s[0].numpy() for s in student], SIZE_HW)
    np.testing.assert_allclose(graph.head(teacher, student)[0, 0].numpy(), expected, atol=EXPORTED_FP32_ABS)


@pytest.mark.parametrize("method", ["snl-rd", "fd"])
@pytest.mark.parametrize(
    "score",
    [
        ScoreConfig(),
        ScoreConfig(alignment="corners", affinity_weight=0.0),
        ScoreConfig(alignment="grid", affinity_weight=0.5),
        ScoreConfig(alignment="grid", smoothing_sigma=1.5),
    ],
)
def test_graph_equals_the_training_side(method: str, score: ScoreConfig, models: dict[str, TeacherStudent], pixels: torch.Tensor) -> None:
    model = models[method]
    with torch.no_grad():
        expected_map, expected_score = scoring.score_features(*model(model.normalize(pixels)), SIZE_HW, score)
        anomaly_map, anomaly_score = SnlGraph(model, score, size_hw=SIZE_HW, tile_rows=50)(pixels)
    torch.testing.assert_close(anomaly_map, expected_map, atol=EXPORTED_FP32_ABS, rtol=0)
    torch.testing.assert_close(anomaly_score, expected_score, atol=EXPORTED_FP32_ABS, rtol=0)


@pytest.fixture(params=[0.0, 0.5], ids=["alone", "with an expectation"])
def whitened(request: pytest.FixtureRequest) -> TeacherStudent:
    torch.manual_seed(5)
    config = ModelConfig(method="rd", teacher="resnet18", teacher_weights="random", whitening=True, whitening_expectation=request.param)
    model = build_model(config).eval()
    for module in model.whitening:
        basis = torch.linalg.qr(torch.randn(len(module.weight), len(module.weight), dtype=torch.float64))[0]
        module.set_moment(basis * torch.linspace(0.01, 3, len(module.weight), dtype=torch.float64) @ basis.mT)
        teacher, student = (nn.functional.normalize(torch.randn(500, len(module.weight)).abs()) for _ in range(2))
        module.set_expectation(teacher, student)
    return model


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", EXPORTED_FP32_ABS), ("fp16", EXPORTED_FP16_ABS)])
def test_whitened_graph_equals_the_training_side(precision: str, tolerance: float, whitened: TeacherStudent, pixels: torch.Tensor) -> None:
    score = ScoreConfig(affinity_weight=0)
    with torch.no_grad():
        maps, scores = SnlGraph(whitened, score, size_hw=SIZE_HW, precision=precision)(pixels)
        expected, _ = scoring.score_features(*whitened(whitened.normalize(pixels)), SIZE_HW, score, whitening=whitened.whitening)
    np.testing.assert_allclose(maps.numpy(), expected.numpy(), rtol=0, atol=tolerance * float(expected.max()))
    np.testing.assert_array_equal(scores.numpy(), maps.flatten(1).amax(1).numpy())


def test_student_without_numbers_gives_a_score_without_a_number(whitened: TeacherStudent) -> None:
    graph = SnlGraph(whitened, ScoreConfig(affinity_weight=0), size_hw=SIZE_HW)
    teacher = [torch.ones(1, channels, 4, 4) for channels in (64, 128, 256)]
    student = [torch.full_like(x, float("nan")) for x in teacher]
    assert graph.head(teacher, student).isnan().all()


def test_whitening_stays_in_single_precision(whitened: TeacherStudent) -> None:
    graph = SnlGraph(whitened, ScoreConfig(affinity_weight=0), size_hw=SIZE_HW, precision="fp16")
    for module, original in zip(graph.model.whitening, whitened.whitening):
        for (name, buffer), (_, before) in zip(module.named_buffers(), original.named_buffers()):
            torch.testing.assert_close(buffer, before, rtol=0, atol=0, msg=name)


def test_zero_features_give_the_largest_cosine_distance_and_no_nan(models: dict[str, TeacherStudent]) -> None:
    graph = SnlGraph(models["fd"], ScoreConfig(affinity_weight=0.0), size_hw=SIZE_HW)
    assert torch.equal(graph.head([torch.ones(1, 3, 2, 2)], [torch.zeros(1, 3, 2, 2)]), torch.ones(1, 1, *SIZE_HW))


def test_every_batch_norm_is_folded_and_the_model_is_left_alone(models: dict[str, TeacherStudent]) -> None:
    before = copy.deepcopy(models["snl-rd"].state_dict())
    graph = SnlGraph(models["snl-rd"], ScoreConfig(), size_hw=SIZE_HW, precision="fp16")
    assert not [part for part in graph.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(torch.equal(value, before[name]) for name, value in models["snl-rd"].state_dict().items())


def test_half_is_for_convolutions_only(models: dict[str, TeacherStudent], pixels: torch.Tensor) -> None:
    graph = SnlGraph(models["snl-rd"], ScoreConfig(), size_hw=SIZE_HW, precision="fp16")
    convolutions = [part for part in graph.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    assert {part.weight.dtype for part in convolutions} == {torch.float16}
    crams = [part for part in graph.modules() if isinstance(part, InferenceCram)]
    assert len(crams) == 3
    for cram, original in zip(crams, models["snl-rd"].student.crams):
        features = torch.randn(1, original.centers.shape[1], 2, 3)
        torch.testing.assert_close(cram(features), original(features), atol=EXPORTED_FP32_ABS, rtol=0)
    anomaly_map, anomaly_score = graph(pixels)
    assert (anomaly_map.dtype, anomaly_score.dtype) == (torch.float32, torch.float32)
    expected, _ = SnlGraph(models["snl-rd"], ScoreConfig(), size_hw=SIZE_HW)(pixels)
    torch.testing.assert_close(anomaly_map, expected, atol=EXPORTED_FP16_ABS, rtol=0)


def test_score_that_is_no_maximum_is_refused(models: dict[str, TeacherStudent]) -> None:
    with pytest.raises(ConfigError, match="top_k must be 1"):
        SnlGraph(models["fd"], ScoreConfig(top_k=10), size_hw=SIZE_HW)


def test_tiles_without_rows_are_refused(models: dict[str, TeacherStudent]) -> None:
    with pytest.raises(ConfigError, match="tile_rows"):
        SnlGraph(models["fd"], ScoreConfig(), size_hw=SIZE_HW, tile_rows=0)
