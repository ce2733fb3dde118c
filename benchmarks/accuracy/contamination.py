"""``python -m benchmarks.accuracy.contamination``: a memory that was fitted on some bad images among the good ones.

Of each class some anomalous test images, chosen by the seed and their pixels, are added to its training images as if they were good. The memory is
measured on the test images that no share of them takes away: the same for every share. The moved images are split between centers and peaks like
all others, so that some of them only raise what the maps are divided by. Whether a memory has learned the very defects it was shown is told by the
moved images themselves: their image AUROC against the good test images, and the same by the memory of that seed without any bad image.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.accuracy import provenance
from benchmarks.accuracy.command import seed_list
from benchmarks.accuracy.protocol import Protocol, load_protocol, train_config
from benchmarks.accuracy.tables import CONTAMINATION, RESULTS, merge_rows, number_text, read_rows
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import ConfigError, DataError
from snl_train import metrics
from snl_train.data.samples import Sample
from snl_train.data.sampling import limit_per_class

if TYPE_CHECKING:
    from benchmarks.accuracy.data import Dataset
    from snl_train.config import TrainConfig
    from snl_train.data.dataset import TrainingData
    from snl_train.measures import ScoredImage

PROGRAM = "benchmarks.accuracy.contamination"
TABLE = RESULTS / "contamination.csv"
_SCORED_AT_ONCE = 8
_EXAMPLE = """
python -m benchmarks.accuracy.contamination --data realmix --weights resnet18.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser(PROGRAM, "Measure a memory that was fitted on some bad images.", example=_EXAMPLE)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument("--weights", metavar="FILE", help="weights of the teacher (default: the protocol's)")
    parser.add_argument("--protocol", default="reduced256", metavar="NAME", help="settings and development classes (default: reduced256)")
    parser.add_argument("--variant", default="memory, 512 centers", metavar="NAME", help="row of the protocol (default: memory, 512 centers)")
    parser.add_argument("--bad-percent", type=seed_list, default=(1, 5), metavar="A,B", help="bad images per 100 good ones (default: 1,5)")
    parser.add_argument("--seeds", type=seed_list, metavar="A,B", help="only these seeds (default: the protocol's)")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="table to add to (default: benchmarks/results/contamination.csv)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the networks run (default: cpu)")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    options = parser.parse_args(argv)
    return run_command(lambda: _run(options), program=PROGRAM)


def choose_moved(test: Sequence[Sample], good: Mapping[str, int], percent: int, *, seed: int) -> list[Sample]:
    """Return the anomalous test images that are moved, those of a smaller share among those of a larger one.

    Args:
        test: Test images with ``pixel_sha256``.
        good: Training images of each class.
        percent: Moved images per 100 good ones, rounded; at least one of each class unless 0.
        seed: Chooses them.

    Raises:
        DataError: If a class has too few anomalous test images to be measured on the rest.
    """
    moved: list[Sample] = []
    for name, count in good.items():
        anomalous = [sample for sample in test if sample.class_name == name and sample.is_anomalous]
        wanted = max(1, round(percent * count / 100)) if percent else 0
        if wanted >= len(anomalous):
            raise DataError(f"class {name!r} has {len(anomalous)} anomalous test images, and {wanted} would be moved; lower --bad-percent")
        moved += limit_per_class(anomalous, wanted, seed=seed)
    return moved


def as_training_images(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples as somebody lists them who takes them for good ones."""
    return [dataclasses.replace(one, split="train", is_anomalous=False, defect=None, mask_path=None) for one in samples]


def class_figures(
    images: Sequence["ScoredImage"], rest: Collection[Path], moved: Collection[Path], without: Mapping[Path, float]
) -> dict[str, float | None]:
    """Return the figures of one class.

    Args:
        images: All its test images, scored.
        rest: Paths of those that are measured on.
        moved: Paths of the bad ones that the memory was fitted on.
        without: Scores by the memory that was fitted on good images alone, by path.
    """
    measured = [one for one in images if one.sample.path in rest]
    masked = [(one.mask, one.anomaly_map) for one in measured if one.mask is not None]
    has_masks = any(mask.any() for mask, _ in masked)
    of_moved = [one for one in images if one.sample.path in moved or not one.sample.is_anomalous]
    labels = [one.sample.is_anomalous for one in of_moved]
    return {
        "image_auroc": metrics.roc_auc([one.sample.is_anomalous for one in measured], [one.score for one in measured]),
        "pixel_auroc": metrics.roc_auc(*(np.stack(part).ravel() for part in zip(*masked, strict=True))) if has_masks else None,
        "moved_auroc": metrics.roc_auc(labels, [one.score for one in of_moved]),
        "moved_auroc_without": metrics.roc_auc(labels, [without[one.sample.path] for one in of_moved]),
    }


def _run(options: argparse.Namespace) -> int:
    from benchmarks.accuracy.data import load_dataset

    protocol = load_protocol(options.protocol)
    if options.variant not in protocol.variants or not protocol.development:
        raise ConfigError(
            f"protocol {protocol.name} has no development classes or no variant {options.variant!r}; it has {', '.join(protocol.variants)}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    read_rows(options.out, CONTAMINATION)
    seeds = options.seeds or protocol.seeds
    configs = {seed: _config(options, protocol, seed) for seed in seeds}
    cache_mib = configs[seeds[0]].data.cache_mib
    dataset = load_dataset(options.data, protocol.development, protocol.image_sizes[:1], cache_mib=cache_mib, threads=None)
    common = {"protocol": protocol.name, "variant": options.variant, **provenance.origin(options.device, options.commit)}
    written = 0
    for config in configs.values():
        rows = [{**common, **row} for row in _rows_of(dataset, protocol.development, config, options.bad_percent)]
        merge_rows(options.out, CONTAMINATION, rows)
        written += len(rows)
        print(f"seed {config.seed}: {len(rows)} rows", flush=True)
    print(f"{options.out}: {written} rows")
    return EXIT_OK


def _config(options: argparse.Namespace, protocol: Protocol, seed: int) -> "TrainConfig":
    size = protocol.image_sizes[0]
    config = train_config(protocol, options.variant, image_size=size, seed=seed, weights=options.weights, device=options.device)
    if config.model.method != "memory":
        raise ConfigError(f"variant {options.variant!r} trains a student ({config.model.method}); only the method memory is measured here")
    return config


def _rows_of(dataset: "Dataset", classes: Sequence[str], config: "TrainConfig", percents: Sequence[int]) -> Iterator[dict[str, str]]:
    """Yield the rows of one seed, that of good images alone first."""
    data = dataset.training_data(classes, config)
    good = {name: sum(sample.class_name == name for sample in data.samples) for name in classes}
    test = dataset.test_samples(classes)
    taken = {one.path for one in choose_moved(test, good, max(percents), seed=config.seed)}
    rest = {one.path for one in test} - taken
    without: dict[Path, float] = {}
    for percent in sorted({0, *percents}):
        moved = choose_moved(test, good, percent, seed=config.seed)
        images = _scored(dataclasses.replace(data, samples=[*data.samples, *as_training_images(moved)]), test, config)
        without = without or {one.sample.path: one.score for one in images}
        paths = {one.path for one in moved}
        for name in classes:
            figures = class_figures([one for one in images if one.sample.class_name == name], rest, paths, without)
            yield {
                "bad_percent": str(percent),
                "images_per_center": "1",
                "seed": str(config.seed),
                "class": name,
                "good": str(good[name]),
                "bad": str(sum(one.class_name == name for one in moved)),
                **{metric: number_text(value) for metric, value in figures.items()},
            }


def _scored(data: "TrainingData", test: Sequence[Sample], config: "TrainConfig") -> list["ScoredImage"]:
    """Return the test images scored by a memory that is fitted as ``snl-train --method memory`` does it."""
    from snl_train.checkpoint import load_checkpoint
    from snl_train.evaluation import CheckpointScorer, score_samples
    from snl_train.memory_training import train_memory

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.pt"
        train_memory(config, data, path)
        scorer = CheckpointScorer(load_checkpoint(path), config.device)
    images, _ = score_samples(scorer, test, batch_size=_SCORED_AT_ONCE)
    return images


if __name__ == "__main__":
    sys.exit(main())
