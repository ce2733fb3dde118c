"""The frozen teacher and where its weights come from."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snl_runtime.errors import ConfigError
from snl_train.models.pyramids import PyramidNetwork, build_pyramid, is_pyramid
from snl_train.models.resnet import ResNetPyramid, initialize
from snl_train.models.weights import imagenet_state, load_state, read_state


class Teacher(ResNetPyramid):
    """ResNet from the stem to layer3 that is never trained and always in eval mode."""

    def __init__(self, architecture: str) -> None:
        super().__init__(architecture)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":  # noqa: ARG002  # batch statistics must not move, whatever the model around it does
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, images: Tensor, *, stages: int | None = None) -> list[Tensor]:
        """Return layer1, layer2, layer3 or the first of them without gradient: [(B, C_k, H / s_k, W / s_k)], s = 4, 8, 16."""
        with torch.no_grad():
            return super().forward(images, stages=stages)


class PyramidTeacher(nn.Module):
    """The same of a network that timm or torchvision builds.

    Attributes:
        network: The network.
        architecture: Its name as in the configuration.
        channels: Of each scale, finest first.
        strides: Input pixels per cell of each scale.
        mean: Of the images that it was trained on, RGB, of values in [0, 1].
        std: Standard deviation of the same.
    """

    def __init__(self, network: PyramidNetwork) -> None:
        super().__init__()
        self.network = network
        self.architecture, self.channels, self.strides = network.architecture, network.channels, network.strides
        self.mean, self.std = network.mean, network.std
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "PyramidTeacher":  # noqa: ARG002  # see Teacher
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, images: Tensor, *, stages: int | None = None) -> list[Tensor]:
        """Return the first ``stages`` scales without gradient, [(B, C_k, H / s_k, W / s_k)]; None for all."""
        with torch.no_grad():
            features: list[Tensor] = self.network(images, stages=stages)
            return features


def empty_teacher(architecture: str, size_hw: tuple[int, int] | None = None, *, seed: int = 0) -> Teacher | PyramidTeacher:
    """Return a teacher with weights drawn from ``seed``, to be replaced; the global random state is left as it was.

    Raises:
        ConfigError: If there is no such architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PyramidTeacher(build_pyramid(architecture, size_hw)) if is_pyramid(architecture) else Teacher(architecture)


def build_teacher(architecture: str, weights: str, *, seed: int | None = None, size_hw: tuple[int, int] | None = None) -> Teacher | PyramidTeacher:
    """Return a teacher with weights.

    The global random state is left as it was, so that a student's start does not depend on its teacher.

    Args:
        architecture: ``resnet18``, ``resnet34``, ``resnet50`` or ``wide_resnet50_2``; or ``timm:NAME`` or ``torchvision:NAME``.
        weights: ``imagenet`` (torchvision's download, for the first four), ``random`` (needs ``seed``), or a .safetensors or state-dict .pth file,
            which may lack what the teacher has no use for, such as layer4, and num_batches_tracked.
        seed: Seed of random weights.
        size_hw: Height and width of the input in pixels, which a transformer is built for.

    Raises:
        ConfigError: If the weights cannot be had, or do not fit the architecture.
    """
    teacher = empty_teacher(architecture, size_hw, seed=seed or 0)
    if weights == "random":
        if seed is None:
            raise ConfigError("teacher weights 'random' need a seed")
        if any(isinstance(part, nn.BatchNorm2d) for part in teacher.modules()):
            _randomize(teacher, seed)
        return teacher
    if isinstance(teacher, PyramidTeacher):
        if weights == "imagenet":
            raise ConfigError(f"the weights of {architecture} are not downloaded; give a file with --teacher-weights FILE")
        own = {f"network.{name}": tensor for name, tensor in teacher.network.own_state(read_state(weights)).items()}
        load_state(teacher, own, f"teacher weights {weights}")
        return teacher
    if weights == "imagenet":
        load_state(teacher, imagenet_state(architecture), f"ImageNet weights of {architecture}")
        return teacher
    load_state(teacher, read_state(weights), f"teacher weights {weights}")
    return teacher


def _randomize(teacher: nn.Module, seed: int) -> None:
    """Give He-normal weights and the batch statistics of seeded images.

    Without measured statistics the residual sums grow from block to block and the deeper maps are nearly constant over the image. The images
    are color noise with the same contrast at every scale, as photographs have, in the range of normalized images.
    """
    generator = torch.Generator().manual_seed(seed)
    initialize(teacher, generator)
    octaves = [torch.randn(8, 3, side, side, generator=generator) for side in (2, 4, 8, 16, 32, 64, 128)]
    images = torch.stack([F.interpolate(octave, size=(128, 128), mode="bilinear", align_corners=False) for octave in octaves]).mean(0) * 3
    norms = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    teacher(images)
    for norm in norms:
        norm.training, norm.momentum = False, 0.1
