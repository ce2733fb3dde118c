"""What the commands that score trained checkpoints in several ways share: flags, images, figures of maps and the rows of a table."""

import argparse
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import provenance
from benchmarks.accuracy.tables import Layout, merge_rows, number_text, read_rows
from snl_runtime.cli.command import EXIT_OK, CommandParser
from snl_runtime.images.files import pixel_sha256, read_image, read_mask
from snl_runtime.images.preprocess import InputSpec, prepare, resize_mask
from snl_runtime.progress import Progress
from snl_train import metrics
from snl_train.data.samples import DatasetIndex, Sample

SCORED_AT_ONCE = 16
Maps: TypeAlias = npt.NDArray[np.float32]
Images: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.bool_]
Figures: TypeAlias = Mapping[str, float | None]
"""Values by the columns of a table; None where one is not defined."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassImages:
    """Images of one class as the network sees them."""

    test: Images
    """(n, H, W, 3) RGB."""
    labels: Labels
    """(n,), True for anomalous."""
    masks: Sequence[Labels | None]
    """n masks (H, W): empty for a good image, None for an anomalous one whose pixels are unknown."""
    training: Callable[[], Images]
    """Reads those that the checkpoint was trained on, (m, H, W, 3)."""


FiguresOf: TypeAlias = Callable[[Any, Any, ClassImages], Mapping[str, Figures]]
"""Checkpoint, its model and the images of a class -> figures by the name of the way to score."""


def checkpoint_parser(program: str, description: str, *, example: str, table: Path) -> CommandParser:
    """Return the flags of a command that scores checkpoints into ``table``."""
    parser = CommandParser(program, description, example=example)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", metavar="FILE", required=True, help="multi-class checkpoints, of any methods and seeds"
    )
    parser.add_argument("--out", type=Path, default=table, metavar="FILE", help=f"table to add to (default: benchmarks/results/{table.name})")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where the networks run (default: cpu)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    return parser


def score_checkpoints(options: argparse.Namespace, layout: Layout, figures_of: FiguresOf) -> int:
    """Score every class of every checkpoint, add the rows to the table and return the exit status.

    Raises:
        CheckpointError: If a file is no checkpoint.
        DataError: If an image cannot be read, or the table is another one.
    """
    from snl_train.checkpoint import load_checkpoint
    from snl_train.data.layouts import list_dataset
    from snl_train.device import resolve_device

    options.out.parent.mkdir(parents=True, exist_ok=True)  # a wrong name must not cost the minutes of scoring
    read_rows(options.out, layout)
    device = resolve_device(options.device)
    origin = provenance.origin(device.type, options.commit)
    dataset = list_dataset(options.data)
    rows: list[dict[str, str]] = []
    for path in options.checkpoints:
        checkpoint = load_checkpoint(path)
        model = checkpoint.build_model().to(device)
        common = {"protocol": protocol_of(path), "model": re.sub(r"_s\d+$", "", path.stem), "seed": str(checkpoint.seed), **origin}
        with Progress(len(checkpoint.classes), unit="classes", label=path.stem) as progress:
            for name in checkpoint.classes:
                found = figures_of(checkpoint, model, class_images(dataset, name, checkpoint))
                rows += [{**common, "scoring": scoring, "class": name, **_texts(figures)} for scoring, figures in found.items()]
                progress.advance()
    replaced = merge_rows(options.out, layout, rows)
    print(f"{options.out}: {len(rows)} rows, {replaced} in place of other figures")
    return EXIT_OK


def protocol_of(path: Path) -> str:
    """Return the name of the protocol of a checkpoint that lies where ``benchmarks.accuracy`` left it."""
    return path.resolve().parent.name


def class_images(dataset: DatasetIndex, name: str, checkpoint: Any) -> ClassImages:
    """Return the images of one class at the size of a checkpoint's network.

    Raises:
        DataError: If a test image or a mask cannot be read.
    """
    height, width = checkpoint.config.image_size
    size_hw = (height, width)
    samples = [sample for sample in dataset.test if sample.class_name == name]
    return ClassImages(
        test=np.stack([prepare(read_image(sample.path), "rgb", InputSpec(size_hw=size_hw)) for sample in samples]),
        labels=np.array([sample.is_anomalous for sample in samples]),
        masks=[_mask(sample, size_hw) for sample in samples],
        training=functools.partial(_training_images, dataset, name, size_hw, frozenset(checkpoint.training_image_sha256)),
    )


def map_figures(maps: Maps, labels: Labels, masks: Sequence[Labels | None], *, top_k: int = 1) -> dict[str, float | None]:
    """Return the image AUROC and, where there are masks, the pixel AUROC of one class.

    Args:
        maps: (n, H, W).
        labels: (n,).
        masks: n of them; images with an unknown one count for the image AUROC only.
        top_k: Highest pixels whose mean is an image's score.
    """
    scores = np.partition(maps.reshape(len(maps), -1), -top_k, axis=1)[:, -top_k:].mean(1)
    known = {number: mask for number, mask in enumerate(masks) if mask is not None}
    truth = np.stack(list(known.values()))  # (m, H, W)
    pixel = metrics.roc_auc(truth.ravel(), maps[list(known)].ravel()) if truth.any() else None
    return {"image_auroc": metrics.roc_auc(labels, scores), "pixel_auroc": pixel}


def _texts(figures: Figures) -> dict[str, str]:
    return {column: number_text(value) for column, value in figures.items()}


def _training_images(dataset: DatasetIndex, name: str, size_hw: tuple[int, int], trained: frozenset[str]) -> Images:
    read = (read_image(sample.path) for sample in dataset.train if sample.class_name == name)
    return np.stack([prepare(image, "rgb", InputSpec(size_hw=size_hw)) for image in read if pixel_sha256(image) in trained])


def _mask(sample: Sample, size_hw: tuple[int, int]) -> Labels | None:
    if not sample.is_anomalous:
        return np.zeros(size_hw, np.bool_)
    return None if sample.mask_path is None else resize_mask(read_mask(sample.mask_path), size_hw)
