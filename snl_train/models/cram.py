"""Central residual aggregation module (CRAM) of the SNL paper, Eq. 8 and 9."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snl_train.features import full_precision, unit_vectors


class Cram(nn.Module):
    """Re-expresses each feature vector by its residuals to learned centers.

    With residuals r_n = f - c_n, assignment a = softmax_n(-alpha |r_n|^2) (Eq. 8) and result F = sum_n a_n r_n (Eq. 9). Because sum a_n = 1 and
    |f|^2 is common to all n, this equals a = softmax_n(2 alpha f.c_n - alpha |c_n|^2), F = f - sum_n a_n c_n: two 1x1 convolutions and a softmax,
    and no (D, N, H, W) tensor.

    Attributes:
        centers: (N, D) learned centers.
        alpha: Learned factor of Eq. 8, one value (not its logarithm).
    """

    def __init__(
        self,
        channels: int,
        centers: int,
        *,
        alpha: float = 1.0,
        center_norm: float = 1.0,
        normalize_input: bool = False,
        positive_alpha: bool = False,
    ) -> None:
        """Make a module with random centers.

        Args:
            channels: D, channels of the features.
            centers: N, number of centers.
            alpha: Start value of the factor of Eq. 8.
            center_norm: Expected L2 norm of a center at the start. Short centers start the module near the identity.
            normalize_input: Apply Eq. 8 and 9 to f / |f| and multiply the result by |f|. This departs from the paper: assignments then depend on
                direction only and do not saturate where features are long. A zero vector stays zero.
            positive_alpha: Use the absolute value of ``alpha``. This departs from the paper: training cannot make far centers attract.
        """
        super().__init__()
        if channels < 1 or centers < 1:
            raise ValueError(f"channels and centers must be 1 or more, got {channels} and {centers}")
        self.centers = nn.Parameter(torch.randn(centers, channels) * (center_norm / channels**0.5))
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.normalize_input = normalize_input
        self.positive_alpha = positive_alpha

    def forward(self, features: Tensor) -> Tensor:
        """Return F (B, D, H, W) for f (B, D, H, W), in the parameters' dtype, also under autocast."""
        if features.dim() != 4 or features.shape[1] != self.centers.shape[1]:
            raise ValueError(f"features must have shape (B, {self.centers.shape[1]}, H, W), got {tuple(features.shape)}")
        with full_precision(features.device):
            features = features.to(self.centers.dtype)
            if not self.normalize_input:
                return features - self._expected_center(features)
            length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
            return features - length * self._expected_center(unit_vectors(features))

    def _expected_center(self, features: Tensor) -> Tensor:
        """Return sum_n a_n c_n, (B, D, H, W)."""
        centers = self.centers
        alpha = self.alpha.abs() if self.positive_alpha else self.alpha
        weight = (2 * alpha * centers)[:, :, None, None]  # (N, D, 1, 1)
        bias = -alpha * centers.square().sum(1)  # (N,)
        assignment = F.conv2d(features, weight, bias).softmax(1)  # (B, N, H, W)
        return F.conv2d(assignment, centers.t()[:, :, None, None])
