"""``python -m benchmarks.accuracy.scoring_ablation``: one training, scored in every way that the paper leaves open.

What the paper does not say about scoring (its Eq. 1 and 10 to 14) needs no training to be compared: the distance of teacher and student, the affinity
error and its weight, how cells are placed on the image, smoothing, the maximum or a mean of the highest pixels, and the normalization map of
``snl-calibrate --fixed-pose``. Every row differs from the first in one thing. The normalization map is fitted on each product's training images.
"""

import argparse
import copy
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import provenance
from benchmarks.accuracy.tables import RESULTS, SCORING, merge_rows, number_text, read_rows
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.images.files import read_image, read_mask
from snl_runtime.images.preprocess import InputSpec, prepare, resize_mask
from snl_runtime.progress import Progress
from snl_train import metrics
from snl_train.config import Alignment
from snl_train.data.samples import Sample

PROGRAM = "benchmarks.accuracy.scoring_ablation"
_AT_ONCE = 16
TABLE = RESULTS / "scoring.csv"
_EXAMPLE = """
python -m benchmarks.accuracy.scoring_ablation --data realmix --checkpoints runs/accuracy/reduced/snl-rd-best_128_realmix_multi_s?.pt
"""

Maps = npt.NDArray[np.float32]


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
    parser = CommandParser(PROGRAM, "Score trained checkpoints in every way that the paper leaves open.", example=_EXAMPLE)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", metavar="FILE", required=True, help="multi-class checkpoints, of any methods and seeds"
    )
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="table to add to (default: benchmarks/results/scoring.csv)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where the networks run (default: cpu)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    options = parser.parse_args(argv)
    return run_command(lambda: _run(options), program=PROGRAM)


class Cells:
    """Distances and affinity errors of every image at feature resolution, by kind and scale: (n, H_k, W_k) float32 each."""

    def __init__(self, model: Any, images: npt.NDArray[np.uint8], progress: Progress) -> None:
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
            for start in range(0, len(images), _AT_ONCE):
                batch = torch.from_numpy(images[start : start + _AT_ONCE]).to(device)
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
                progress.advance(len(batch))
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


def measure(
    scoring: Scoring, test: Cells, good: Cells, labels: npt.NDArray[np.bool_], masks: Sequence[npt.NDArray[np.bool_] | None]
) -> dict[str, float | None]:
    """Return the image AUROC and, where there are masks, the pixel AUROC of one class; images with an unknown mask count for the first only."""
    from snl_runtime.model.normalization import fit_normalization

    size_hw = next((mask.shape[0], mask.shape[1]) for mask in masks if mask is not None)
    maps = test.maps(scoring, size_hw)
    if scoring.normalization:
        maps = maps * fit_normalization(good.maps(scoring, size_hw)).values
    pixels = maps.reshape(len(maps), -1)
    scores = np.partition(pixels, -scoring.top_k, axis=1)[:, -scoring.top_k :].mean(1)
    known = {number: mask for number, mask in enumerate(masks) if mask is not None}
    truth = np.stack(list(known.values()))  # (m, H, W)
    pixel = metrics.roc_auc(truth.ravel(), maps[list(known)].ravel()) if truth.any() else None
    return {"image_auroc": metrics.roc_auc(labels, scores), "pixel_auroc": pixel}


def _run(options: argparse.Namespace) -> int:
    from snl_train.checkpoint import load_checkpoint
    from snl_train.device import resolve_device

    options.out.parent.mkdir(parents=True, exist_ok=True)  # a wrong name must not cost the minutes of scoring
    read_rows(options.out, SCORING)
    device = resolve_device(options.device)
    origin = provenance.origin(device.type, options.commit)
    rows: list[dict[str, str]] = []
    for path in options.checkpoints:
        checkpoint = load_checkpoint(path)
        model = checkpoint.build_model().to(device)
        height, width = checkpoint.config.image_size
        common = {"model": re.sub(r"_s\d+$", "", path.stem), "seed": str(checkpoint.seed), **origin}
        groups = _images(options.data, checkpoint.classes, (height, width), set(checkpoint.training_image_sha256))
        with Progress(sum(len(test) + len(good) for test, good, _, _ in groups.values()), unit="images", label=path.stem) as progress:
            for name, (test, good, labels, masks) in groups.items():
                of_test, of_good = Cells(model, test, progress), Cells(model, good, progress)
                for scoring in SCORINGS:
                    if _is_known(scoring, model):
                        found = measure(scoring, of_test, of_good, labels, masks)
                        figures = {metric: number_text(value) for metric, value in found.items()}
                        rows.append({**common, "scoring": scoring.name, "class": name, **figures})
    replaced = merge_rows(options.out, SCORING, rows)
    print(f"{options.out}: {len(rows)} rows, {replaced} in place of other figures")
    return EXIT_OK


_Group = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.bool_], list[npt.NDArray[np.bool_] | None]]


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


def _images(root: Path, classes: Sequence[str], size_hw: tuple[int, int], trained: set[str]) -> dict[str, _Group]:
    """Return test images, training images, labels and masks of each class; a good image has an empty mask, a bad one without a file None."""
    from snl_runtime.images.files import pixel_sha256
    from snl_train.data.layouts import list_dataset

    spec = InputSpec(size_hw=size_hw)
    dataset = list_dataset(root)
    found: dict[str, _Group] = {}
    for name in classes:
        test = [sample for sample in dataset.test if sample.class_name == name]
        good = [image for sample in dataset.train if sample.class_name == name if pixel_sha256(image := read_image(sample.path)) in trained]
        found[name] = (
            np.stack([prepare(read_image(sample.path), "rgb", spec) for sample in test]),
            np.stack([prepare(image, "rgb", spec) for image in good]),
            np.array([sample.is_anomalous for sample in test]),
            [_mask(sample, size_hw) for sample in test],
        )
    return found


def _mask(sample: Sample, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    if not sample.is_anomalous:
        return np.zeros(size_hw, np.bool_)
    return None if sample.mask_path is None else resize_mask(read_mask(sample.mask_path), size_hw)


if __name__ == "__main__":
    sys.exit(main())
