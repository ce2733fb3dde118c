"""Contract: each loss is its printed equation, averaged over the batch; other readings are keywords."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from snl_runtime.errors import ConfigError
from snl_train.config import LossConfig, Pairing
from snl_train.losses import channel_distillation, inter_affinity, intra_affinity, sample_pairs, spatial_distillation, structural_loss

Array: TypeAlias = np.ndarray[Any, Any]
SHAPES = [(4, 3, 4), (5, 2, 2), (7, 1, 2)]
"""(D, H, W) of three scales that differ in all three."""
COMPUTED_IN = [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.float32)]
"""Dtype given and dtype of the result."""


def features(seed: int, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn((batch, *shape), dtype=torch.float64, generator=generator) for shape in SHAPES]


def eq_2(teacher: list[Tensor], student: list[Tensor]) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        for n in range(len(t)):
            for h, w in np.ndindex(t.shape[2], t.shape[3]):
                a, b = t[n, :, h, w].numpy(), s[n, :, h, w].numpy()
                distance = 1 - (a * b).sum() / (math.sqrt((a * a).sum()) * math.sqrt((b * b).sum()))
                total += distance / (t.shape[2] * t.shape[3] * len(t))
    return total


def eq_3(teacher: list[Tensor], student: list[Tensor], temperature: float = 1.0, *, is_mean: bool = False) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        for n in range(len(t)):
            for d in range(t.shape[1]):
                p, q = (np.exp(x[n, d].numpy() / temperature) for x in (t, s))
                p, q = p / p.sum(), q / q.sum()
                total += float((p * np.log(p / q)).sum()) / len(t) / (t.shape[1] if is_mean else 1)
    return total


def eq_6(teacher: list[Tensor], student: list[Tensor], pairs: list[tuple[int, int]], *, is_mean: bool = False) -> float:
    """Eq. 6 for the given pairs, averaged over them; Eq. 5 for pairs of a sample with itself."""

    def matrix(features: Tensor, a: int, b: int) -> Array:
        first, second = (features[i].numpy().reshape(features.shape[1], -1) for i in (a, b))
        first, second = (x / np.sqrt((x * x).sum(0)) for x in (first, second))
        product: Array = first.T @ second
        return product

    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        for a, b in pairs:
            error = np.abs(matrix(s, a, b) - matrix(t, a, b))
            total += float(error.mean() if is_mean else error.sum()) / len(pairs)
    return total


def test_channel_distillation_is_equation_2() -> None:
    teacher, student = features(0), features(1)
    assert channel_distillation(teacher, student).item() == pytest.approx(eq_2(teacher, student), rel=1e-12)


def test_focus_by_hand() -> None:
    """Distances 0, 1, 2 and 2/5: (0 + 1 + 4 + 4/25) / (0 + 1 + 2 + 2/5) with g = 1, cubes over squares with g = 2."""
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).T.reshape(1, 2, 2, 2)
    student = torch.tensor([[2.0, 0.0], [0.0, 7.0], [-1.0, 0.0], [3.0, 4.0]]).T.reshape(1, 2, 2, 2)
    assert channel_distillation([teacher], [student], focus=1.0).item() == pytest.approx(5.16 / 3.4)
    assert channel_distillation([teacher], [student], focus=2.0).item() == pytest.approx((1 + 8 + 0.064) / (1 + 4 + 0.16))


@pytest.mark.parametrize("focus", [0.5, 1.0])
def test_a_focus_weighs_positions_by_their_distance_and_weights_take_no_gradient(focus: float) -> None:
    teacher, student = features(0), [feature.requires_grad_() for feature in features(1)]
    channel_distillation(teacher, student, focus=focus).backward()
    plain = [feature.detach().clone().requires_grad_() for feature in student]
    channel_distillation(teacher, plain).backward()
    for t, s, p in zip(teacher, student, plain, strict=True):
        cosine = (t * p).sum(1) / (t.square().sum(1) * p.square().sum(1)).sqrt()  # (B, H, W)
        weights = (1 - cosine.detach()) ** focus
        expected = p.grad * (weights / weights.mean())[:, None]  # the gradient of a position is its own distance's only
        assert torch.allclose(s.grad, expected, rtol=1e-10, atol=1e-14)


def test_focus_on_features_that_agree_is_zero_and_has_a_finite_gradient() -> None:
    teacher = features(0)
    student = [feature.clone().requires_grad_() for feature in teacher]
    loss = channel_distillation(teacher, student, focus=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(torch.isfinite(feature.grad).all() for feature in student)


def test_channel_distillation_by_hand() -> None:
    """Positions with cosines 1, 0 and -1, and 3/5: (0 + 1 + 2 + 2/5) / 4."""
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).T.reshape(1, 2, 2, 2)
    student = torch.tensor([[2.0, 0.0], [0.0, 7.0], [-1.0, 0.0], [3.0, 4.0]]).T.reshape(1, 2, 2, 2)
    assert channel_distillation([teacher], [student]).item() == pytest.approx(3.4 / 4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_spatial_distillation_is_equation_3(temperature: float, reduction: Any) -> None:
    teacher, student = features(0), features(1)
    expected = eq_3(teacher, student, temperature, is_mean=reduction == "mean")
    assert spatial_distillation(teacher, student, temperature=temperature, reduction=reduction).item() == pytest.approx(expected, rel=1e-11)


def test_spatial_distillation_without_keywords_is_the_printed_sum() -> None:
    teacher, student = features(0), features(1)
    assert spatial_distillation(teacher, student).item() == pytest.approx(eq_3(teacher, student), rel=1e-11)


def test_spatial_distillation_by_hand() -> None:
    """Teacher (1/2, 1/2), student (1/4, 3/4): (ln 2 + ln 2/3) / 2 = ln(4/3) / 2."""
    teacher, student = torch.zeros(1, 1, 1, 2), torch.tensor([0.0, math.log(3)]).reshape(1, 1, 1, 2)
    assert spatial_distillation([teacher], [student]).item() == pytest.approx(math.log(4 / 3) / 2)


def test_spatial_distillation_is_finite_for_extreme_features() -> None:
    teacher, student = torch.tensor([0.0, 1e4]).reshape(1, 1, 1, 2), torch.tensor([1e4, 0.0]).reshape(1, 1, 1, 2)
    assert spatial_distillation([teacher], [student]).item() == pytest.approx(1e4)


def test_intra_affinity_is_equation_5() -> None:
    teacher, student = features(0), features(1)
    own = [(0, 0), (1, 1), (2, 2)]
    assert intra_affinity(teacher, student).item() == pytest.approx(eq_6(teacher, student, own), rel=1e-11)
    assert intra_affinity(teacher, student, reduction="mean").item() == pytest.approx(eq_6(teacher, student, own, is_mean=True), rel=1e-11)


def test_intra_affinity_by_hand() -> None:
    """Teacher vectors at right angles (A = 1), student vectors parallel (all ones): two entries differ by 1."""
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 2)
    student = torch.tensor([[3.0, 0.0], [5.0, 0.0]]).T.reshape(1, 2, 1, 2)
    assert intra_affinity([teacher], [student]).item() == pytest.approx(2.0)


def test_inter_affinity_pairs_each_sample_with_its_successor() -> None:
    teacher, student = features(0), features(1)
    expected = eq_6(teacher, student, [(0, 1), (1, 2), (2, 0)])
    state = torch.get_rng_state()
    assert inter_affinity(teacher, student).item() == pytest.approx(expected, rel=1e-11)
    assert torch.equal(torch.get_rng_state(), state), "the default must draw nothing"


def test_inter_affinity_takes_given_pairs() -> None:
    teacher, student = features(0), features(1)
    expected = eq_6(teacher, student, [(0, 2), (2, 1)], is_mean=True)
    assert inter_affinity(teacher, student, pairs=torch.tensor([[0, 2], [2, 1]]), reduction="mean").item() == pytest.approx(expected, rel=1e-11)


def test_inter_affinity_of_a_batch_of_one_is_zero_with_a_gradient() -> None:
    teacher, student = features(0, batch=1), [s.requires_grad_() for s in features(1, batch=1)]
    loss = inter_affinity(teacher, student)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert all(s.grad is not None and s.grad.abs().max() == 0 for s in student)


ALL: list[Callable[..., Tensor]] = [channel_distillation, spatial_distillation, intra_affinity, inter_affinity]


@pytest.mark.parametrize("loss", ALL)
def test_loss_vanishes_where_student_equals_teacher(loss: Callable[..., Tensor]) -> None:
    teacher = features(0)
    assert abs(loss(teacher, [t.clone() for t in teacher]).item()) < 1e-12


@pytest.mark.parametrize("loss", [channel_distillation, intra_affinity, inter_affinity])
def test_loss_ignores_the_length_of_features(loss: Callable[..., Tensor]) -> None:
    teacher, student = features(0), features(1)
    scaled = [3.7 * s for s in student]
    torch.testing.assert_close(loss(teacher, scaled), loss(teacher, student))


@pytest.mark.parametrize("loss", [intra_affinity, inter_affinity])
def test_affinity_ignores_a_rotation_of_the_students_channels(loss: Callable[..., Tensor]) -> None:
    teacher, student = features(0), features(1)
    rotated = []
    for s in student:
        rotation, _ = torch.linalg.qr(torch.randn(s.shape[1], s.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
        rotated.append(torch.einsum("cd,bdhw->bchw", rotation, s))
    torch.testing.assert_close(loss(teacher, rotated), loss(teacher, student))
    assert channel_distillation(teacher, rotated).item() != pytest.approx(channel_distillation(teacher, student).item(), rel=1e-3)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize(
    ("given", "computed"),
    COMPUTED_IN,
)
def test_losses_are_computed_in_float32_or_wider(loss: Callable[..., Tensor], given: torch.dtype, computed: torch.dtype) -> None:
    teacher, student = ([x.to(given) for x in features(seed)] for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(teacher, student)
    assert result.dtype == computed
    exact = loss([t.double() for t in teacher], [s.double() for s in student])
    assert result.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ALL)
def test_unequal_scales_are_refused(loss: Callable[..., Tensor]) -> None:
    teacher, student = features(0), features(1)
    with pytest.raises(ValueError, match="same number of scales, at least 1, got 3 and 2"):
        loss(teacher, student[:2])
    with pytest.raises(ValueError, match="same number of scales"):
        loss([], [])
    with pytest.raises(ValueError, match="one shape"):
        loss(teacher, [student[0], student[1], student[1]])


def test_a_zero_feature_has_distance_one_and_a_finite_gradient() -> None:
    teacher, student = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2, requires_grad=True)
    loss = channel_distillation([teacher], [student]) + intra_affinity([teacher], [student])
    torch.autograd.backward(loss)
    assert channel_distillation([teacher], [student]).item() == 1
    assert student.grad is not None
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("pairing", ["roll", "permutation", "mutual", "different-class"])
@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_no_sample_is_paired_with_itself(pairing: Any, count: int) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 3, (count,), generator=generator)
        pairs = sample_pairs(count, pairing, labels=labels, generator=generator).tolist()
        assert pairs
        assert all(first != second for first, second in pairs)
        assert len({first for first, _ in pairs}) == len(pairs)


def test_mutual_pairs_are_disjoint_and_the_others_reach_every_sample() -> None:
    mutual = sample_pairs(8, "mutual").flatten().tolist()
    assert sorted(mutual) == list(range(8))
    pairings: list[Pairing] = ["roll", "permutation"]
    for pairing in pairings:
        first, second = sample_pairs(8, pairing).unbind(1)
        assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(8))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 1, 1, 2], [5, 5, 5, 7]])
def test_different_class_pairs_come_from_different_classes(labels: list[int]) -> None:
    for seed in range(20):
        pairs = sample_pairs(len(labels), "different-class", labels=torch.tensor(labels), generator=torch.Generator().manual_seed(seed))
        assert all(labels[first] != labels[second] for first, second in pairs.tolist())
        largest = max(labels.count(label) for label in labels)
        expected = len(labels) if 2 * largest <= len(labels) else 2 * (len(labels) - largest)
        assert len(pairs) == expected


def test_a_batch_of_one_class_is_paired_anyway_and_missing_labels_are_an_error() -> None:
    assert len(sample_pairs(4, "different-class", labels=torch.zeros(4))) == 4
    with pytest.raises(ValueError, match="labels"):
        sample_pairs(4, "different-class")


def test_random_pairs_follow_the_generator() -> None:
    first, second = (sample_pairs(16, "permutation", generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(first, sample_pairs(16, "permutation", generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, second)


def test_the_total_is_the_weighted_sum_of_the_printed_losses() -> None:
    teacher, student = features(0), features(1)
    config = LossConfig(
        channel_weight=2.0,
        spatial_weight=0.5,
        intra_weight=0.25,
        inter_weight=3.0,
        inter_pairing="roll",
        spatial_reduction="sum",
        affinity_reduction="sum",
    )
    parts = structural_loss(teacher, student, config)
    own, next_one = [(0, 0), (1, 1), (2, 2)], [(0, 1), (1, 2), (2, 0)]
    expected = {
        "channel": eq_2(teacher, student),
        "spatial": eq_3(teacher, student),
        "intra": eq_6(teacher, student, own),
        "inter": eq_6(teacher, student, next_one),
    }
    assert {name: part.item() for name, part in parts.items() if name != "total"} == pytest.approx(expected, rel=1e-11)
    weighted = 2 * expected["channel"] + 0.5 * expected["spatial"] + 0.25 * expected["intra"] + 3 * expected["inter"]
    assert parts["total"].item() == pytest.approx(weighted, rel=1e-11)


@pytest.mark.parametrize("positions", [0, 5])
def test_the_gradient_of_the_total_is_the_sum_of_the_printed_losses_gradients(positions: int) -> None:
    """Directions are computed once for all losses; here each loss computes its own."""
    teacher, student = features(0), [scale.requires_grad_() for scale in features(1)]
    config = LossConfig(channel_focus=1.0, intra_weight=0.3, inter_weight=0.2, inter_pairing="roll", affinity_positions=positions)
    torch.manual_seed(3)
    got = torch.autograd.grad(structural_loss(teacher, student, config)["total"], student)
    torch.manual_seed(3)
    drawn = [torch.randperm(scale[0, 0].numel())[: positions or None] if scale[0, 0].numel() > positions > 0 else slice(None) for scale in teacher]
    compared = [[scale.flatten(2)[:, :, chosen, None] for scale, chosen in zip(scales, drawn, strict=True)] for scales in (teacher, student)]
    expected = channel_distillation(teacher, student, focus=1.0) + spatial_distillation(teacher, student, reduction="mean")
    expected = expected + 0.3 * intra_affinity(*compared, reduction="mean") + 0.2 * inter_affinity(*compared, reduction="mean")
    for gradient, exact in zip(got, torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(gradient, exact)


def test_the_configured_focus_reaches_the_cosine_distance_and_nothing_else() -> None:
    teacher, student = features(0), features(1)
    plain, focused = (structural_loss(teacher, student, LossConfig(channel_focus=focus, inter_pairing="roll")) for focus in (0, 1))
    assert focused["channel"].item() == channel_distillation(teacher, student, focus=1.0).item()
    assert focused["channel"].item() > plain["channel"].item()
    assert all(focused[name].item() == plain[name].item() for name in ("spatial", "intra", "inter"))


def test_parts_of_weight_zero_are_neither_computed_nor_named() -> None:
    parts = structural_loss(features(0), features(1), LossConfig(spatial_weight=0, intra_weight=0, inter_weight=0))
    assert set(parts) == {"total", "channel"}
    assert parts["total"].item() == parts["channel"].item()


def test_default_reductions_do_not_depend_on_channels_or_positions() -> None:
    """The same content, doubled in channels and in positions, weighs the same."""
    teacher, student = ([x[:, :, :, :2] for x in features(seed)[:2]] for seed in (0, 1))
    config = LossConfig(inter_pairing="roll", channel_weight=0)
    once = structural_loss(teacher, student, config)
    wide = structural_loss([torch.cat([t, t], 1) for t in teacher], [torch.cat([s, s], 1) for s in student], config)
    tall = structural_loss([torch.cat([t, t], 2) for t in teacher], [torch.cat([s, s], 2) for s in student], config)
    for name in once:
        torch.testing.assert_close(wide[name], once[name])
        torch.testing.assert_close(tall[name], once[name])


# Affinity on positions drawn by lot


def test_affinity_of_drawn_positions_is_that_of_the_positions_alone() -> None:
    """The draw repeated here, one per scale that has more positions than asked for, and Eq. 5 and 6 entry by entry on what it names."""
    teacher, student = features(0), features(1)
    torch.manual_seed(5)
    losses = structural_loss(teacher, student, LossConfig(affinity_positions=6, inter_pairing="roll"))
    torch.manual_seed(5)
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t, s in zip(teacher, student, strict=True):
        total = t.shape[2] * t.shape[3]
        drawn = torch.randperm(total)[:6] if total > 6 else torch.arange(total)
        for scale, kept in zip((t, s), chosen, strict=True):
            kept.append(torch.stack([scale[:, :, n // t.shape[3], n % t.shape[3]] for n in drawn.tolist()], 2)[..., None])
    own, next_ones = [(n, n) for n in range(len(teacher[0]))], [(n, (n + 1) % len(teacher[0])) for n in range(len(teacher[0]))]
    assert losses["intra"].item() == pytest.approx(eq_6(*chosen, own, is_mean=True), rel=1e-11)
    assert losses["inter"].item() == pytest.approx(eq_6(*chosen, next_ones, is_mean=True), rel=1e-11)
    assert losses["channel"].item() == pytest.approx(eq_2(teacher, student), rel=1e-11), "the other losses take all positions"


def test_scales_with_few_positions_are_taken_whole_and_draw_nothing() -> None:
    teacher, student = features(0), features(1)
    most = max(t.shape[2] * t.shape[3] for t in teacher)
    state = torch.get_rng_state()
    some = structural_loss(teacher, student, LossConfig(affinity_positions=most, inter_pairing="roll"))
    assert torch.equal(torch.get_rng_state(), state)
    whole = structural_loss(teacher, student, LossConfig(inter_pairing="roll"))
    assert {name: loss.item() for name, loss in some.items()} == {name: loss.item() for name, loss in whole.items()}


def test_the_mean_over_many_draws_is_the_mean_over_all_pairs_of_two_positions() -> None:
    """Of the diagonal, which is 0 within an image, a draw of n of P positions has 1/n and the whole 1/P."""
    teacher, student = features(0)[:1], features(1)[:1]  # one scale of 12 positions
    total = teacher[0].shape[2] * teacher[0].shape[3]
    torch.manual_seed(0)
    config = LossConfig(affinity_positions=4, inter_weight=0)
    drawn = np.array([structural_loss(teacher, student, config)["intra"].item() for _ in range(400)])
    expected = eq_6(teacher, student, [(n, n) for n in range(len(teacher[0]))], is_mean=True) * total / (total - 1) * 3 / 4
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / 20


def test_a_sum_over_positions_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="affinity_reduction to mean"):
        LossConfig(affinity_positions=8, affinity_reduction="sum")
