"""Teacher, student and memory of all methods as one module."""

import torch
from torch import Tensor, nn

from snl_train.config import ModelConfig
from snl_train.memory_config import MemoryConfig
from snl_train.models.cram import Cram
from snl_train.models.forward import ForwardStudent
from snl_train.models.memory import FeatureMemory
from snl_train.models.resnet import spec_of
from snl_train.models.reverse import Bottleneck, ReverseStudent
from snl_train.models.teacher import Teacher, build_teacher
from snl_train.models.whitening import ResidualWhitening

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the images the teacher was trained on, RGB, of values in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""


class TeacherStudent(nn.Module):
    """Frozen teacher and trainable student: ``rd``, ``fd``, ``snl-rd`` and ``snl-fd``; or a teacher and its memory, ``memory``.

    Attributes:
        teacher: Frozen, always in eval mode.
        bottleneck: Teacher features to the decoder's input; None for the forward methods.
        student: Gives features shaped like the teacher's; None for ``memory``.
        whitening: One module per scale that the scores use in place of the cosine distance; None for the plain cosine.
        memory: Normal features of the teacher, whose distances the scores add to the student's or consist of; None without a memory.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, memory: MemoryConfig | None = None, *, load_teacher_weights: bool = True) -> None:
        """Build the networks; the student's start follows torch's global seed and does not depend on the teacher's weights.

        Args:
            config: Which networks.
            memory: The memory, which is empty at first; None, or one of 0 centers, for none.
            load_teacher_weights: False leaves the teacher with meaningless weights, for a caller that loads a whole state dict next.

        Raises:
            ConfigError: If the teacher's weights cannot be had or do not fit.
        """
        super().__init__()
        self.config = config
        if load_teacher_weights:
            self.teacher = build_teacher(config.teacher, config.teacher_weights, seed=config.teacher_seed)
        else:
            with torch.random.fork_rng(devices=[]):
                self.teacher = Teacher(config.teacher)
        self.bottleneck = Bottleneck(config.teacher) if config.is_reverse else None
        student = ReverseStudent if config.is_reverse else ForwardStudent
        self.student: ReverseStudent | ForwardStudent | None = None
        if config.has_student:
            self.student = student(config.teacher, _crams(config), cram_feeds_next=config.cram_feeds_next)
        self.whitening = _whitenings(config)
        self.memory = FeatureMemory(memory, spec_of(config.teacher).channels) if memory is not None and memory.centers else None
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float as the teacher wants it, for RGB images (B, H, W, 3) uint8."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be (B, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255  # (B, 3, H, W)
        return (x - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return (teacher, student), each [(B, C_k, H / s_k, W / s_k)] with s = 4, 8, 16, for normalized images (B, 3, H, W).

        Without a student its list is empty, and the teacher's ends with the last layer that is remembered.

        Raises:
            ValueError: If the images are not 4-D or their sides are not multiples of ``config.size_multiple_px``.
        """
        multiple = self.config.size_multiple_px
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


def build_model(config: ModelConfig, memory: MemoryConfig | None = None, *, load_teacher_weights: bool = True) -> TeacherStudent:
    """Return the model of a configuration, in train mode with the teacher in eval mode and the memory empty.

    Raises:
        ConfigError: If the teacher's weights cannot be had or do not fit.
    """
    return TeacherStudent(config, memory, load_teacher_weights=load_teacher_weights)


def _whitenings(config: ModelConfig) -> nn.ModuleList | None:
    if not config.whitening:
        return None
    floor, expectation = config.whitening_floor, config.whitening_expectation
    return nn.ModuleList(ResidualWhitening(channels, floor=floor, expectation=expectation) for channels in spec_of(config.teacher).channels)


def _crams(config: ModelConfig) -> nn.ModuleList | None:
    if config.centers == 0:
        return None
    return nn.ModuleList(
        Cram(
            channels,
            config.centers,
            alpha=config.cram_alpha,
            center_norm=config.cram_center_norm,
            normalize_input=config.cram_normalize,
            positive_alpha=config.cram_positive_alpha,
        )
        for channels in spec_of(config.teacher).channels
    )
