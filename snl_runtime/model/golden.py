"""Golden samples: inputs with the scores and maps the checkpoint gave, compared on every machine before anything may pass."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import GoldenSampleError
from snl_runtime.files import atomic_path
from snl_runtime.images.views import Views, score_views
from snl_runtime.model.npz import FOREIGN_ERRORS, read_arrays

Scores: TypeAlias = npt.NDArray[np.float32]
Infer: TypeAlias = Callable[[npt.NDArray[np.uint8]], tuple[Scores, npt.NDArray[np.float32]]]
"""(N, H, W, 3) uint8 RGB -> scores (N,), maps (N, H, W)."""

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}
"""The one tolerance of a precision: allowed difference relative to the largest map value of the same golden sample or frame.

The self-test at load, the gate of an engine and, but for fp32, the gate of an export ask it. fp32: ten times the export gate, because another CPU
sums in another order; fp16: the measured spread of the mixed graph; int8: what eight bits cost single values of a map that still ranks and decides
alike."""

_MEMBERS = ("images", "scores", "maps")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GoldenSamples:
    """Images at the network's input size with what the checkpoint answered.

    Attributes:
        images: (n, H, W, 3) uint8 RGB.
        scores: (n,) float32.
        maps: (n, H, W) float32.
    """

    images: npt.NDArray[np.uint8]
    scores: Scores
    maps: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, dtype in (("images", np.uint8), ("scores", np.float32), ("maps", np.float32)):
            if getattr(self, name).dtype != dtype:
                raise GoldenSampleError(f"golden {name} must be {np.dtype(dtype)}, got {getattr(self, name).dtype}")
        if self.images.ndim != 4 or self.images.shape[3] != 3 or 0 in self.images.shape:
            raise GoldenSampleError(f"golden images must have shape (n, H, W, 3), got {self.images.shape}")
        if self.scores.shape != self.images.shape[:1] or self.maps.shape != self.images.shape[:3]:
            raise GoldenSampleError(
                f"golden scores and maps must match images of shape {self.images.shape}, got {self.scores.shape} and {self.maps.shape}"
            )
        if not (np.isfinite(self.scores).all() and np.isfinite(self.maps).all() and self.maps.max() > 0):
            raise GoldenSampleError("golden scores and maps must be finite and not all zero")


def golden_path(model_path: str | os.PathLike[str]) -> Path:
    """Return where the golden samples of ``x.onnx`` or ``x.trt`` lie: ``x.golden.npz`` beside it."""
    return Path(model_path).with_suffix(".golden.npz")


def read_golden(path: str | os.PathLike[str]) -> GoldenSamples:
    """Return the samples of an npz file; nothing in it is ever executed (no pickle).

    Raises:
        GoldenSampleError: If the file is missing, truncated, altered or of another form.
    """
    source = Path(path)
    try:
        return GoldenSamples(**read_arrays(source.read_bytes(), _MEMBERS))
    except OSError as error:
        raise GoldenSampleError(f"cannot read {source}: {error.strerror or error}; copy it beside the model from the folder of the export") from error
    except (GoldenSampleError, *FOREIGN_ERRORS) as error:
        raise GoldenSampleError(f"{source} holds no usable golden samples ({error}); copy it again from the export") from error


def write_golden(path: str | os.PathLike[str], golden: GoldenSamples) -> None:
    """Write the samples atomically as a compressed npz file; equal samples give equal bytes.

    Raises:
        SinkError: If the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=golden.images, scores=golden.scores, maps=golden.maps)


def golden_tolerance(graph: Mapping[str, Any], precision: str | None = None) -> float:
    """Return the allowed relative difference: the ``golden_tolerance`` of a manifest's ``graph``, else that of the precision.

    Args:
        graph: ``Manifest.graph``.
        precision: Precision of an engine; None for the graph's own.
    """
    own = graph.get("golden_tolerance") if precision is None else None
    if isinstance(own, (int, float)) and 0 < own < 1:
        return float(own)
    return TOLERANCES.get(precision or str(graph.get("precision", "fp32")), TOLERANCES["fp16"])


def check_golden(golden: GoldenSamples, infer: Infer, tolerance: float) -> float:
    """Compare this machine's scores and maps with the recorded ones and return the largest difference, relative like ``tolerance``.

    Args:
        golden: Recorded samples.
        infer: What to check; called with one sample at a time, so that a fixed batch of 1 will do.
        tolerance: Allowed difference relative to the largest map value of the same sample, as in the parity gate.

    Raises:
        GoldenSampleError: If a sample scores differently; the message names it with what was expected and what came.
    """
    largest = 0.0
    for index in range(len(golden.images)):
        scale = float(golden.maps[index].max())
        scores, maps = infer(golden.images[index : index + 1])
        if scores.shape != (1,) or maps.shape != (1, *golden.maps.shape[1:]):
            raise GoldenSampleError(
                f"golden sample {index} gave a map of shape {maps.shape}, expected {(1, *golden.maps.shape[1:])}; "
                "the golden samples belong to another model: export again"
            )
        score_difference = _checked_difference(index, "score", float(golden.scores[index]), float(scores[0]), tolerance=tolerance, scale=scale)
        difference = np.abs(maps[0].astype(np.float64) - golden.maps[index])
        worst = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)), difference.shape)
        where = f"map value at {tuple(map(int, worst))}"
        map_difference = _checked_difference(index, where, float(golden.maps[index][worst]), float(maps[0][worst]), tolerance=tolerance, scale=scale)
        largest = max(largest, score_difference, map_difference)
    return largest


def check_golden_batch(golden: GoldenSamples, infer: Infer, tolerance: float, *, batch_size: int) -> None:
    """Compare the samples scored in batches as large as the backend takes, and on the way that tiles take: cut, in batches, merged.

    A backend may answer right for one image and mix up several, or write the answer for one of them to all.

    Args:
        golden: Recorded samples; they are repeated where they are fewer than a batch.
        infer: What to check; called with up to ``batch_size`` samples.
        tolerance: As for :func:`check_golden`.
        batch_size: Most images in one call.

    Raises:
        GoldenSampleError: If a sample scores differently.
    """
    chosen = np.arange(max(len(golden.images), batch_size)) % len(golden.images)
    row = GoldenSamples(
        images=np.concatenate(list(golden.images[chosen]), axis=1)[None],
        scores=golden.scores.max()[None],
        maps=np.concatenate(list(golden.maps[chosen]), axis=1)[None],
    )
    views = Views(map_hw=(row.images.shape[1], row.images.shape[2]), view_hw=(golden.images.shape[1], golden.images.shape[2]))

    def score_row(images: npt.NDArray[np.uint8]) -> tuple[Scores, npt.NDArray[np.float32]]:
        score, anomaly_map = score_views(images[0], views, infer, batch_size=batch_size)
        return np.array([score], np.float32), anomaly_map[None]

    check_golden(row, score_row, tolerance)


def _checked_difference(index: int, what: str, expected: float, actual: float, *, tolerance: float, scale: float) -> float:
    allowed = tolerance * scale
    if not abs(actual - expected) <= allowed:  # written so that NaN fails
        raise GoldenSampleError(
            f"golden sample {index} gives a {what} of {actual:.6g} here, recorded is {expected:.6g}, allowed difference {allowed:.2g}; "
            "this machine does not compute what was evaluated: use another backend or device, or export again",
            abs(actual - expected) / scale,
        )
    return abs(actual - expected) / scale
