"""``python -m benchmarks.accuracy.readings``: one training, scored in every way that the paper leaves open.

What the paper does not say about scoring (its Eq. 1 and 10 to 14) needs no training to be compared: the distance of teacher and student, the affinity
error and its weight, how cells are placed on the image, smoothing, the maximum or a mean of the highest pixels, and the gain map of ``snl-calibrate
--fixtured``. Every row differs from the first in one thing. The gain map is fitted on each product's training images, for want of others.
"""

import argparse
import copy
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import provenance
from benchmarks.accuracy.protocol import load_protocol
from benchmarks.accuracy.records import write_record
from benchmarks.accuracy.statistics import summarise
from snl_runtime.commandline import EXIT_OK, CommandParser, run_command
from snl_runtime.files import atomic_write_text
from snl_runtime.images import read_image, read_mask
from snl_runtime.preprocess import InputSpec, prepare, resize_mask
from snl_runtime.progress import Progress
from snl_train import metrics
from snl_train.config import Alignment
from snl_train.data.samples import Sample

PROGRAM = "benchmarks.accuracy.readings"
_PROTOCOL = "reduced"
"""Whose choosing and confirming classes the tables show."""
_AT_ONCE = 16
_EXAMPLE = """
python -m benchmarks.accuracy.readings --data ../shared/data/realmix --out docs/readings.md \\
  --checkpoints runs/accuracy/reduced/snl-rd-best_128_realmix_multi_s?.pt
"""

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
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
    gain: bool = False
    """Whether the product's gain map is applied."""


_SMOOTHED: dict[str, Literal["cosine", "whitened"]] = {"smoothed, 4 px": "cosine", "as best": "whitened"}
_SCALES = {
    "finest scale alone": (1.0, 0.0, 0.0),
    "middle scale alone": (0.0, 1.0, 0.0),
    "coarsest scale alone": (0.0, 0.0, 1.0),
    "without the finest scale": (0.0, 1.0, 1.0),
    "without the coarsest scale": (1.0, 1.0, 0.0),
}
READINGS = (
    Reading(name="cosine distance, half-pixel, maximum"),
    Reading(name="affinity error, weight 0.3", affinity_weight=0.3),
    Reading(name="affinity error, weight 1 (Eq. 13)", affinity_weight=1.0),
    Reading(name="affinity error, weight 3", affinity_weight=3.0),
    Reading(name="placed by corners", alignment="corners"),
    Reading(name="placed on the grid", alignment="grid"),
    Reading(name="smoothed, 1 px", sigma=1.0),
    Reading(name="smoothed, 2 px", sigma=2.0),
    Reading(name="smoothed, 4 px (RD4AD)", sigma=4.0),
    Reading(name="mean of the 10 highest pixels", top_k=10),
    Reading(name="mean of the 100 highest pixels", top_k=100),
    Reading(name="gain map per product", gain=True),
    Reading(name="whitened residuals", distance="whitened"),
    Reading(name="whitened residuals, gain map per product", distance="whitened", gain=True),
    Reading(name="whitened residuals, expectation", distance="expected"),
    Reading(name="whitened residuals, expectation, smoothed, 4 px", distance="expected", sigma=4.0),
    Reading(name="whitened residuals, smoothed, 4 px (best)", distance="whitened", sigma=4.0),
    *(
        Reading(name=f"{like}, {name}", distance=distance, sigma=4.0, scales=scales)
        for like, distance in _SMOOTHED.items()
        for name, scales in _SCALES.items()
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = CommandParser(PROGRAM, "Score trained checkpoints in every way that the paper leaves open.", example=_EXAMPLE)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", metavar="FILE", required=True, help="multi-class checkpoints, of any methods and seeds"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", required=True, help="page to write; the figures go to FILE.json beside it")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where the networks run (default: cpu)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options, arguments), program=PROGRAM)


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
                teacher, student = model(model.normalise(batch))
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

    def maps(self, reading: Reading, size_hw: tuple[int, int]) -> Maps:
        """Return the anomaly maps (n, H, W) of one reading, without a gain map."""
        from snl_train.scoring import upsampling_weights

        total = np.zeros((len(self._cells["cosine"][0]), *size_hw), np.float32)
        for weight, distance, affinity in zip(reading.scales, self._cells[reading.distance], self._cells["affinity"], strict=True):
            cells = np.float32(weight) * (distance + np.float32(reading.affinity_weight) * affinity)  # (n, H_k, W_k)
            down, across = (
                upsampling_weights(count, pixels, reading.alignment, reading.sigma).astype(np.float32)
                for count, pixels in zip(cells.shape[1:], size_hw, strict=True)
            )
            total += down @ cells @ across.T
        return total


def measure(
    reading: Reading, test: Cells, good: Cells, labels: npt.NDArray[np.bool_], masks: Sequence[npt.NDArray[np.bool_] | None]
) -> dict[str, float | None]:
    """Return the image AUROC and, where there are masks, the pixel AUROC of one class; images with an unknown mask count for the first only."""
    from snl_runtime.gain import fit_gain

    size_hw = next((mask.shape[0], mask.shape[1]) for mask in masks if mask is not None)
    maps = test.maps(reading, size_hw)
    if reading.gain:
        maps = maps * fit_gain(good.maps(reading, size_hw)).values
    pixels = maps.reshape(len(maps), -1)
    scores = np.partition(pixels, -reading.top_k, axis=1)[:, -reading.top_k :].mean(1)
    known = {number: mask for number, mask in enumerate(masks) if mask is not None}
    truth = np.stack(list(known.values()))  # (m, H, W)
    pixel = metrics.roc_auc(truth.ravel(), maps[list(known)].ravel()) if truth.any() else None
    return {"image_auroc": metrics.roc_auc(labels, scores), "pixel_auroc": pixel}


def table(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return Markdown tables, one per method: each reading's means over the choosing and the confirming classes, over seeds."""
    protocol = load_protocol(_PROTOCOL)
    lines: list[str] = []
    for method in sorted({str(model["method"]) for model in models}):
        ours = [model for model in models if model["method"] == method]
        names = [name for name in ours[0]["readings"] if all(name in model["readings"] for model in ours)]
        lines += [f"## {method}", "", f"Seeds: {', '.join(str(model['seed']) for model in ours)}.", ""]
        lines += ["| reading | choose, image | choose, pixel | confirm, image | confirm, pixel |", "|---|---:|---:|---:|---:|"]
        for name in names:
            cells = []
            for classes in (protocol.choose, protocol.confirm):
                for metric in ("image_auroc", "pixel_auroc"):
                    means = [_mean(model["readings"][name], classes, metric) for model in ours]
                    summary = summarise([mean for mean in means if mean is not None])
                    cells.append("–" if summary is None else f"{summary.mean:.4f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _mean(of_classes: Mapping[str, Mapping[str, float | None]], classes: Sequence[str], metric: str) -> float | None:
    values = [value for name in classes if name in of_classes and (value := of_classes[name][metric]) is not None]
    return float(np.mean(values)) if values else None


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from snl_train.checkpoint import load_checkpoint
    from snl_train.trainer import resolve_device

    options.out.parent.mkdir(parents=True, exist_ok=True)  # a wrong name must not cost the minutes of scoring
    device = resolve_device(options.device)
    models: list[dict[str, Any]] = []
    for path in options.checkpoints:
        checkpoint = load_checkpoint(path)
        model = checkpoint.build_model().to(device)
        height, width = checkpoint.config.image_size
        of_reading: dict[str, dict[str, dict[str, float | None]]] = {}
        groups = _images(options.data, checkpoint.classes, (height, width), set(checkpoint.training_image_sha256))
        with Progress(sum(len(test) + len(good) for test, good, _, _ in groups.values()), unit="images", label=path.stem) as progress:
            for name, (test, good, labels, masks) in groups.items():
                of_test, of_good = Cells(model, test, progress), Cells(model, good, progress)
                for reading in READINGS:
                    if _is_known(reading, model):
                        of_reading.setdefault(reading.name, {})[name] = measure(reading, of_test, of_good, labels, masks)
        method = re.sub(r"_s\d+$", "", path.stem)
        models.append({"checkpoint": path.name, "method": method, "seed": checkpoint.seed, "readings": of_reading})
    command = provenance.command_line(arguments).replace("benchmarks.accuracy", PROGRAM, 1)
    commit = options.commit or provenance.commit()
    origin = provenance.provenance(device=device.type, threads=torch.get_num_threads(), command=command, commit_name=commit)
    write_record(options.out.with_suffix(".json"), {"kind": "readings", "models": models, "provenance": origin})
    atomic_write_text(options.out, page(models, origin))
    print("\n".join(table(models)))
    return EXIT_OK


def page(models: Sequence[Mapping[str, Any]], origin: Mapping[str, Any]) -> str:
    """Return the whole page."""
    protocol = load_protocol(_PROTOCOL)
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    head = [
        "# Readings of the score",
        "",
        f"Written by `python -m {PROGRAM}`; do not edit by hand. Mean AUROC over the classes of a set, then over the seeds.",
        "Every row differs from the first in what it names; only scoring differs, the trainings are the same. Maps and masks at network resolution.",
        f"Settings are chosen on the choosing classes ({', '.join(protocol.choose)}); the confirming ones are {', '.join(protocol.confirm)}.",
        "The gain map is fitted on training images here; on a line `snl-calibrate --fixtured` fits it on images that were kept back.",
        "",
        f"Device: {origin['device']}. Versions: {versions}. Commit: {origin['commit']}.",
        "",
        "```bash",
        origin["command"],
        "```",
        "",
    ]
    return "\n".join([*head, *table(models)])


_Group = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.bool_], list[npt.NDArray[np.bool_] | None]]


def _without_expectation(whitening: Any) -> Any:
    """Return the same whitening without its expectation, or None for None."""
    if whitening is None:
        return None
    plain = copy.deepcopy(whitening)
    plain.expectation = 0.0
    return plain


def _is_known(reading: Reading, model: Any) -> bool:
    """Whether a model can be scored so."""
    if reading.distance == "cosine":
        return True
    return model.whitening is not None and (reading.distance == "whitened" or bool(model.whitening[0].expectation))


def _images(root: Path, classes: Sequence[str], size_hw: tuple[int, int], trained: set[str]) -> dict[str, _Group]:
    """Return test images, training images, labels and masks of each class; a good image has an empty mask, a bad one without a file None."""
    from snl_runtime.images import pixel_sha256
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
