"""The network that ships: one module from raw pixels to raw scores.

Precision, by part (why: half overflows at a norm of 255 and rounds 1 - cos to 5e-4, so an all-half head gives maps of zeros without any error):

    pixels, /255, mean, std                       fp32
    convolutions of teacher, bottleneck, student  fp16 with ``precision="fp16"``; batch norms are folded in before
    CRAM, whose softmax holds |c|^2               fp32
    L2 norms, 1 - cos, means, map, score          fp32
    residual whitening and expectation            fp32
    memory: mean of 3x3 cells, products, maximum  fp32; a squared distance is a difference of numbers near 1
    affinity operands after the L2 norm           fp16 with ``precision="fp16"``; |x| <= 1, so nothing can overflow
"""

import copy
import functools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from snl_runtime.errors import ConfigError
from snl_train.config import ScoreConfig
from snl_train.models import Cram, TeacherStudent
from snl_train.models.whitening import ResidualWhitening
from snl_train.scoring import upsampling_weights

from .channels import InferenceCram, channel_length, channel_sum, not_negative
from .memory import InferenceMemory

Precision: TypeAlias = Literal["fp32", "fp16"]
AffinityLayout: TypeAlias = Literal["rows", "triangle"]

DEFAULT_TILE_ROWS = 256
"""Rows of the affinity matrix that exist at a time; 16 tiles at 256 px keep a half-precision slab at 2 MB, which fits the L2 cache of Jetson Orin."""


class SnlGraph(nn.Module):
    """Teacher, bottleneck, student, CRAM, memory and scoring head as one stateless function of raw pixels.

    Example:
        ``anomaly_map, anomaly_score = SnlGraph(model, config.score, size_hw=(256, 256))(pixels)``
    """

    pixel_scale: Tensor
    pixel_offset: Tensor

    def __init__(
        self,
        model: TeacherStudent,
        score: ScoreConfig,
        *,
        size_hw: tuple[int, int],
        precision: Precision = "fp32",
        tile_rows: int = DEFAULT_TILE_ROWS,
        layout: AffinityLayout = "rows",
    ) -> None:
        """Copy the networks of ``model``, fold their batch norms and set the precision of each part.

        Args:
            model: Trained networks; not changed.
            score: How maps become a score.
            size_hw: Height and width of the network input in pixels.
            precision: fp16 halves the convolutions and the operands of the affinity products, nothing else.
            tile_rows: Rows of the affinity matrix that exist at a time.
            layout: ``triangle`` computes the upper half of the symmetric matrix: the error in about 60 % of the time on a CPU, four times the
                memory on a GPU.

        Raises:
            ConfigError: If the score is not the maximum of the map, ``tile_rows`` is below 1, or the networks cannot be halved.
        """
        super().__init__()
        if score.top_k != 1:
            raise ConfigError(f"score.top_k must be 1 in an exported model, whose score is the maximum of its map, got {score.top_k}")
        if tile_rows < 1:
            raise ConfigError(f"tile_rows must be 1 or more, got {tile_rows}")
        self.size_hw = size_hw
        self.score = score
        self.tile_rows = tile_rows
        self.layout = layout
        self.memory = None if model.memory is None else InferenceMemory(model.memory)
        self.model = _rewrite_crams(_fold_batch_norms(copy.deepcopy(model).cpu().float().eval(), size_hw))
        self.work_dtype = torch.float32
        if precision == "fp16":
            _require_batch_norms(self.model)
            self.work_dtype = torch.float16
            self.model = _halve_convolutions(self.model)
        deviation = torch.tensor(model.teacher.std, dtype=torch.float64)[:, None, None]
        mean = torch.tensor(model.teacher.mean, dtype=torch.float64)[:, None, None]
        self.register_buffer("pixel_scale", (1 / (255 * deviation)).float())
        self.register_buffer("pixel_offset", (-mean / deviation).float())
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw anomaly map and score.

        Args:
            image: (N, H, W, 3) uint8 RGB.

        Returns:
            anomaly_map: (N, 1, H, W) float32.
            anomaly_score: (N,) float32, the largest value of each map.
        """
        # The cast comes first: TensorRT refuses to transpose uint8. Factors of whole planes are quicker than factors of every third number.
        x = image.to(torch.float32).permute(0, 3, 1, 2) * self.pixel_scale + self.pixel_offset  # (N, 3, H, W)
        teacher, student = self.model(x.to(self.work_dtype))
        anomaly_map = self.head(teacher, student)
        return anomaly_map, anomaly_map.amax(dim=(1, 2, 3))

    def head(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Return the map (N, 1, H, W) in fp32 for features (N, C_k, H_k, W_k) of any precision; ``student`` is empty where there is none."""
        cells: dict[int, Tensor] = {}  # of each layer, counted from 1: a resize is linear, so what has the same grid is added before it
        if self.model.student is not None or self.memory is None:
            cells = self._student_cells(teacher, student)
        if self.memory is not None:
            cells = {layer: scores * self.memory.student_weight for layer, scores in cells.items()}
            for layer, distances in zip(self.memory.layers, self.memory(teacher), strict=True):
                cells[layer] = cells[layer] + distances if layer in cells else distances
        return functools.reduce(torch.add, [self._resize(scores) for scores in cells.values()])

    def _student_cells(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> dict[int, Tensor]:
        distances = [None] * len(teacher) if self.model.whitening is None else list(self.model.whitening)
        if not teacher:
            raise ValueError("teacher and student must have at least one scale")
        return dict(enumerate((self._cell_scores(t, s, distance) for t, s, distance in zip(teacher, student, distances, strict=True)), 1))

    def _cell_scores(self, teacher: Tensor, student: Tensor, whitening: nn.Module | None) -> Tensor:
        t, s = teacher.float(), student.float()  # (N, C, H_k, W_k)
        t, s = t / channel_length(t), s / channel_length(s)
        if isinstance(whitening, ResidualWhitening):
            # A convolution, because TensorRT-RTX has no fp32 matrix product on Turing.
            weighted = F.conv2d(t - s, whitening.weight[:, :, None, None])  # (N, C, H_k, W_k)
            scores = channel_sum(weighted * weighted)  # (N, 1, H_k, W_k)
            if whitening.expectation:
                scores = scores * _inverse_expectation(s, whitening)
        else:
            scores = not_negative(1.0 - channel_sum(t * s))  # rounding gives cosines just above 1
        if self.score.affinity_weight:
            height, width = teacher.shape[-2:]
            error = self._affinity_error(t.flatten(2), s.flatten(2))  # (N, P)
            scores = scores + self.score.affinity_weight * error.reshape(-1, 1, height, width)
        return scores

    def _affinity_error(self, t: Tensor, s: Tensor) -> Tensor:
        """Return mean over i of |A_s(i, j) - A_t(i, j)|, (N, P) fp32; one product gives both matrices (Eq. 11, 12)."""
        t, s = t.to(self.work_dtype), s.to(self.work_dtype)
        rows = torch.split(torch.cat([s, t], dim=1).transpose(1, 2), self.tile_rows, dim=1)  # (N, rows of a tile, 2C) each
        columns = torch.cat([s, -t], dim=1)  # (N, 2C, P)
        if self.layout == "triangle":
            return _triangle_means(rows, columns)
        return torch.cat([(r @ columns).float().abs().mean(dim=2) for r in rows], dim=1)

    def _resize(self, cells: Tensor) -> Tensor:
        """Return (N, 1, H, W) for (N, 1, H_k, W_k), placed as ``score.alignment`` says and smoothed."""
        if self.score.smoothing_sigma > 0:
            return self._resize_and_smooth(cells)
        if self.score.alignment == "half-pixel":
            return F.interpolate(cells, size=self.size_hw, mode="bilinear", align_corners=False)
        if self.score.alignment == "corners":
            return F.interpolate(cells, size=self.size_hw, mode="bilinear", align_corners=True)
        # Pixel y reads cell y * cells / pixels: with one more cell and one more pixel that is what align_corners does.
        height, width = self.size_hw
        padded = F.pad(cells, (0, 1, 0, 1), mode="replicate")
        return F.interpolate(padded, size=(height + 1, width + 1), mode="bilinear", align_corners=True)[:, :, :height, :width]

    def _resize_and_smooth(self, cells: Tensor) -> Tensor:
        # A 1x1 convolution over rows, then columns: TensorRT-RTX has no fp32 matrix product on Turing, and ONNX no mirrored padding.
        height, width = cells.shape[2:]
        x = F.conv2d(cells.transpose(1, 2), self._axis_kernel(height, self.size_hw[0]))  # (N, H_k, 1, W_k) -> (N, H, 1, W_k)
        x = F.conv2d(x.permute(0, 3, 2, 1), self._axis_kernel(width, self.size_hw[1]))  # (N, W_k, 1, H) -> (N, W, 1, H)
        return x.permute(0, 2, 3, 1)

    def _axis_kernel(self, cells: int, pixels: int) -> Tensor:
        weights = upsampling_weights(cells, pixels, self.score.alignment, self.score.smoothing_sigma)
        return torch.tensor(weights, dtype=torch.float32)[:, :, None, None]


def _inverse_expectation(s: Tensor, whitening: ResidualWhitening) -> Tensor:
    """Return what whitened residuals (N, 1, H, W) are multiplied by, for the student's unit vectors (N, C, H, W)."""
    log_expected = F.conv2d(s, whitening.expected[None, :, None, None], whitening.offset[None])  # (N, 1, H, W)
    bounded = torch.minimum(torch.maximum(log_expected, whitening.lowest), whitening.highest)  # tensors: numbers cannot be traced
    return torch.exp(-bounded)


def _triangle_means(rows: Sequence[Tensor], columns: Tensor) -> Tensor:
    """Return row means of the symmetric |rows columns| from its upper block triangle: column sums stand in for the mirrored blocks.

    Args:
        rows: (N, rows of a tile, 2C) each.
        columns: (N, 2C, P).
    """
    sizes = [r.shape[1] for r in rows]
    parts: list[list[Tensor]] = [[] for _ in rows]
    start = 0
    for i, r in enumerate(rows):
        block = (r @ columns[:, :, start:]).float().abs()  # (N, rows of i, P - start)
        parts[i].append(block.sum(dim=2))
        if i + 1 < len(rows):
            # A product, because ONNX Runtime sums over the middle of a tensor four times as slowly.
            sums = (torch.ones(1, 1, sizes[i]) @ block)[:, 0, sizes[i] :]  # (N, P - start - rows of i)
            for later, part in zip(parts[i + 1 :], torch.split(sums, sizes[i + 1 :], dim=1), strict=True):
                later.append(part)
        start += sizes[i]
    return torch.cat([sum(own[1:], own[0]) for own in parts], dim=1) / start


class _FullPrecision(nn.Module):
    """Runs a module in fp32 between halved ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.inner(features.float())
        return result.to(features.dtype)


def _require_batch_norms(model: TeacherStudent) -> None:
    if any(isinstance(part, nn.LayerNorm) for part in model.modules()):
        raise ConfigError(f"teacher {model.teacher.architecture} has layer norms, which lose too much in half precision; export it without --fp16")


def _halve_convolutions(model: TeacherStudent) -> TeacherStudent:
    kept = {id(cram) for cram in model.modules() if isinstance(cram, InferenceCram)}
    whitening = copy.deepcopy(model.whitening)  # part of the head, not of the backbone
    model = model.half()
    model.whitening = whitening
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in kept:
                setattr(parent, name, _FullPrecision(child))
    return model


def _rewrite_crams(model: TeacherStudent) -> TeacherStudent:
    """Put the form for inference in the place of each CRAM."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Cram):
                setattr(parent, name, InferenceCram(child))
    return model


def _fold_batch_norms(model: TeacherStudent, size_hw: tuple[int, int]) -> TeacherStudent:
    """Merge each batch norm into the convolution whose output it reads, in place.

    Done before halving: a convolution's raw output can leave the range of half where the normalized one does not.
    """
    made_by: dict[int, nn.Conv2d | nn.ConvTranspose2d] = {}
    kept: list[Tensor] = []  # an output that stays alive keeps its id
    pairs: list[tuple[nn.Conv2d | nn.ConvTranspose2d, nn.BatchNorm2d]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            made_by[id(output)] = module
            kept.append(output)
        if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])], module))

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)]
    with torch.no_grad():
        model(torch.zeros(1, 3, *size_hw))
    for hook in hooks:
        hook.remove()
    for convolution, norm in pairs:
        _fold(convolution, norm)
    folded = {id(norm) for _, norm in pairs}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in folded:
                setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's batch norms hold the activation that follows
    return model


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("a batch norm without running statistics cannot be exported")
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )
