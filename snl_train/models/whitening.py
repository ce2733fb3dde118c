"""Residual whitening: how far a residual is from what the student usually gets wrong."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from snl_train.features import full_precision, paired_scales, unit_vectors


class ResidualWhitening(nn.Module):
    """Squared length of a weighted residual of one scale, in place of the cosine distance.

    With r = t / |t| - s / |s| the cosine distance is 1 - cos = |r|^2 / 2. The student misses some directions of feature space on good parts too:
    noise of the surface, of the camera, of its own small capacity. Those fill the map. This takes |W r|^2 with
    ``W = c (R / mean(eigenvalues of R) + floor I)^(-1/2)``, R the second moment E[r r^T] over good training images, which discounts them, and c
    such that the mean over good training pixels is 1 at every scale, so that no scale drowns another. A Mahalanobis distance of the residual, with
    ``floor`` (of the mean eigenvalue) keeping directions that never vary from counting without limit; a large floor gives the cosine distance
    divided by its mean. One 1x1 convolution per scale in the exported graph.

    Attributes:
        weight: (D, D) W, symmetric; I / sqrt(2), the cosine distance, until :meth:`set_moment` is called.
    """

    weight: Tensor

    def __init__(self, channels: int, *, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("weight", torch.eye(channels) * 0.5**0.5)

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return (B, P) for unit vectors (B, D, P) of teacher and student."""
        weighted = self.weight.to(teacher.dtype) @ (teacher - student)  # (D, D) @ (B, D, P) -> (B, D, P)
        return weighted.square().sum(1)

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


@torch.no_grad()
def fit_whitening(model: nn.Module, whitenings: Iterable[nn.Module], batches: Iterable[Tensor]) -> None:
    """Measure the residuals of good images and set every scale's weights, in place.

    Args:
        model: Gives (teacher, student) features for a batch; must be in eval mode.
        whitenings: One :class:`ResidualWhitening` per scale, layer1 first.
        batches: Inputs of ``model``, good images only.

    Raises:
        ValueError: If there is no batch, or the residuals are not finite or all zero.
    """
    modules = [module for module in whitenings if isinstance(module, ResidualWhitening)]
    moments = [torch.zeros(module.weight.shape, dtype=torch.float64) for module in modules]
    counts = [0] * len(modules)
    for batch in batches:
        teacher, student = model(batch)
        with full_precision(batch.device):
            for number, (t, s) in enumerate(paired_scales(teacher, student)):
                residual = (unit_vectors(t) - unit_vectors(s)).movedim(1, -1).flatten(0, -2)  # (B, D, H, W) -> (B H W, D)
                moments[number] += (residual.mT @ residual).double().cpu()
                counts[number] += len(residual)
    if not all(counts):
        raise ValueError("whitening needs at least one batch of good images")
    for module, moment, count in zip(modules, moments, counts, strict=True):
        module.set_moment(moment / count)
