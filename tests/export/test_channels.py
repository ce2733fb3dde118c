"""Work over channels in the exported form gives what the training side gives, with no sum or softmax over a dimension in the middle."""

import collections

import numpy as np
import onnx
import pytest
import torch

from snl_export.bundle_writer import ExportedBundle
from snl_export.channels import NORM_FLOOR, InferenceCram, channel_length, channel_sum
from snl_train.models import Cram
from tolerances import EXPORTED_FP32_ABS


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("alpha", "positive"), [(1.0, False), (-3.0, False), (-3.0, True), (500.0, True)])
def test_cram_for_inference_equals_that_of_training(normalize: bool, alpha: float, positive: bool) -> None:
    torch.manual_seed(0)
    cram = Cram(6, 5, alpha=alpha, normalize_input=normalize, positive_alpha=positive)
    features = torch.randn(2, 6, 3, 4) * torch.logspace(-3, 1, 12).reshape(3, 4)
    features[:, :, 1, 2] = 0
    with torch.no_grad():
        torch.testing.assert_close(InferenceCram(cram)(features), cram(features), atol=EXPORTED_FP32_ABS, rtol=EXPORTED_FP32_ABS)


def test_cram_by_loops_over_equations_8_and_9() -> None:
    torch.manual_seed(1)
    cram = Cram(3, 4, alpha=0.7)
    features = torch.randn(1, 3, 2, 2)
    f, centers = features[0].double().numpy().reshape(3, 4), cram.centers.detach().double().numpy()
    expected = np.zeros((3, 4))
    for position in range(4):
        residuals = f[:, position] - centers
        weights = np.exp(-0.7 * (residuals**2).sum(1))
        expected[:, position] = (weights / weights.sum()) @ residuals
    np.testing.assert_allclose(InferenceCram(cram)(features)[0].numpy().reshape(3, 4), expected, atol=EXPORTED_FP32_ABS)


def test_a_value_that_is_no_number_stays_none_at_its_position_alone() -> None:
    features = torch.ones(1, 6, 1, 3)
    features[0, 2, 0, 1] = float("nan")
    result = InferenceCram(Cram(6, 5, normalize_input=True))(features)
    assert torch.isnan(result[0, :, 0, 1]).all()
    assert torch.isfinite(result[0, :, 0, [0, 2]]).all()


def test_lengths_are_those_of_numpy_and_never_zero() -> None:
    features = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    features[0, :, 0, 0] = 0
    expected = np.maximum(np.linalg.norm(features.numpy(), axis=1, keepdims=True), NORM_FLOOR)
    np.testing.assert_allclose(channel_length(features).numpy(), expected, rtol=EXPORTED_FP32_ABS)
    np.testing.assert_allclose(channel_sum(features).numpy(), features.numpy().sum(1, keepdims=True), atol=EXPORTED_FP32_ABS)


def test_graph_has_none_of_the_operators_that_turn_tensors_around(exported: ExportedBundle) -> None:
    graph = onnx.load(exported.model_path).graph
    counts = collections.Counter(node.op_type for node in graph.node)
    assert {name: counts[name] for name in ("Softmax", "ReduceL2", "ReduceSum", "Expand", "Where")} == dict.fromkeys(
        ("Softmax", "ReduceL2", "ReduceSum", "Expand", "Where"), 0
    )
    # One for the layout of the pixels, one per scale for the rows of the affinity product.
    assert counts["Transpose"] == 1 + 3
    assert counts["MatMul"] == 3, "one tile per scale at this size"
