"""Work over the channels of a feature map, written so that inference libraries run it quickly: sums, unit vectors, CRAM.

Sums over a dimension in the middle and a softmax there are slow on ONNX Runtime and OpenVINO, which turn the tensor around for them or read it with
strides. A convolution with weights of 1 reads it as it lies. It is no matrix product, because TensorRT-RTX has none in fp32 on Turing.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snl_train.models import Cram

NORM_FLOOR = 1e-12
"""Shortest length that a feature is divided by."""


def channel_sum(values: Tensor) -> Tensor:
    """Return the sums (N, 1, H, W) over the channels of (N, C, H, W), fp32."""
    return F.conv2d(values, torch.ones(1, values.shape[1], 1, 1))


def channel_length(features: Tensor) -> Tensor:
    """Return the L2 norm (N, 1, H, W) of each position of (N, C, H, W), fp32, not below :data:`NORM_FLOOR`."""
    return channel_sum(features * features).sqrt().clamp_min(NORM_FLOOR)


def not_negative(values: Tensor) -> Tensor:
    """Return ``values`` with 0 in place of what is below. NaN stays NaN: OpenVINO's own clamp makes 0 of it, which would look normal."""
    return values.clamp_min(0) + 0 * values


class InferenceCram(nn.Module):
    """What :class:`snl_train.models.Cram` computes, with the sum of the softmax divided out after the second product, where there are fewer products.

    Args:
        cram: Trained module; its numbers are copied.
    """

    def __init__(self, cram: Cram) -> None:
        super().__init__()
        alpha = cram.alpha.detach().float()
        alpha = alpha.abs() if cram.positive_alpha else alpha
        centers = cram.centers.detach().float()  # (N, D)
        self.normalize_input = cram.normalize_input
        # NumPy arrays and no buffers: halving the networks around must not round them.
        self._weight: npt.NDArray[np.float32] = (2 * alpha * centers)[:, :, None, None].cpu().numpy()
        self._bias: npt.NDArray[np.float32] = (-alpha * centers.square().sum(1)).cpu().numpy()
        self._centers: npt.NDArray[np.float32] = centers.t()[:, :, None, None].contiguous().cpu().numpy()

    def forward(self, features: Tensor) -> Tensor:
        """Return F (B, D, H, W) of Eq. 9 for f (B, D, H, W), fp32."""
        # Four dimensions throughout: OpenVINO would put the channels of its convolutions in another order to flatten them, and back.
        length = channel_length(features) if self.normalize_input else None
        u = features if length is None else features / length
        logits = F.conv2d(u, torch.tensor(self._weight), torch.tensor(self._bias))  # (B, N, H, W)
        powers = (logits - logits.amax(dim=1, keepdim=True)).exp()
        total = channel_sum(powers)
        scale = 1 / total if length is None else length / total  # (B, 1, H, W)
        return features - scale * F.conv2d(powers, torch.tensor(self._centers))
