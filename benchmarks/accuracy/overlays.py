"""``python -m benchmarks.accuracy.overlays``: heat maps of two models side by side (the paper's Figure 5), as one HTML page and, if asked, one PNG.

By default hazelnut and cookie only: images of the other classes of ``../shared/data/realmix`` must not be published.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.files import atomic_write_text
from snl_runtime.images.files import read_image, write_image
from snl_runtime.images.preprocess import resize
from snl_runtime.types import Image
from snl_train import metrics
from snl_train import report_html as html
from snl_train.data.samples import Sample
from snl_train.measures import ScoredImage

PROGRAM = "benchmarks.accuracy.overlays"
PUBLISHABLE = ("hazelnut", "cookie")
FLOOR_QUANTILE = 0.95
"""Share of the pixels of good images without color, as in snl-eval's report."""
_CELL_PX = 160
_EXAMPLE = """
python -m benchmarks.accuracy.overlays --data ../shared/data/realmix --checkpoints rd.pt snl-rd.pt --names RD 'SNL(RD)' --out runs/figure5.html
"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One test image and what each model says about it.

    Attributes:
        sample: The image.
        images: The image with its defect outlined, then a heat map per model, (H, W, 3) uint8 RGB.
        scores: Each model's score as a multiple of its reference for the class.
    """

    sample: Sample
    images: list[Image]
    scores: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(argv)
    return run_command(lambda: _run(options), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(PROGRAM, "Show the heat maps of several models side by side on one color scale per class and model.", example=_EXAMPLE)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument("--checkpoints", type=Path, nargs="+", metavar="FILE", required=True, help="models to compare, usually RD and SNL(RD)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call them (default: the file names)")
    parser.add_argument("--classes", default=",".join(PUBLISHABLE), metavar="A,B", help=f"classes to show (default: {','.join(PUBLISHABLE)})")
    parser.add_argument("--per-class", type=int, default=6, metavar="N", help="anomalous images of each class, evenly over its list (default: 6)")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="HTML page to write")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also write the images as one sheet")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda (default: auto)")
    return parser


def compare(scored: Sequence[Sequence[ScoredImage]], *, per_class: int) -> list[Shown]:
    """Return images of one class's anomalous images, the same images for every model and chosen by no score.

    Args:
        scored: For each model the scored test images of one class, in the same order.
        per_class: Number of anomalous images, taken evenly over the list.
    """
    scales = [_scale(images) for images in scored]
    anomalous = [number for number, image in enumerate(scored[0]) if image.sample.is_anomalous]
    chosen = np.unique(np.linspace(0, len(anomalous) - 1, min(per_class, len(anomalous))).round().astype(int))
    found = []
    for number in (anomalous[index] for index in chosen):
        sample = scored[0][number].sample
        image, mask = read_image(sample.path), sample.read_mask()
        pairs = [html.heat_images(image, images[number].anomaly_map, scale, mask) for images, scale in zip(scored, scales)]
        scores = [images[number].score / scale.reference for images, scale in zip(scored, scales)]
        found.append(Shown(sample, [pairs[0][0], *(heat for _, heat in pairs)], scores))
    return found


def sheet(rows: Sequence[Shown]) -> Image:
    """Return all images as one image, a row per test image, every cell the same size."""
    return np.concatenate([np.concatenate([resize(image, (_CELL_PX, _CELL_PX)) for image in row.images], axis=1) for row in rows])


def _run(options: argparse.Namespace) -> int:
    from snl_train.data.layouts import list_dataset

    names = options.names or [path.stem for path in options.checkpoints]
    if len(names) != len(options.checkpoints):
        raise ConfigError(f"--names gives {len(names)} names for {len(options.checkpoints)} checkpoints")
    options.out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes of scoring
    index = list_dataset(options.data)
    sections, rows = [], []
    for class_name in options.classes.split(","):
        samples = [sample for sample in index.test if sample.class_name == class_name]
        if not any(sample.is_anomalous for sample in samples):
            raise DataError(f"{options.data} has no anomalous test image of class {class_name!r}; its classes are {', '.join(index.classes)}")
        shown = compare([_scored(path, samples, options.device) for path in options.checkpoints], per_class=options.per_class)
        rows += shown
        tiles = [html.tile(one.images, one.sample.path.name, _caption(one, names)) for one in shown]
        sections.append(html.section(class_name, html.card(html.tiles(*tiles)), anchor=class_name))
    lead = f"Left to right: test image (defect outlined), then {', '.join(names)}. Images were chosen by their place in the list and by no score."
    note = html.note(
        "One scale per class and model: no color below what 95 % of the pixels of its good test images stay under, yellow at the score of its best "
        "F1, red from as far above."
    )
    links = {name: name for name in options.classes.split(",")}
    atomic_write_text(options.out, html.page("Heat maps side by side", lead, note + "".join(sections), links=links))
    if options.png is not None:
        write_image(options.png, sheet(rows))
    others = sorted(set(options.classes.split(",")) - set(PUBLISHABLE))
    print(f"{options.out}: {len(rows)} images" + (f"; not for publication: {', '.join(others)}" if others else ""))
    return EXIT_OK


def _scored(path: Path, samples: Sequence[Sample], device: str) -> list[ScoredImage]:
    from snl_train.checkpoint import load_checkpoint
    from snl_train.evaluation import CheckpointScorer, score_samples

    images, _ = score_samples(CheckpointScorer(load_checkpoint(path), device), samples)
    return images


def _scale(images: Sequence[ScoredImage]) -> html.HeatScale:
    good = [image for image in images if not image.sample.is_anomalous]
    best = metrics.f1_max([image.sample.is_anomalous for image in images], [image.score for image in images])
    reference = best.threshold if best is not None else max(image.score for image in images)
    floor = float(np.quantile(np.stack([image.anomaly_map for image in good]), FLOOR_QUANTILE)) if good else 0.0
    return html.HeatScale(floor if floor < reference else 0.0, reference)


def _caption(shown: Shown, names: Sequence[str]) -> str:
    scores = ", ".join(f"{name} {score:.2f} x" for name, score in zip(names, shown.scores))
    return f"{shown.sample.defect or 'anomalous'}; score over the yellow value: {scores}"


if __name__ == "__main__":
    sys.exit(main())
