"""How much arithmetic the exported graphs hold, counted by PyTorch and by hand; none of it depends on the machine."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from snl_export.graph import DEFAULT_TILE_ROWS, AffinityLayout, SnlGraph
from snl_train.config import ScoreConfig, load_config
from snl_train.models import TeacherStudent, build_model

SIZE_PX = 128
SCALES = ((64, 32 * 32), (128, 16 * 16), (256, 8 * 8))
"""Channels and positions of a ResNet-18's scales at this size."""
CENTERS = 50


def networks(**overrides: object) -> tuple[TeacherStudent, ScoreConfig]:
    config = load_config(None, {"model.teacher": "resnet18", "model.teacher_weights": "random", **overrides})
    return build_model(config.model), config.score


def operations(model: TeacherStudent, score: ScoreConfig, layout: AffinityLayout = "rows") -> int:
    """Return multiplications and additions for one image."""
    graph = SnlGraph(model, score, size_hw=(SIZE_PX, SIZE_PX), layout=layout)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(torch.zeros(1, SIZE_PX, SIZE_PX, 3, dtype=torch.uint8))
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def paper() -> TeacherStudent:
    return networks()[0]


@pytest.fixture(scope="module")
def without_affinity(paper: TeacherStudent) -> int:
    return operations(paper, ScoreConfig(affinity_weight=0.0))


def test_best_adds_cram_and_whitening_to_plain_reverse_distillation_and_nothing_else() -> None:
    best = operations(*networks(preset="best"))
    plain = operations(*networks(**{"preset": "best", "model.method": "rd", "model.whitening": False}))
    by_hand = 0
    for channels, positions in SCALES:
        lengths_and_total = channels + CENTERS
        assignment_and_expected_center = 2 * CENTERS * channels
        by_hand += 2 * positions * (lengths_and_total + assignment_and_expected_center + channels**2)
    assert best - plain == by_hand
    assert best / plain < 1.025


def test_affinity_error_in_rows_is_two_matrices_of_all_pairs(paper: TeacherStudent, without_affinity: int) -> None:
    by_hand = sum(2 * positions**2 * 2 * channels for channels, positions in SCALES)
    assert operations(paper, ScoreConfig()) - without_affinity == by_hand


def test_affinity_error_in_the_triangle_computes_each_pair_of_tiles_once(paper: TeacherStudent, without_affinity: int) -> None:
    by_hand = 0
    for channels, positions in SCALES:
        for start in range(0, positions, DEFAULT_TILE_ROWS):
            pairs = min(DEFAULT_TILE_ROWS, positions - start) * (positions - start)
            has_mirrored_tiles = start + DEFAULT_TILE_ROWS < positions
            by_hand += 2 * pairs * (2 * channels + has_mirrored_tiles)
    assert operations(paper, ScoreConfig(), "triangle") - without_affinity == by_hand
    assert by_hand < 0.68 * sum(2 * positions**2 * 2 * channels for channels, positions in SCALES)
