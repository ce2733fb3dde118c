"""Contract: tiled affinity errors and their hand-written gradients equal the whole matrices', which are never held."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snl_train import losses, scoring
from snl_train.affinity import inter_affinity_error, intra_affinity_error, mean_affinity_error
from tests.support.tolerances import FLOAT32_REL

TILES = [1, 2, 3, 7, 8, 100]
"""Rows per tile for 7 positions: single rows, divisors or not, the whole matrix, more than that."""


def unit_columns(seed: int, shape: tuple[int, int, int] = (2, 4, 7)) -> Tensor:
    """Random columns of length 1; gradient checks use other lengths for one side, so that no entry of D lies at the kink of |.|."""
    columns = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return columns / columns.square().sum(1, keepdim=True).sqrt()


def absolute_difference(a: Tensor, a2: Tensor, b: Tensor, b2: Tensor) -> np.ndarray[Any, Any]:
    """|<a_i, a2_j> - <b_i, b2_j>| for each sample, entry by entry."""
    count, _, positions = a.shape
    result = np.empty((count, positions, positions))
    for n, i, j in np.ndindex(count, positions, positions):
        of_student = sum(float(x) * float(y) for x, y in zip(a[n, :, i], a2[n, :, j], strict=True))
        of_teacher = sum(float(x) * float(y) for x, y in zip(b[n, :, i], b2[n, :, j], strict=True))
        result[n, i, j] = abs(of_student - of_teacher)
    return result


@pytest.mark.parametrize("tile_rows", TILES)
def test_errors_equal_the_entries_summed_one_by_one(tile_rows: int) -> None:
    s, t, s2, t2 = (unit_columns(seed) for seed in range(4))
    intra, inter = absolute_difference(s, s, t, t), absolute_difference(s, s2, t, t2)
    np.testing.assert_allclose(intra_affinity_error(s, t, tile_rows), intra.sum((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(mean_affinity_error(s, t, tile_rows), intra.mean(1), rtol=1e-12)
    np.testing.assert_allclose(inter_affinity_error((s, s2), (t, t2), tile_rows), inter.sum((1, 2)), rtol=1e-12)


@pytest.mark.parametrize("tile_rows", [5, 64])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_products_in_bfloat16_keep_3_digits_and_the_gradient_its_direction(tile_rows: int, with_teacher: bool) -> None:
    """Against float64, with 1600 terms a sum."""
    exact = [(1.3 - 0.3 * (seed % 2)) * unit_columns(seed, (2, 16, 40)) for seed in range(4)]  # s, t, s', t': lengths differ, no entry at the kink
    exact = [columns.requires_grad_(with_teacher or seed % 2 == 0) for seed, columns in enumerate(exact)]
    rough = [columns.detach().float().requires_grad_(columns.requires_grad) for columns in exact]
    for names in ((0, 1), (0, 1, 2, 3)):
        results = []
        for columns, dtype in ((exact, None), (rough, torch.bfloat16)):
            s, t, s2, t2 = columns
            if len(names) == 2:
                error = intra_affinity_error(s, t, tile_rows, product_dtype=dtype)
            else:
                error = inter_affinity_error((s, s2), (t, t2), tile_rows, product_dtype=dtype)
            chosen = [columns[name] for name in names if columns[name].requires_grad]
            results.append((error.detach(), torch.autograd.grad(error.sum(), chosen)))
        (expected, expected_gradients), (error, gradients) = results
        assert error.dtype == torch.float32
        np.testing.assert_allclose(error, expected, rtol=5e-3)
        for gradient, exact_gradient in zip(gradients, expected_gradients, strict=True):
            assert gradient.dtype == torch.float32
            assert torch.cosine_similarity(gradient.double().flatten(), exact_gradient.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("tile_rows", [1, 3, 7])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_hand_written_gradients_pass_the_numerical_check(tile_rows: int, with_teacher: bool) -> None:
    s, s2 = (1.3 * unit_columns(seed) for seed in (0, 2))
    t, t2 = (unit_columns(seed).requires_grad_(with_teacher) for seed in (1, 3))
    s.requires_grad_()
    s2.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: intra_affinity_error(a, b, tile_rows), (s, t))
    assert torch.autograd.gradcheck(lambda a, b: mean_affinity_error(a, b, tile_rows), (s, t))
    assert torch.autograd.gradcheck(lambda a, a2, b, b2: inter_affinity_error((a, a2), (b, b2), tile_rows), (s, s2, t, t2))


@pytest.mark.parametrize("tile_rows", [3, 7])
def test_all_samples_in_one_tile_as_a_gpu_takes_them_give_the_same(monkeypatch: pytest.MonkeyPatch, tile_rows: int) -> None:
    s, t, s2, t2 = (1.3 * unit_columns(0), unit_columns(1), 1.3 * unit_columns(2), unit_columns(3))
    s.requires_grad_()
    s2.requires_grad_()
    results = []
    for is_on_cpu in (True, False):
        monkeypatch.setattr("snl_train.affinity._is_on_cpu", lambda features, answer=is_on_cpu: answer)
        errors = intra_affinity_error(s, t, tile_rows), inter_affinity_error((s, s2), (t, t2), tile_rows), mean_affinity_error(s, t, tile_rows)
        results.append([*errors, *torch.autograd.grad(sum(error.sum() for error in errors), (s, s2))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_losses_pass_the_numerical_check_through_normalization() -> None:
    """The diagonal of D is 0 up to rounding there; normalization makes its gradient vanish, so the kink is harmless."""
    generator = torch.Generator().manual_seed(5)
    teacher, student = (torch.randn(2, 3, 2, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    student.requires_grad_()
    for loss in (losses.intra_affinity, losses.inter_affinity, losses.channel_distillation, losses.spatial_distillation):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss([teacher], [s]), (student,))
    assert torch.autograd.gradcheck(lambda s: scoring.anomaly_map([teacher], [s], (5, 6)), (student,))


def test_the_gradient_where_student_equals_teacher_is_zero() -> None:
    """One position with values whose products are exact: D is exactly 0, the kink of |.|."""
    teacher = torch.tensor([[[1.0], [0.5]]], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    for error in (intra_affinity_error, mean_affinity_error):
        (gradient,) = torch.autograd.grad(error(student, teacher).sum(), student)
        assert gradient.abs().max() == 0
    (gradient,) = torch.autograd.grad(inter_affinity_error((student, student), (teacher, teacher)).sum(), student)
    assert gradient.abs().max() == 0


def test_one_feature_in_both_places_gets_both_gradients() -> None:
    s, t = 1.3 * unit_columns(0), unit_columns(1)
    s.requires_grad_()
    (intra,) = torch.autograd.grad(intra_affinity_error(s, t, 3).sum(), s)
    (inter,) = torch.autograd.grad(inter_affinity_error((s, s), (t, t), 2).sum(), s)
    torch.testing.assert_close(intra, inter)


def test_gradients_are_weighted_by_each_samples_own_factor() -> None:
    s, t = 1.3 * unit_columns(0), unit_columns(1)
    s.requires_grad_()
    factors = torch.tensor([2.0, -3.0], dtype=torch.float64)
    (got,) = torch.autograd.grad((factors * intra_affinity_error(s, t, 3)).sum(), s)
    (plain,) = torch.autograd.grad(intra_affinity_error(s, t, 3).sum(), s)
    torch.testing.assert_close(got, factors[:, None, None] * plain)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest result of any tensor operation, backward passes and custom functions included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_no_tensor_of_the_size_of_an_affinity_matrix_is_ever_made() -> None:
    teacher, student = torch.rand(2, 8, 64, 64), torch.rand(2, 8, 64, 64, requires_grad=True)
    with LargestTensor() as largest:
        torch.autograd.backward(losses.intra_affinity([teacher], [student]))
        torch.autograd.backward(losses.inter_affinity([teacher], [student]))
        torch.autograd.backward(scoring.anomaly_map([teacher], [student], (256, 256)).sum())
        with torch.no_grad():
            scoring.anomaly_map([teacher], [student], (256, 256))
    assert largest.elements <= 256 * 64 * 64, "more than one tile of 256 rows"


def test_the_recorder_of_sizes_sees_a_whole_matrix() -> None:
    teacher = torch.rand(1, 8, 20, 20)
    with LargestTensor() as largest:
        losses.intra_affinity([teacher], [teacher], tile_rows=400)
    assert largest.elements == 400 * 400


def test_nothing_keeps_a_tile_for_the_backward_pass() -> None:
    saved: list[int] = []
    teacher, student = torch.rand(1, 8, 32, 32), torch.rand(1, 8, 32, 32, requires_grad=True)

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        losses.intra_affinity([teacher], [student])
        losses.inter_affinity([teacher], [student])
        scoring.anomaly_map([teacher], [student], (64, 64))
    assert max(saved) <= 8 * 32 * 32


def test_affinity_errors_keep_their_gradients_for_the_backward_pass_and_no_more() -> None:
    """Four samples of 4096 positions: 1 MiB of features a side, where one affinity matrix of one sample has 64 MiB."""
    saved_bytes = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal saved_bytes
        saved_bytes += tensor.nbytes
        return tensor

    sides = [columns.float() for columns in (unit_columns(seed, (4, 16, 4096)) for seed in range(4))]
    student, teacher = [sides[0].requires_grad_(), sides[2].requires_grad_()], [sides[1], sides[3]]
    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        intra_affinity_error(student[0], teacher[0])
        inter_affinity_error((student[0], student[1]), (teacher[0], teacher[1]))
    assert saved_bytes == 3 * student[0].nbytes


def plain_error(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Both errors as they are defined, whole matrices and gradients by autograd: (B,)."""
    return (student[0].mT @ student[1] - teacher[0].mT @ teacher[1]).abs().sum((1, 2))


@pytest.mark.parametrize("tile_rows", [64, 100, 256])
def test_errors_and_gradients_in_float32_equal_the_whole_matrices_in_float64(tile_rows: int) -> None:
    """Sums of 256 x 256 terms; a sign may differ where an entry is within rounding of 0, so each gradient is held as a whole."""
    exact = [(1.3 - 0.3 * (seed % 2)) * unit_columns(seed, (3, 24, 256)) for seed in range(4)]  # s, t, s', t'
    for seed in (0, 2):
        exact[seed].requires_grad_()
    rough = [columns.detach().float().requires_grad_(columns.requires_grad) for columns in exact]
    for is_intra in (True, False):
        s, t, s2, t2 = exact
        expected = plain_error((s, s), (t, t)) if is_intra else plain_error((s, s2), (t, t2))
        s, t, s2, t2 = rough
        got = intra_affinity_error(s, t, tile_rows) if is_intra else inter_affinity_error((s, s2), (t, t2), tile_rows)
        np.testing.assert_allclose(got.detach(), expected.detach(), rtol=FLOAT32_REL)
        wanted = (0,) if is_intra else (0, 2)
        gradients = torch.autograd.grad(got.sum(), [rough[seed] for seed in wanted])
        for gradient, exact_gradient in zip(gradients, torch.autograd.grad(expected.sum(), [exact[seed] for seed in wanted]), strict=True):
            assert torch.linalg.vector_norm(gradient - exact_gradient) <= 1e-3 * torch.linalg.vector_norm(exact_gradient)
