"""Forward distillation (STPM): a student of the teacher's architecture that sees the image."""

from torch import Tensor, nn

from snl_train.models.resnet import ResNetPyramid


class ForwardStudent(nn.Module):
    """Randomly started network of the teacher's architecture, stem to layer3.

    Args:
        architecture: The teacher's.
        crams: One module per scale, layer1 first, that turns a stage's output into the student's feature; None for the plain method.
        cram_feeds_next: Whether the next stage sees the output of ``crams`` (True) or their input.
    """

    def __init__(self, architecture: str, crams: nn.ModuleList | None = None, *, cram_feeds_next: bool = True) -> None:
        super().__init__()
        self.backbone = ResNetPyramid(architecture)
        self.crams = crams
        self.cram_feeds_next = cram_feeds_next

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return [layer1-, layer2-, layer3-shaped] features for normalized images (B, 3, H, W)."""
        features: list[Tensor] = []
        x = self.backbone.stem(images)
        for scale, stage in enumerate((self.backbone.layer1, self.backbone.layer2, self.backbone.layer3)):
            x = stage(x)
            features.append(x if self.crams is None else self.crams[scale](x))
            x = features[-1] if self.cram_feeds_next else x
        return features
