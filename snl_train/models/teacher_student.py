"""Teacher, student and memory of all methods as one module."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from snl_runtime.errors import ConfigError
from snl_train.config import ModelConfig
from snl_train.memory_config import MemoryConfig
from snl_train.models.cram import Cram
from snl_train.models.forward import ForwardStudent
from snl_train.models.memory import FeatureMemory
from snl_train.models.pyramids import build_pyramid, is_pyramid
from snl_train.models.resnet import ResNetPyramid, ResNetSpec, spec_of
from snl_train.models.reverse import Bottleneck, ReverseStudent
from snl_train.models.teacher import PyramidTeacher, Teacher, build_teacher, empty_teacher
from snl_train.models.whitening import ResidualWhitening


class TeacherStudent(nn.Module):
    """Frozen teacher and trainable student: ``rd``, ``fd``, ``snl-rd`` and ``snl-fd``; or a teacher and its memory, ``memory``.

    Attributes:
        teacher: Frozen, always in eval mode.
        bottleneck: Teacher features to the decoder's input; None for the forward methods.
        student: Gives features shaped like the teacher's; None for ``memory``.
        whitening: One module per scale that the scores use in place of the cosine distance; None for the plain cosine.
        memory: Normal features of the teacher, whose distances the scores add to the student's or consist of; None without a memory.
        size_multiple_px: What image height and width must be multiples of: the teacher's largest stride, twice that with a bottleneck.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        memory: MemoryConfig | None = None,
        *,
        size_hw: tuple[int, int] | None = None,
        load_teacher_weights: bool = True,
    ) -> None:
        """Build the networks; the student's start follows torch's global seed and does not depend on the teacher's weights.

        Args:
            config: Which networks.
            memory: The memory, which is empty at first; None, or one of 0 centers, for none.
            size_hw: Height and width of the input in pixels; needed for a transformer as the teacher, and checked where given.
            load_teacher_weights: False leaves the teacher with meaningless weights, for a caller that loads a whole state dict next.

        Raises:
            ConfigError: If the teacher's weights cannot be had or do not fit, or teacher, method, memory and input size do not go together.
        """
        super().__init__()
        self.config = config
        if load_teacher_weights:
            self.teacher = build_teacher(config.teacher, config.teacher_weights, seed=config.teacher_seed, size_hw=size_hw)
        else:
            self.teacher = empty_teacher(config.teacher, size_hw)
        self.size_multiple_px = self.teacher.strides[-1] * (2 if config.is_reverse else 1)
        _check_fits(self.teacher, self.size_multiple_px, config, memory, size_hw)
        channels = self.teacher.channels
        spec = _student_spec(config.teacher, channels)
        self.bottleneck = Bottleneck(spec) if config.is_reverse else None
        self.student: ReverseStudent | ForwardStudent | None = None
        if config.has_student:
            crams = _crams(config, channels)
            if config.is_reverse:
                self.student = ReverseStudent(spec, crams, cram_feeds_next=config.cram_feeds_next)
            else:
                backbone = build_pyramid(config.teacher, size_hw) if is_pyramid(config.teacher) else ResNetPyramid(config.teacher)
                self.student = ForwardStudent(backbone, crams, cram_feeds_next=config.cram_feeds_next)
        self.whitening = _whitenings(config, channels)
        self.memory = FeatureMemory(memory, channels) if memory is not None and memory.centers else None
        self.register_buffer("mean", torch.tensor(self.teacher.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self.teacher.std)[:, None, None], persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float as the teacher wants it, for RGB images (B, H, W, 3) uint8."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be (B, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255  # (B, 3, H, W)
        return (x - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return (teacher, student), each [(B, C_k, H / s_k, W / s_k)] with s = 4, 8, 16 for a ResNet, for normalized images (B, 3, H, W).

        Without a student its list is empty, and the teacher's ends with the last layer that is remembered.

        Raises:
            ValueError: If the images are not 4-D or their sides are not multiples of ``size_multiple_px``.
        """
        multiple = self.size_multiple_px
        if images.dim() != 4 or any(side % multiple for side in images.shape[-2:]):
            raise ValueError(f"images must be (B, 3, H, W) with sides in multiples of {multiple}, got {tuple(images.shape)}")
        if self.student is None and self.memory is not None:
            return self.teacher(images, stages=max(self.memory.layers)), []
        teacher = self.teacher(images)
        return teacher, self.imitate(images, teacher)

    def imitate(self, images: Tensor, teacher: list[Tensor]) -> list[Tensor]:
        """Return the student's features for images and the teacher's features of the same images, shapes as in :meth:`forward`."""
        if self.student is None:
            return []
        features: list[Tensor] = self.student(images if self.bottleneck is None else self.bottleneck(teacher))
        return features


def build_model(
    config: ModelConfig,
    memory: MemoryConfig | None = None,
    *,
    size_hw: tuple[int, int] | None = None,
    load_teacher_weights: bool = True,
) -> TeacherStudent:
    """Return the model of a configuration, in train mode with the teacher in eval mode and the memory empty; arguments as :class:`TeacherStudent`.

    Raises:
        ConfigError: If the teacher's weights cannot be had or do not fit, or the parts do not go together.
    """
    return TeacherStudent(config, memory, size_hw=size_hw, load_teacher_weights=load_teacher_weights)


def _check_fits(
    teacher: Teacher | PyramidTeacher, multiple: int, config: ModelConfig, memory: MemoryConfig | None, size_hw: tuple[int, int] | None
) -> None:
    if size_hw is not None and any(side < multiple or side % multiple for side in size_hw):
        raise ConfigError(
            f"image_size must be height and width in positive multiples of {multiple} for method {config.method} with teacher {config.teacher}, "
            f"got {size_hw}"
        )
    scales = len(teacher.channels)
    if memory is not None and memory.centers and max(memory.layers) > scales:
        layers = list(range(1, scales + 1))
        raise ConfigError(f"memory.layers {list(memory.layers)}: teacher {config.teacher} has {scales} scales; say --set memory.layers={layers}")


def _student_spec(architecture: str, channels: tuple[int, ...]) -> ResNetSpec:
    """Return what bottleneck and decoder are built of: the teacher's blocks for a ResNet, else two of ResNet-18's for each scale."""
    if not is_pyramid(architecture):
        return spec_of(architecture)
    return ResNetSpec(block=BasicBlock, depths=(2,) * len(channels), widths=channels)


def _whitenings(config: ModelConfig, channels: tuple[int, ...]) -> nn.ModuleList | None:
    if not config.whitening:
        return None
    return nn.ModuleList(ResidualWhitening(count, floor=config.whitening_floor, expectation=config.whitening_expectation) for count in channels)


def _crams(config: ModelConfig, channels: tuple[int, ...]) -> nn.ModuleList | None:
    if config.centers == 0:
        return None
    return nn.ModuleList(
        Cram(
            count,
            config.centers,
            alpha=config.cram_alpha,
            center_norm=config.cram_center_norm,
            normalize_input=config.cram_normalize,
            positive_alpha=config.cram_positive_alpha,
        )
        for count in channels
    )
