"""``python -m benchmarks.accuracy.interference``: do mixtures of two classes look normal to a multi-class model (the paper's Figure 2)?

Anomalies are made from good TEST images, which no model has trained on:

- mixup: the mean of a good image of one class and one of another;
- paste: a square patch of another class's good image on a good image, the side a quarter to a half of the image's.

Separation is the image AUROC of such images against the good test images that they were made from (mixup: of both classes, for each pair; paste: of
the base class), then the mean over pairs or classes: scores of different products need not be comparable. For pastes the place is known, so the pixel
AUROC is measured too. The paper shows images and gives no figure to compare with.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import provenance
from benchmarks.accuracy.tables import KINDS, MIXTURES, RESULTS, merge_rows, number_text, read_rows
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.images.files import read_image
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.types import Image
from snl_train import metrics

PROGRAM = "benchmarks.accuracy.interference"
PASTED_SHARE = (0.25, 0.5)
"""Side of a pasted patch as a share of the image's."""
_SCORED_AT_ONCE = 8
TABLE = RESULTS / "mixtures.csv"
_EXAMPLE = """
python -m benchmarks.accuracy.interference --data realmix --checkpoints runs/accuracy/reduced/*multi_s*.pt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(argv)
    return run_command(lambda: _run(options), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(PROGRAM, "Measure how well multi-class models tell mixtures of two classes from good images.", example=_EXAMPLE)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", metavar="FILE", required=True, help="multi-class checkpoints, of any methods and seeds"
    )
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="table to add to (default: benchmarks/results/mixtures.csv)")
    parser.add_argument(
        "--per-pair", type=int, default=20, metavar="N", help="mixtures of each pair of classes, and pastes on each class (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses images, patches and places (default: 0)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    return parser


def mixed(first: Image, second: Image) -> Image:
    """Return the mean of two images, rounded half up.

    >>> mixed(np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 21, np.uint8)).tolist()
    [[[16, 16, 16]]]
    """
    return ((first.astype(np.uint16) + second + 1) // 2).astype(np.uint8)


def pasted(base: Image, other: Image, rng: np.random.Generator) -> tuple[Image, npt.NDArray[np.bool_]]:
    """Return ``base`` with a square of ``other`` on it, cut and placed at random, and the mask (H, W) of that place."""
    height, width = base.shape[:2]
    side = int(rng.integers(round(PASTED_SHARE[0] * min(height, width)), round(PASTED_SHARE[1] * min(height, width)) + 1))
    (from_y, to_y), (from_x, to_x) = (rng.integers(0, length - side + 1, 2) for length in (height, width))
    result, mask = base.copy(), np.zeros((height, width), np.bool_)
    result[to_y : to_y + side, to_x : to_x + side] = other[from_y : from_y + side, from_x : from_x + side]
    mask[to_y : to_y + side, to_x : to_x + side] = True
    return result, mask


def separation(scorer: Any, good_images: Mapping[str, npt.NDArray[np.uint8]], *, per_pair: int, seed: int) -> dict[str, Any]:
    """Return the separation of mixtures from good images, per pair or class and as means.

    Args:
        scorer: Has ``score_inputs(images (N, H, W, 3) uint8) -> (scores (N,), maps (N, H, W))``.
        good_images: Good test images of each class, (N, H, W, 3) uint8.
        per_pair: Mixtures of each pair of classes, and pastes on each class.
        seed: Chooses images, patches and places; the same mixtures for every model.

    Raises:
        DataError: If there are fewer than two classes.
    """
    if len(good_images) < 2:
        raise DataError(f"mixtures need good test images of two classes, got {', '.join(good_images) or 'none'}")
    good = {name: _scored(scorer, images) for name, images in good_images.items()}
    found: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for number, (first, second) in enumerate(itertools.combinations(sorted(good_images), 2)):
        rng = np.random.default_rng([seed, 1, number])
        scores, _ = _scored(scorer, np.stack([mixed(_drawn(good_images[first], rng), _drawn(good_images[second], rng)) for _ in range(per_pair)]))
        found["mixup"][f"{first} + {second}"] = _auroc([*good[first][0], *good[second][0]], scores)
    for number, name in enumerate(sorted(good_images)):
        rng = np.random.default_rng([seed, 2, number])
        others = [other for other in sorted(good_images) if other != name]
        made = [
            pasted(_drawn(good_images[name], rng), _drawn(good_images[others[int(rng.integers(len(others)))]], rng), rng) for _ in range(per_pair)
        ]
        scores, maps = _scored(scorer, np.stack([image for image, _ in made]))
        masks = np.stack([mask for _, mask in made])
        found["paste"][name] = _auroc(list(good[name][0]), scores)
        found["paste_pixel"][name] = float(metrics.roc_auc(masks.ravel(), maps.ravel()) or 0.0)
    return {kind: {"mean": float(np.mean(list(values.values()))), "of": values} for kind, values in found.items()}


def _run(options: argparse.Namespace) -> int:
    from snl_train.checkpoint import load_checkpoint
    from snl_train.evaluation import CheckpointScorer

    options.out.parent.mkdir(parents=True, exist_ok=True)  # a wrong name must not cost the minutes of scoring
    read_rows(options.out, MIXTURES)
    rows: list[dict[str, str]] = []
    good_images: dict[tuple[int, int], dict[str, npt.NDArray[np.uint8]]] = {}
    for path in (path for path in options.checkpoints if not path.name.endswith(".resume.pt")):  # x*.pt names the states of unfinished runs too
        checkpoint = load_checkpoint(path)
        if len(checkpoint.classes) < 2:
            raise ConfigError(f"{path} knows the class {checkpoint.classes[0]!r} only; give multi-class checkpoints")
        scorer = CheckpointScorer(checkpoint, options.device)
        if scorer.size_hw not in good_images:
            good_images[scorer.size_hw] = _good_test_images(options.data, checkpoint.classes, scorer.size_hw, set(checkpoint.training_image_sha256))
        found = separation(scorer, good_images[scorer.size_hw], per_pair=options.per_pair, seed=options.seed)
        common = {"model": re.sub(r"_s\d+$", "", path.stem), "seed": str(checkpoint.seed), **provenance.origin(scorer.device, options.commit)}
        rows += [
            {**common, "kind": kind, "of": name, "auroc": number_text(value)}
            for kind, figures in found.items()
            for name, value in figures["of"].items()
        ]
        print(f"{path.name}: " + ", ".join(f"{title} {found[kind]['mean']:.3f}" for kind, title in KINDS.items()), flush=True)
    replaced = merge_rows(options.out, MIXTURES, rows)
    print(f"{options.out}: {len(rows)} rows, {replaced} in place of other figures")
    return EXIT_OK


def _good_test_images(root: Path, classes: Sequence[str], size_hw: tuple[int, int], trained: set[str]) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the prepared good test images of each class.

    Raises:
        DataError: If an image was trained on, or a class has no good test image.
    """
    from snl_runtime.images.files import pixel_sha256
    from snl_train.data.layouts import list_dataset

    found: dict[str, list[Image]] = {name: [] for name in classes}
    for sample in list_dataset(root, masks=False).test:
        if sample.is_anomalous or sample.class_name not in found:
            continue
        image = read_image(sample.path)
        if pixel_sha256(image) in trained:
            raise DataError(f"{sample.path} was trained on; mixtures must come from images that no model has seen")
        found[sample.class_name].append(prepare(image, "rgb", InputSpec(size_hw=size_hw)))
    empty = [name for name, images in found.items() if not images]
    if empty:
        raise DataError(f"class {empty[0]!r} has no good test image in {root}; expected {empty[0]}/test/good")
    return {name: np.stack(images) for name, images in found.items()}


def _scored(scorer: Any, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    parts = [scorer.score_inputs(images[start : start + _SCORED_AT_ONCE]) for start in range(0, len(images), _SCORED_AT_ONCE)]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([maps for _, maps in parts])


def _auroc(good: Sequence[float], anomalous: npt.NDArray[np.float32]) -> float:
    return float(metrics.roc_auc([False] * len(good) + [True] * len(anomalous), [*good, *anomalous]) or 0.0)


def _drawn(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> Image:
    return np.asarray(images[int(rng.integers(len(images)))])


if __name__ == "__main__":
    sys.exit(main())
