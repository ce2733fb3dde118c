"""Forward distillation (STPM): a student of the teacher's architecture that sees the image."""

from torch import Tensor, nn

from snl_runtime.errors import ConfigError
from snl_train.models.pyramids import PyramidNetwork
from snl_train.models.resnet import ResNetPyramid


class ForwardStudent(nn.Module):
    """Randomly started network of the teacher's architecture, as far as its last scale.

    Args:
        backbone: That network.
        crams: One module per scale, layer1 first, that turns a stage's output into the student's feature; None for the plain method.
        cram_feeds_next: Whether the next stage sees the output of ``crams`` (True) or their input.

    Raises:
        ConfigError: If CRAMs are to stand between the stages of a network that runs as a whole.
    """

    def __init__(self, backbone: ResNetPyramid | PyramidNetwork, crams: nn.ModuleList | None = None, *, cram_feeds_next: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.crams = crams
        self.cram_feeds_next = cram_feeds_next and crams is not None
        if self.cram_feeds_next and isinstance(backbone, PyramidNetwork):
            raise ConfigError(
                f"method snl-fd with teacher {backbone.architecture} needs model.cram_feeds_next=false: CRAM cannot stand between the stages of that "
                "network"
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features shaped like the teacher's, finest first, for normalized images (B, 3, H, W)."""
        if self.crams is None:
            return self.backbone(images)  # type: ignore[no-any-return]
        if not isinstance(self.backbone, ResNetPyramid) or not self.cram_feeds_next:
            return [cram(x) for cram, x in zip(self.crams, self.backbone(images), strict=True)]
        features: list[Tensor] = []
        x = self.backbone.stem(images)
        for cram, stage in zip(self.crams, (self.backbone.layer1, self.backbone.layer2, self.backbone.layer3), strict=True):
            x = cram(stage(x))
            features.append(x)
        return features
