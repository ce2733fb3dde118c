"""Synthetic anomalies in training images, which the student learns to take out again.

The teacher shows the student's input an image with a synthetic anomaly and its target the same image without. A student trained on good images alone
learns
to copy whatever its teacher sees, synthetic anomalies too; one that has to restore the good part cannot. Only training changes: the exported graph
is the same.
The synthetic anomalies are no model of real defects, and calibration's evidence never uses them: patches of other products and places, and flat
colors, in random shapes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from snl_train.synthetic_anomaly_config import SyntheticAnomalyConfig

_GRIDS = (3, 4, 6, 8, 12, 16)
"""Cells of the noise whose highest part is the synthetic anomaly's shape: few make one blob, many make specks."""


class SyntheticAnomalies:
    """Paints synthetic anomalies into batches; draws from torch's global generators only, so that a resumed training sees the same synthetic
    anomalies.

    Example:
        ``altered, has_anomaly = SyntheticAnomalies(SyntheticAnomalyConfig(share=0.7))(images)``
    """

    def __init__(self, config: SyntheticAnomalyConfig) -> None:
        self._config = config

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images with synthetic anomalies and which of them have one.

        Args:
            images: (B, H, W, 3) uint8 RGB on any device; not changed.

        Returns:
            (B, H, W, 3) uint8 with the same values outside the synthetic anomalies, on the same device, and (B,) bool on the CPU.
        """
        if not self._config.share:
            return images, torch.zeros(len(images), dtype=torch.bool)  # draws nothing: the same training as ever
        has_anomaly = torch.rand(len(images)) < self._config.share
        altered = images.clone()
        for number in torch.nonzero(has_anomaly).flatten().tolist():
            shape = self._shape(images.shape[1], images.shape[2], images.device)[..., None]  # (H, W, 1)
            opacity = _uniform(self._config.opacity_min, 1.0) * shape
            blended = images[number] * (1 - opacity) + self._filling(images, number) * opacity  # (H, W, 3) float
            altered[number] = blended.round().clamp(0, 255).to(torch.uint8)
        return altered, has_anomaly

    def _shape(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return (H, W) float, 1 inside the synthetic anomaly: the highest part of smooth noise, half of the time within a disc."""
        cells = _GRIDS[_integer(len(_GRIDS))]
        noise = F.interpolate(torch.randn(1, 1, cells, cells).to(device), size=(height, width), mode="bicubic", align_corners=False)[0, 0]  # (H, W)
        share = _uniform(self._config.area_min, self._config.area_max)
        shape = noise > torch.quantile(noise.flatten(), 1 - share)
        if _uniform(0, 1) < 0.5:
            y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
            center_y, center_x = _uniform(0.1, 0.9) * height, _uniform(0.1, 0.9) * width
            shape &= (y - center_y) ** 2 + (x - center_x) ** 2 < (_uniform(0.1, 0.4) * min(height, width)) ** 2
        return shape.float()

    def _filling(self, images: Tensor, number: int) -> Tensor:
        """Return (H, W, 3) float: another image of the batch, the image itself moved, or a noisy color; moved, mirrored and re-lit at random."""
        height, width = images.shape[1:3]
        draw = _uniform(0, 1)
        if draw < self._config.foreign_share:
            filling = images[_integer(len(images))].float()
        elif draw < (1 + self._config.foreign_share) / 2:
            filling = images[number].float()
        else:
            filling = (torch.rand(3) * 255).to(images.device) + torch.randn(height, width, 3, device=images.device) * _uniform(0, 20)
        filling = filling.roll((_integer(height), _integer(width)), (0, 1))
        if _uniform(0, 1) < 0.5:
            filling = filling.flip(_integer(2))
        if _uniform(0, 1) < 0.5:
            filling = filling * _uniform(0.5, 1.5) + _uniform(-40, 40)
        return filling.clamp(0, 255)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))
