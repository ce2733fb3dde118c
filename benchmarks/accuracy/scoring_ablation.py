"""``python -m benchmarks.accuracy.scoring_ablation``: one training, scored in every way that the paper leaves open.

What the paper does not say about scoring (its Eq. 1 and 10 to 14) needs no training to be compared: the distance of teacher and student, the affinity
error and its weight, how cells are placed on the image, smoothing, the maximum or a mean of the highest pixels, and the normalization map of
``snl-calibrate --fixed-pose``. Every row differs from the first in one thing. The normalization map is fitted on each product's training images.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.accuracy.checkpoint_scores import (
    SCORED_AT_ONCE,
    ClassImages,
    Images,
    Labels,
    Maps,
    checkpoint_parser,
    map_figures,
    score_checkpoints,
)
from benchmarks.accuracy.tables import RESULTS, SCORING
from snl_runtime.cli.command import run_command
from snl_train.config import Alignment

PROGRAM = "benchmarks.accuracy.scoring_ablation"
TABLE = RESULTS / "scoring.csv"
_EXAMPLE = """
python -m benchmarks.accuracy.scoring_ablation --data realmix --checkpoints runs/accuracy/reduced/snl-rd-best_128_realmix_multi_s?.pt
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """One way to score."""

    name: str
    distance: Literal["cosine", "whitened", "expected"] = "cosine"
    """Of the unit vectors of teacher and student; ``expected`` are whitened residuals divided by their expectation."""
    affinity_weight: float = 0.0
    """Of the affinity error, Eq. 13."""
    alignment: Alignment = "half-pixel"
    """Where a cell lies on the image."""
    sigma: float = 0.0
    """Of the Gaussian over the map, in pixels."""
    top_k: int = 1
    """Highest pixels whose mean is the score."""
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weight of each scale's map, the finest scale first; Eq. 12 adds them up as they are."""
    normalization: bool = False
    """Whether the product's normalization map is applied."""


_SMOOTHED: dict[str, Literal["cosine", "whitened"]] = {"smoothed, 4 px": "cosine", "as best": "whitened"}
_SCALES = {
    "finest scale alone": (1.0, 0.0, 0.0),
    "middle scale alone": (0.0, 1.0, 0.0),
    "coarsest scale alone": (0.0, 0.0, 1.0),
    "without the finest scale": (0.0, 1.0, 1.0),
    "without the coarsest scale": (1.0, 1.0, 0.0),
}
SCORINGS = (
    Scoring(name="cosine distance, half-pixel, maximum"),
    Scoring(name="affinity error, weight 0.3", affinity_weight=0.3),
    Scoring(name="affinity error, weight 1 (Eq. 13)", affinity_weight=1.0),
    Scoring(name="affinity error, weight 3", affinity_weight=3.0),
    Scoring(name="placed by corners", alignment="corners"),
    Scoring(name="placed on the grid", alignment="grid"),
    Scoring(name="smoothed, 1 px", sigma=1.0),
    Scoring(name="smoothed, 2 px", sigma=2.0),
    Scoring(name="smoothed, 4 px (RD4AD)", sigma=4.0),
    Scoring(name="mean of the 10 highest pixels", top_k=10),
    Scoring(name="mean of the 100 highest pixels", top_k=100),
    Scoring(name="normalization map per product", normalization=True),
    Scoring(name="whitened residuals", distance="whitened"),
    Scoring(name="whitened residuals, normalization map per product", distance="whitened", normalization=True),
    Scoring(name="whitened residuals, expectation", distance="expected"),
    Scoring(name="whitened residuals, expectation, smoothed, 4 px", distance="expected", sigma=4.0),
    Scoring(name="whitened residuals, smoothed, 4 px (best)", distance="whitened", sigma=4.0),
    *(
        Scoring(name=f"{like}, {name}", distance=distance, sigma=4.0, scales=scales)
        for like, distance in _SMOOTHED.items()
        for name, scales in _SCALES.items()
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = checkpoint_parser(PROGRAM, "Score trained checkpoints in every way that the paper leaves open.", example=_EXAMPLE, table=TABLE)
    options = parser.parse_args(argv)
    return run_command(lambda: score_checkpoints(options, SCORING, _figures), program=PROGRAM)


class Cells:
    """Distances and affinity errors of every image at feature resolution, by kind and scale: (n, H_k, W_k) float32 each."""

    def __init__(self, model: Any, images: Images) -> None:
        """Run the model over prepared images (n, H, W, 3) uint8 RGB, on the device that it is on."""
        import torch

        from snl_train.affinity import mean_affinity_error
        from snl_train.features import exact_float32, unit_vectors
        from snl_train.scoring import cell_scores

        found: dict[str, list[list[Maps]]] = {"cosine": [], "affinity": [], "whitened": [], "expected": []}
        whitenings = list(model.whitening or [None] * 3)
        without = [_without_expectation(whitening) for whitening in whitenings]
        device = next(model.parameters()).device
        with torch.inference_mode(), exact_float32(device):
            for start in range(0, len(images), SCORED_AT_ONCE):
                batch = torch.from_numpy(images[start : start + SCORED_AT_ONCE]).to(device)
                teacher, student = model(model.normalize(batch))
                rows: dict[str, list[Maps]] = {kind: [] for kind in found}
                for t, s, whitening, plain in zip(teacher, student, whitenings, without, strict=True):
                    affinity = mean_affinity_error(unit_vectors(s.flatten(2)), unit_vectors(t.flatten(2)))  # (B, P)
                    rows["cosine"].append(cell_scores(t, s, affinity_weight=0).cpu().numpy())
                    rows["affinity"].append(affinity.reshape(len(batch), *t.shape[2:]).cpu().numpy())
                    rows["whitened"].append(cell_scores(t, s, affinity_weight=0, whitening=plain).cpu().numpy())
                    rows["expected"].append(cell_scores(t, s, affinity_weight=0, whitening=whitening).cpu().numpy())
                for kind, of_scales in rows.items():
                    found[kind].append(of_scales)
        self._cells = {kind: [np.concatenate(parts) for parts in zip(*batches, strict=True)] for kind, batches in found.items()}

    def maps(self, scoring: Scoring, size_hw: tuple[int, int]) -> Maps:
        """Return the anomaly maps (n, H, W) of one scoring, without a normalization map."""
        from snl_train.scoring import upsampling_weights

        total = np.zeros((len(self._cells["cosine"][0]), *size_hw), np.float32)
        for weight, distance, affinity in zip(scoring.scales, self._cells[scoring.distance], self._cells["affinity"], strict=True):
            cells = np.float32(weight) * (distance + np.float32(scoring.affinity_weight) * affinity)  # (n, H_k, W_k)
            down, across = (
                upsampling_weights(count, pixels, scoring.alignment, scoring.sigma).astype(np.float32)
                for count, pixels in zip(cells.shape[1:], size_hw, strict=True)
            )
            total += down @ cells @ across.T
        return total


def measure(scoring: Scoring, test: Cells, good: Cells, labels: Labels, masks: Sequence[Labels | None]) -> dict[str, float | None]:
    """Return the figures of one class as :func:`benchmarks.accuracy.checkpoint_scores.map_figures` does."""
    from snl_runtime.model.normalization import fit_normalization

    size_hw = next((mask.shape[0], mask.shape[1]) for mask in masks if mask is not None)
    maps = test.maps(scoring, size_hw)
    if scoring.normalization:
        maps = maps * fit_normalization(good.maps(scoring, size_hw)).values
    return map_figures(maps, labels, masks, top_k=scoring.top_k)


def _figures(checkpoint: Any, model: Any, images: ClassImages) -> dict[str, dict[str, float | None]]:
    del checkpoint
    of_test, of_good = Cells(model, images.test), Cells(model, images.training())
    known = [scoring for scoring in SCORINGS if _is_known(scoring, model)]
    return {scoring.name: measure(scoring, of_test, of_good, images.labels, images.masks) for scoring in known}


def _without_expectation(whitening: Any) -> Any:
    """Return the same whitening without its expectation, or None for None."""
    if whitening is None:
        return None
    plain = copy.deepcopy(whitening)
    plain.expectation = 0.0
    return plain


def _is_known(scoring: Scoring, model: Any) -> bool:
    """Whether a model can be scored so."""
    if scoring.distance == "cosine":
        return True
    return model.whitening is not None and (scoring.distance == "whitened" or bool(model.whitening[0].expectation))


if __name__ == "__main__":
    sys.exit(main())
