"""What a training run is told: networks, losses, scoring, optimizer, data. Imports no torch, so that ``-h`` is instant."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from snl_runtime import config as generic
from snl_runtime.errors import ConfigError
from snl_runtime.images.views import Tiles
from snl_train.budget import EarlyStopConfig, check_budget, total_steps, with_one_budget
from snl_train.config_checks import check as _check
from snl_train.config_checks import is_positive as _is_positive
from snl_train.memory_config import DEFAULT_MEMORY_CENTERS, MemoryConfig
from snl_train.synthetic_anomaly_config import SyntheticAnomalyConfig

Method: TypeAlias = Literal["snl-rd", "snl-fd", "rd", "fd", "memory"]
Architecture: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2"]
Alignment: TypeAlias = Literal["half-pixel", "corners", "grid"]
Reduction: TypeAlias = Literal["mean", "sum"]
Pairing: TypeAlias = Literal["roll", "permutation", "mutual", "different-class"]
Optimizer: TypeAlias = Literal["adam", "muon"]
Schedule: TypeAlias = Literal["one-cycle", "cosine", "constant"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
WhiteningNormalization: TypeAlias = Literal["mean", "maximum"]
Preset: TypeAlias = Literal["paper", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which networks there are and how CRAM is wired into the student."""

    method: Method = "snl-rd"
    """Reverse (rd) or forward (fd) distillation, plain or with CRAM and the structural losses (snl-); or no student at all, ``memory``."""
    teacher: str = "wide_resnet50_2"
    """Architecture of the frozen teacher: resnet18, resnet34, resnet50 or wide_resnet50_2, of which the student is built too; or ``timm:NAME`` or
    ``torchvision:NAME``, of which only scales and preprocessing are taken over."""
    teacher_weights: str = "imagenet"
    """``imagenet`` (torchvision's download, of the ResNets), ``random``, or a .safetensors or .pth file."""
    teacher_seed: int = 0
    """Seed of a random teacher; of no effect with other weights."""
    centers: int = 50
    """Centers of each CRAM; 0 builds none. Always 0 for the plain methods and for ``memory``, which has no whitening either."""
    cram_normalize: bool = False
    """Assign features to centers by direction (L2-normalized), restoring their length afterwards; False is Eq. 8 and 9 as printed."""
    cram_alpha: float = 1.0
    """Start value of alpha of Eq. 8, which is learned."""
    cram_positive_alpha: bool = False
    """Use the absolute value of alpha, so that training cannot turn near centers into far ones."""
    cram_center_norm: float = 1.0
    """Expected L2 norm of a center at the start."""
    cram_feeds_next: bool = True
    """Whether the next student stage sees CRAM's output (True) or CRAM's input (False)."""
    whitening: bool = False
    """Weight the residuals of teacher and student by what good images show of them, instead of the plain cosine distance of Eq. 1 and 10; see
    ``snl_train.models.whitening``. Fitted at the end of training; of no effect on the losses."""
    whitening_floor: float = 0.1
    """Smallest variance that a direction is credited with, as a share of the mean one."""
    whitening_expectation: float = 0.0
    """Power, 0 to 1, of the residual that good images lead to expect at such a place, which whitened residuals are divided by; 0 for none. Of no
    effect without whitening."""
    whitening_normalization: WhiteningNormalization = "mean"
    """What is 1 at every scale on good images: the mean of the whitened residuals, or the mean over images of each one's highest. Of no effect
    without whitening."""

    def __post_init__(self) -> None:
        _check("model.centers", self.centers, "0 or more", self.centers >= 0)
        _check("model.cram_alpha", self.cram_alpha, "positive", _is_positive(self.cram_alpha))
        _check("model.cram_center_norm", self.cram_center_norm, "positive", _is_positive(self.cram_center_norm))
        _check("model.whitening_floor", self.whitening_floor, "positive", _is_positive(self.whitening_floor))
        _check("model.whitening_expectation", self.whitening_expectation, "in [0, 1]", 0 <= self.whitening_expectation <= 1)
        is_named = self.teacher in get_args(Architecture) or self.package_of_teacher is not None
        _check("model.teacher", self.teacher, f"one of {', '.join(get_args(Architecture))}, or timm:NAME or torchvision:NAME", is_named)
        _check("model.teacher_seed", self.teacher_seed, "0 or more", self.teacher_seed >= 0)
        _check("model.teacher_weights", self.teacher_weights, "imagenet, random or a file name", bool(self.teacher_weights.strip()))
        if self.is_plain and self.centers:
            object.__setattr__(self, "centers", 0)
        if not self.has_student and self.whitening:
            object.__setattr__(self, "whitening", False)

    @property
    def has_student(self) -> bool:
        """Whether a student is trained."""
        return self.method != "memory"

    @property
    def is_plain(self) -> bool:
        """Whether there is neither CRAM nor a structural loss."""
        return self.method in ("rd", "fd", "memory")

    @property
    def is_reverse(self) -> bool:
        """Whether the student decodes the teacher's features instead of seeing the image."""
        return self.method in ("rd", "snl-rd")

    @property
    def package_of_teacher(self) -> str | None:
        """``timm`` or ``torchvision`` where the teacher is named after it; None for the ResNets of this project."""
        package, _, name = self.teacher.partition(":")
        return package if package in ("timm", "torchvision") and name else None

    @property
    def size_multiple_px(self) -> int:
        """What image height and width must be multiples of: 32 where a bottleneck halves layer3's grid, else 16; 1 where only the teacher knows."""
        if self.package_of_teacher is not None:
            return 1
        return 32 if self.is_reverse else 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and forms of the four losses, Eq. 2 to 7."""

    channel_weight: float = 1.0
    """Weight of the cosine distance per position, Eq. 2."""
    channel_focus: float = 0.0
    """Exponent g of each position's weight in that loss, its distance to the power of g: what the student still gets wrong counts for more than what
    it has learned. 0 is Eq. 2, where all positions count alike. The plain methods take it too."""
    spatial_weight: float = 1.0
    """Lambda 1: KL divergence over positions, Eq. 3. Always 0 for the plain methods, as are the next two."""
    intra_weight: float = 1.0
    """Lambda 2: affinity within an image, Eq. 5."""
    inter_weight: float = 1.0
    """Lambda 3: affinity between two images of the batch, Eq. 6."""
    spatial_reduction: Reduction = "mean"
    """Over channels; ``sum`` is Eq. 3 as printed and dwarfs the other losses."""
    spatial_temperature: float = 1.0
    """Divides the features before the softmax of Eq. 4."""
    affinity_reduction: Reduction = "mean"
    """Over pairs of positions; ``sum`` is Eq. 5 and 6 as printed and dwarfs the other losses."""
    inter_pairing: Pairing = "mutual"
    """Which other image of the batch each image is compared with; ``mutual`` pairs cost half of the others."""
    affinity_positions: int = 0
    """At each scale with more positions than this, compare affinities of so many, drawn anew at every step: an unbiased estimate of the mean of
    Eq. 5 and 6 (but for its diagonal) at a cost that falls with the square. 0 takes all, as the paper does."""
    tile_rows: int = 256
    """Rows of the affinity matrix held at a time; changes memory and speed, not the value."""

    def __post_init__(self) -> None:
        for name in ("channel_weight", "channel_focus", "spatial_weight", "intra_weight", "inter_weight"):
            value = getattr(self, name)
            _check(f"loss.{name}", value, "0 or more", math.isfinite(value) and value >= 0)
        _check("loss.spatial_temperature", self.spatial_temperature, "positive", _is_positive(self.spatial_temperature))
        _check("loss.tile_rows", self.tile_rows, "1 or more", self.tile_rows >= 1)
        _check("loss.affinity_positions", self.affinity_positions, "0, or 2 or more", self.affinity_positions == 0 or self.affinity_positions >= 2)
        if self.affinity_positions and self.affinity_reduction == "sum":
            raise ConfigError(
                "loss.affinity_positions estimates a mean over positions; set loss.affinity_reduction to mean, or affinity_positions to 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """How teacher and student features become an anomaly map and a score, Eq. 10 to 14."""

    affinity_weight: float = 1.0
    """Weight of the affinity error in the map; 1 is Eq. 13, 0 leaves it out. Always 0 for the plain methods."""
    alignment: Alignment = "half-pixel"
    """Where a feature cell lies on the image: see ``snl_train.scoring.upsampling_weights``."""
    smoothing_sigma: float = 0.0
    """Standard deviation of a Gaussian over the map, in network pixels; 0 for none (RD4AD: 4)."""
    top_k: int = 1
    """The score is the mean of this many highest pixels; 1 is Eq. 14 and what the runtime checks for."""
    tile_rows: int = 256
    """Rows of the affinity matrix held at a time; changes memory and speed, not the value."""

    def __post_init__(self) -> None:
        _check("score.affinity_weight", self.affinity_weight, "0 or more", math.isfinite(self.affinity_weight) and self.affinity_weight >= 0)
        _check("score.smoothing_sigma", self.smoothing_sigma, "0 or more", math.isfinite(self.smoothing_sigma) and self.smoothing_sigma >= 0)
        _check("score.top_k", self.top_k, "1 or more", self.top_k >= 1)
        _check("score.tile_rows", self.tile_rows, "1 or more", self.tile_rows >= 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How the student is trained. The paper states Adam and the learning rate only; the rest is this project's."""

    optimizer: Optimizer = "adam"
    """``adam`` is the paper's; ``muon`` orthogonalizes the steps of the convolution kernels and leaves the rest to Adam, see ``snl_train.muon``."""
    learning_rate: float = 5e-3
    """Peak learning rate of either optimizer."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates (RD4AD's, since the paper follows it)."""
    momentum: float = 0.95
    """Muon's decay rate of past gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay on the student's weights."""
    schedule: Schedule = "one-cycle"
    """Learning rate over the run: up then down to almost 0, straight down from the peak, or unchanged."""
    warmup_share: float = 0.1
    """Share of the steps with a rising learning rate (one-cycle only)."""
    gradient_clip: float = 0.0
    """Largest L2 norm of the gradient; 0 for no limit."""
    average_decay: float = 0.0
    """Per-step decay of an exponential average of the weights, which is what gets saved; 0 saves the last weights."""
    average_last_share: float = 0.0
    """Share of the last steps whose weights are averaged evenly, which is what gets saved; 0 for none."""

    def __post_init__(self) -> None:
        _check("optim.learning_rate", self.learning_rate, "positive", _is_positive(self.learning_rate))
        _check("optim.betas", self.betas, "two numbers in [0, 1)", all(0 <= beta < 1 for beta in self.betas))
        _check("optim.momentum", self.momentum, "in [0, 1)", 0 <= self.momentum < 1)
        _check("optim.weight_decay", self.weight_decay, "0 or more", math.isfinite(self.weight_decay) and self.weight_decay >= 0)
        _check("optim.warmup_share", self.warmup_share, "in [0, 1)", 0 <= self.warmup_share < 1)
        _check("optim.gradient_clip", self.gradient_clip, "0 or more", math.isfinite(self.gradient_clip) and self.gradient_clip >= 0)
        _check("optim.average_decay", self.average_decay, "in [0, 1)", 0 <= self.average_decay < 1)
        _check("optim.average_last_share", self.average_last_share, "in [0, 1]", 0 <= self.average_last_share <= 1)
        if self.average_decay and self.average_last_share:
            raise ConfigError("optim.average_decay and optim.average_last_share exclude each other; set one of them to 0")

    @property
    def is_open_ended(self) -> bool:
        """Whether no step depends on how many there will be, so that a training may end early or go on longer."""
        return self.schedule == "constant" and not self.average_last_share


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which images are trained on."""

    hold_out: float = 0.0
    """Share of each class's good training images kept out of training and listed in the checkpoint, for calibration."""
    max_per_class: int | None = None
    """Use at most this many training images of each class, chosen by the seed; None for all."""
    skip_unreadable: bool = False
    """Leave out and list files that cannot be read, instead of stopping at the first."""
    cache_mib: int = 2048
    """Memory for resized training images; larger sets are read from disk every epoch."""
    tile_px: int | None = None
    """Side of the tiles that are trained on, in image pixels; None for whole images. One of the network's size is seen at native resolution."""
    tile_overlap_px: int = 32
    """Least overlap of neighboring tiles in image pixels; of no effect without tiles."""
    with_whole_frame: bool = False
    """Train on the whole image, reduced to the network's input, beside its tiles: for parts that are missing or in the wrong place."""
    bit_depth: int | None = None
    """Bits that a value of the image files uses: 8, or of 16-bit files 10, 12, 14 or 16; None for 8 or 16, whichever the files have."""

    def __post_init__(self) -> None:
        _check("data.hold_out", self.hold_out, "in [0, 1)", 0 <= self.hold_out < 1)
        _check("data.max_per_class", self.max_per_class, "1 or more, or nothing", self.max_per_class is None or self.max_per_class >= 1)
        _check("data.cache_mib", self.cache_mib, "0 or more", self.cache_mib >= 0)
        _check("data.tile_px", self.tile_px, "16 or more, or nothing", self.tile_px is None or self.tile_px >= 16)
        _check("data.tile_overlap_px", self.tile_overlap_px, "in [0, data.tile_px)", 0 <= self.tile_overlap_px < (self.tile_px or math.inf))
        if self.with_whole_frame and self.tile_px is None:
            raise ConfigError("data.with_whole_frame adds the whole image to tiles, and data.tile_px gives none; give --tile N, or leave it out")
        _check("data.bit_depth", self.bit_depth, "8, 10, 12, 14 or 16, or nothing", self.bit_depth in (None, 8, 10, 12, 14, 16))

    @property
    def tiles(self) -> Tiles | None:
        """The tiles that are trained on, None for whole images."""
        return None if self.tile_px is None else Tiles(self.tile_px, self.tile_overlap_px, self.with_whole_frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole training run; saved with every checkpoint as it was used.

    For the plain methods (rd, fd) the weights of the structural losses and of the affinity map are set to 0 here, so that the saved
    configuration says what was trained.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Anomaly map and score."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    synthetic_anomalies: SyntheticAnomalyConfig = field(default_factory=SyntheticAnomalyConfig)
    """Synthetic anomalies in the student's input."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Memory of normal features, alone or beside the student."""
    preset: Preset | None = None
    """Preset that the run started from; recorded, of no effect by itself."""
    seed: int = 0
    """Seed of weights, sampling and hold-out."""
    steps: int | None = None
    """Optimizer steps; None with ``epochs`` None too for 1,000 steps, but at least 2 and at most 40 passes over the images."""
    epochs: int | None = None
    """The same as passes over the training images; None where steps are given."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    """When the training may end before that."""
    batch_size: int = 8
    """Images per step, drawn evenly over the classes."""
    image_size: tuple[int, int] = (256, 256)
    """Height and width of the network input in pixels: multiples of 32 for rd and snl-rd, of 16 for the others."""
    device: Device = "auto"
    """Where to train; auto takes CUDA if there is a GPU."""
    mixed_precision: bool = True
    """Half-precision backbones and affinity products on CUDA; of no effect on a CPU."""
    mixed_precision_cpu: bool = False
    """The same in bfloat16 on a CPU that has instructions for it (AVX512-BF16 or AMX). Off: float32 repeats across processors better."""
    golden_samples: int = 16
    """Most training images kept in the checkpoint to prove later that an exported file scores the same; two of each class."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "golden_samples"):
            _check(name, getattr(self, name), "1 or more", getattr(self, name) >= 1)
        check_budget(self.steps, self.epochs)
        if self.early_stop.patience and not self.optim.is_open_ended:
            raise ConfigError(
                "early_stop.patience needs optim.schedule=constant and optim.average_last_share=0: "
                f"schedule {self.optim.schedule} is made for its whole budget; set them, or early_stop.patience=0"
            )
        _check("seed", self.seed, "0 or more", self.seed >= 0)
        multiple = self.model.size_multiple_px
        fits = all(side >= multiple and side % multiple == 0 for side in self.image_size)
        _check("image_size", self.image_size, f"height and width in positive multiples of {multiple} for method {self.model.method}", fits)
        _check("image_size", self.image_size, "square to train on tiles", self.data.tile_px is None or len(set(self.image_size)) == 1)
        if self.model.is_plain:
            object.__setattr__(self, "loss", dataclasses.replace(self.loss, spatial_weight=0.0, intra_weight=0.0, inter_weight=0.0))
            object.__setattr__(self, "score", dataclasses.replace(self.score, affinity_weight=0.0))
        if not self.model.has_student and not self.memory.centers:
            object.__setattr__(self, "memory", dataclasses.replace(self.memory, centers=DEFAULT_MEMORY_CENTERS))

    def total_steps(self, batches_per_epoch: int) -> int:
        """Return the optimizer steps of this training, see :func:`snl_train.budget.total_steps`; 0 where there is no student."""
        if not self.model.has_student:
            return 0
        return total_steps(steps=self.steps, epochs=self.epochs, batches_per_epoch=batches_per_epoch)


def preset_config(name: str) -> TrainConfig:
    """Return a named starting point.

    ``paper``: WRN50 at 256x256, Adam with learning rate 0.005, batch 8, 50 centers, all lambdas 1, as the paper states; steps, betas, schedule and
    the reductions of the losses are this project's, because the paper does not state them.
    ``best``: what measured best in ``benchmarks/accuracy``: Muon, L_cd weighted by the distance itself, synthetic anomalies in the student's input,
    residual whitening normalized by maxima, CRAM on directions with a positive alpha, a map smoothed by 4 pixels as RD4AD's, and no affinity error in
    it. The affinity losses stay with a tenth of the paper's weight, on at most 256 positions drawn per scale; L_sd is left out.
    ``docs/decisions`` says why.

    Raises:
        ConfigError: If there is no preset of that name.
    """
    if name == "paper":
        return TrainConfig(preset="paper")
    if name == "best":
        return TrainConfig(
            preset="best",
            model=ModelConfig(cram_normalize=True, cram_alpha=10.0, cram_positive_alpha=True, whitening=True, whitening_normalization="maximum"),
            loss=LossConfig(channel_focus=1.0, spatial_weight=0.0, intra_weight=0.1, inter_weight=0.1, affinity_positions=256),
            optim=OptimConfig(optimizer="muon"),
            score=ScoreConfig(affinity_weight=0.0, smoothing_sigma=4.0),
            synthetic_anomalies=SyntheticAnomalyConfig(share=0.7),
        )
    raise ConfigError(f"unknown preset '{name}'; known: paper, best")


def load_config(path: Path | None = None, overrides: Mapping[str, object] | None = None, *, preset: Preset = "paper") -> TrainConfig:
    """Return the configuration that a preset, a YAML file and dotted overrides give, the later ones winning.

    A key ``preset`` in the file or the overrides replaces the argument. The method ``memory``, for which the paper has
    no settings, starts from ``best`` where no preset is asked for.

    Raises:
        ConfigError: If the file cannot be read, or a key is unknown, of another type or out of range.
    """
    in_file = {} if path is None else generic.read_yaml(path)
    overrides = with_one_budget(overrides or {})
    asked = overrides.get("preset") or in_file.get("preset")
    config = generic.load_config(TrainConfig, path, overrides, base=preset_config(str(asked or preset)))
    if asked is None and not config.model.has_student:
        return generic.load_config(TrainConfig, path, overrides, base=preset_config("best"))
    return config


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as nested plain values, fit for JSON, YAML and a checkpoint."""
    plain: dict[str, Any] = generic.to_plain(config)
    return plain


def from_plain(plain: Mapping[str, object]) -> TrainConfig:
    """Return the configuration that ``to_plain`` gave.

    Raises:
        ConfigError: If a key is unknown, of another type or out of range.
    """
    return generic.from_plain(TrainConfig, plain)
