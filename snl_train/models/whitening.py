"""Residual whitening: how far a residual is from what the student usually gets wrong, and usually gets wrong at such a place."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from snl_train.config import WhiteningNormalization
from snl_train.features import full_precision, paired_scales, unit_vectors
from snl_train.ranks import ALONE, Ranks

_POSITIONS_PER_IMAGE = 64
"""Positions of each image and scale that the expectation is fitted on: neighbors tell nearly the same."""
_RIDGE = 1e-3
"""Of the regression, relative to the mean square of an entry of a unit vector."""
_LOG_FLOOR = 0.1
"""Added to a distance, of mean 1, before its logarithm: how exactly a place agrees that agrees anyway does not matter."""


class ResidualWhitening(nn.Module):
    """Squared length of a weighted residual of one scale, in place of the cosine distance.

    With r = t / |t| - s / |s| the cosine distance is 1 - cos = |r|^2 / 2. The student misses some directions of feature space on good parts too:
    noise of the surface, of the camera, of its own small capacity. Those fill the map. This takes |W r|^2 with
    ``W = c (R / mean(eigenvalues of R) + floor I)^(-1/2)``, R the second moment E[r r^T] over good training images, which discounts them, and c
    such that the mean over good training pixels is 1 at every scale, so that no scale drowns another (or the mean of the highest pixels, see
    :func:`normalize_maxima`). A Mahalanobis distance of the residual, with
    ``floor`` (of the mean eigenvalue) keeping directions that never vary from counting without limit; a large floor gives the cosine distance
    divided by its mean. One 1x1 convolution per scale in the exported graph.

    With ``expectation`` g > 0 the result is also divided by the g-th power of what good images lead to expect at such a place: |W r|^2 / E^g, where
    log E is linear in the student's unit vector. Edges, print and solder miss by more than plain surface on every good part, and the highest pixel of
    a good part lies there; a defect of the same size on plain surface then stays below it. The student says what *should* be at a place, so a defect
    has little say in what is expected of it, and E is held between the lowest and the highest that occurred on good images, so that nothing can hide
    behind an expectation that no good part had. Another 1x1 convolution per scale, of one channel.

    Args:
        channels: D, channels of the scale.
        floor: Smallest variance that a direction is credited with, as a share of the mean one.
        expectation: g, in [0, 1].

    Attributes:
        weight: (D, D) W, symmetric; I / sqrt(2), the cosine distance, until :meth:`set_moment` is called.
        expected: (D,) g times the weights of log E; only with an expectation, as are the next three. No effect until :meth:`set_expectation`.
        offset: () g times the offset of log E, less the logarithm of what makes the mean over good pixels 1 again.
        lowest: () Smallest value of their sum on good images.
        highest: () Largest value of their sum on good images.
    """

    weight: Tensor
    expected: Tensor
    offset: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, channels: int, *, floor: float, expectation: float = 0.0) -> None:
        super().__init__()
        self.floor = floor
        self.expectation = expectation
        self.register_buffer("weight", torch.eye(channels) * 0.5**0.5)
        if expectation:
            self.register_buffer("expected", torch.zeros(channels))
            for name in ("offset", "lowest", "highest"):
                self.register_buffer(name, torch.tensor(0.0))

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return (B, P) for unit vectors (B, D, P) of teacher and student."""
        weighted = self.weight.to(teacher.dtype) @ (teacher - student)  # (D, D) @ (B, D, P) -> (B, D, P)
        distance = weighted.square().sum(1)  # (B, P)
        if not self.expectation:
            return distance
        log_expected = (student * self.expected.to(student.dtype)[:, None]).sum(1) + self.offset.to(student.dtype)  # (B, P)
        return distance * (-log_expected.clamp(float(self.lowest), float(self.highest))).exp()

    def set_moment(self, moment: Tensor) -> None:
        """Set W for the second moment R, (D, D), of the residuals of good images.

        Raises:
            ValueError: If R is not finite or all zero: such a student was not trained.
        """
        moment = moment.double()
        mean = moment.diagonal().mean()
        if not torch.isfinite(moment).all() or mean <= 0:
            raise ValueError(f"residuals must be finite and not all zero to be whitened, got a mean square of {float(mean):g} per channel")
        values, vectors = torch.linalg.eigh((moment + moment.mT) / 2)  # (D,), (D, D)
        scale = (values.clamp_min(0) / mean + self.floor).rsqrt()
        weight = (vectors * scale) @ vectors.mT
        mean_distance = (scale.square() * values).sum()  # E |W r|^2 = trace(W R W)
        self.weight.copy_((weight / mean_distance.sqrt()).to(self.weight))

    def set_expectation(self, teacher: Tensor, student: Tensor) -> None:
        """Fit what to expect, for unit vectors (n, D) of teacher and student at positions of good images; :meth:`set_moment` comes first.

        Ridge regression of log(|W r|^2 + 0.1) on the student's vector; does nothing without an expectation.
        """
        if not self.expectation:
            return
        student, residual = student.double(), (teacher - student).double()
        distance = (residual @ self.weight.double()).square().sum(1)  # (n,)
        target = (distance + _LOG_FLOOR).log()
        center, mean = student.mean(0), target.mean()
        moment = (student - center).mT @ (student - center) / len(student)  # (D, D)
        moment.diagonal().add_(_RIDGE / len(moment))
        weights = torch.linalg.solve(moment, (student - center).mT @ (target - mean) / len(student))  # (D,)
        scaled = self.expectation * weights
        log_expected = self.expectation * mean + (student - center) @ scaled  # (n,)
        log_mean = (distance * (-log_expected).exp()).mean().log()
        self.expected.copy_(scaled)
        self.offset.copy_(self.expectation * mean - center @ scaled + log_mean)
        self.lowest.copy_(log_expected.min() + log_mean)
        self.highest.copy_(log_expected.max() + log_mean)


def fit_own_whitening(model: nn.Module, inputs: Callable[[], Iterable[Tensor]], normalization: WhiteningNormalization, ranks: Ranks = ALONE) -> None:
    """Fit the whitening that a model holds, in place: to the residuals of good images, then to their highest where the normalization asks for it.

    Args:
        model: In eval mode, with one :class:`ResidualWhitening` per scale in ``whitening``.
        inputs: Gives the same inputs of the model at every call, good images only.
        normalization: What is 1 at every scale.
        ranks: The processes that fit it together, each with inputs of its own, equally many.

    Raises:
        ValueError: If there is no batch, or the residuals are not finite or all zero.
    """
    whitenings = cast(nn.ModuleList, model.whitening)
    fit_whitening(model, whitenings, inputs(), ranks)
    if normalization == "maximum":
        normalize_maxima(model, whitenings, inputs(), ranks)


@torch.no_grad()
def fit_whitening(model: nn.Module, whitenings: Iterable[nn.Module], batches: Iterable[Tensor], ranks: Ranks = ALONE) -> None:
    """Measure the residuals of good images and set every scale's weights, in place.

    Args:
        model: Gives (teacher, student) features for a batch; must be in eval mode.
        whitenings: One :class:`ResidualWhitening` per scale, layer1 first.
        batches: Inputs of ``model``, good images only.
        ranks: The processes that fit together, each with batches of its own.

    Raises:
        ValueError: If there is no batch, or the residuals are not finite or all zero.
    """
    modules = [module for module in whitenings if isinstance(module, ResidualWhitening)]
    moments = [torch.zeros(module.weight.shape, dtype=torch.float64) for module in modules]
    counts = [0] * len(modules)
    sampled: list[list[tuple[Tensor, Tensor]]] = [[] for _ in modules]
    draw = torch.Generator().manual_seed(0)
    for batch in batches:
        teacher, student = model(batch)
        with full_precision(batch.device):
            for number, (t, s) in enumerate(paired_scales(teacher, student)):
                of_teacher, of_student = (unit_vectors(x).movedim(1, -1).flatten(0, -2) for x in (t, s))  # (B, D, H, W) -> (B H W, D)
                residual = of_teacher - of_student
                moments[number] += (residual.mT @ residual).double().cpu()
                counts[number] += len(residual)
                if modules[number].expectation:
                    few = torch.randperm(len(residual), generator=draw)[: _POSITIONS_PER_IMAGE * len(t)]
                    sampled[number].append((of_teacher[few].cpu(), of_student[few].cpu()))
    if not all(counts):
        raise ValueError("whitening needs at least one batch of good images")
    for module, moment, count, pairs in zip(modules, moments, counts, sampled, strict=True):
        module.set_moment(ranks.sum(moment) / ranks.total(count))
        if pairs:
            of_teacher, of_student = (ranks.gather(torch.cat(side)).flatten(0, 1).to(module.weight.device) for side in zip(*pairs, strict=True))
            module.set_expectation(of_teacher, of_student)


@torch.no_grad()
def normalize_maxima(model: nn.Module, whitenings: Iterable[nn.Module], batches: Iterable[Tensor], ranks: Ranks = ALONE) -> None:
    """Scale every scale's weights, in place, such that the mean over good images of the highest whitened residual is 1.

    Fine scales have more cells and longer tails than coarse ones: with means of 1 the highest cell of a good image is near 4.6, 3.4 and 2.5 at the
    three scales of 256 px, so that the finest has the most to say about the highest pixel. The maps of all scales are weighed by this alone.

    Args:
        model: Gives (teacher, student) features for a batch; must be in eval mode.
        whitenings: One fitted :class:`ResidualWhitening` per scale, layer1 first.
        batches: Inputs of ``model``, good images only.
        ranks: The processes that fit together, each with batches of its own.

    Raises:
        ValueError: If there is no batch, or a scale's residuals are not finite or all zero.
    """
    modules = [module for module in whitenings if isinstance(module, ResidualWhitening)]
    sums, count = [0.0] * len(modules), 0
    for batch in batches:
        teacher, student = model(batch)
        with full_precision(batch.device):
            for number, (t, s) in enumerate(paired_scales(teacher, student)):
                cells = modules[number](unit_vectors(t.flatten(2)), unit_vectors(s.flatten(2)))  # (B, P)
                sums[number] += float(cells.amax(1).double().sum())
        count += len(batch)
    if not count:
        raise ValueError("whitening needs at least one batch of good images")
    images = ranks.total(count)
    for module, total in zip(modules, (ranks.total(own) for own in sums), strict=True):
        if not 0 < total < float("inf"):
            raise ValueError(f"whitened residuals must be finite and not all zero to be leveled, got {total / images:g} as the mean of their peaks")
        module.weight.mul_((images / total) ** 0.5)
