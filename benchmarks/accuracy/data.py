"""The images of a protocol: decoded and checked once in a process, whatever the number of runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from snl_runtime.types import Image
from snl_train.config import TrainConfig
from snl_train.data.checks import check_dataset
from snl_train.data.dataset import NetworkInputs, TrainingData, views_of_images
from snl_train.data.layouts import list_dataset
from snl_train.data.samples import DatasetIndex, Sample
from snl_train.data.sampling import hold_out, limit_per_class


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Checked images of the classes that a protocol uses, the training images resized and in memory."""

    index: DatasetIndex
    inputs: dict[int, NetworkInputs]

    def training_data(self, classes: Sequence[str], config: TrainConfig) -> TrainingData:
        """Return the training images of some classes as a configuration asks for them, as ``load_training_data`` does for a whole folder."""
        ours = [sample for sample in self.index.train if sample.class_name in classes]
        samples, kept_back = hold_out(ours, config.data.hold_out, seed=config.seed)
        inputs = self.inputs[config.image_size[0]]
        if (views_of := views_of_images(config.image_size, config.data)) is not None:
            inputs = NetworkInputs(config.image_size, views_of=views_of, budget_bytes=0)  # read again from disk, one image at a time
        return TrainingData(
            root=self.index.root,
            classes=sorted(classes),
            samples=inputs.seen(limit_per_class(samples, config.data.max_per_class, seed=config.seed)),
            held_out=[{"path": self.index.relative(one), "sha256": one.pixel_sha256, "class_name": one.class_name} for one in kept_back],
            left_out=(),
            inputs=inputs,
        )

    def test_samples(self, classes: Sequence[str]) -> list[Sample]:
        """Return the labeled test images of some classes."""
        return [sample for sample in self.index.test if sample.class_name in classes]


def class_names(root: Path) -> list[str]:
    """Return the classes in a data folder without reading an image.

    Raises:
        DataError: If the layout is not recognized.
    """
    return list(list_dataset(root).classes)


def load_dataset(root: Path, classes: Sequence[str], image_sizes: Sequence[int], *, cache_mib: int, threads: int | None) -> Dataset:
    """Decode, check and hash every image of some classes once, and keep the training images at each size.

    Raises:
        DataError: If an image cannot be used, a class is empty, or an image is in train and test.
    """
    listed = list_dataset(root)
    index = replace(
        listed,
        classes=sorted(classes),
        train=[sample for sample in listed.train if sample.class_name in classes],
        test=[sample for sample in listed.test if sample.class_name in classes],
    )
    inputs = {size: NetworkInputs((size, size), budget_bytes=(cache_mib << 20) // len(image_sizes), threads=threads) for size in image_sizes}

    def on_image(sample: Sample, image: Image) -> None:
        for kept in inputs.values():
            kept.add(sample, image)

    return Dataset(check_dataset(index, threads=threads, on_image=on_image), inputs)


def fingerprint(samples: Sequence[Sample]) -> str:
    """Return a hash of images, classes and labels that does not depend on where the folder lies nor on the order."""
    digest = hashlib.sha256()
    for line in sorted(f"{sample.class_name}\0{sample.pixel_sha256}\0{sample.is_anomalous}\n" for sample in samples):
        digest.update(line.encode())
    return digest.hexdigest()
