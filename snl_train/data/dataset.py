"""Training images in memory: every file is decoded, hashed and resized once."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from snl_runtime.images.preprocess import resize
from snl_runtime.text import printable
from snl_runtime.types import Image
from snl_train.config import DataConfig
from snl_train.data.checks import check_dataset
from snl_train.data.layouts import list_dataset
from snl_train.data.samples import DatasetIndex, Sample
from snl_train.data.sampling import hold_out, limit_per_class

DEFAULT_CACHE_BYTES = 2 << 30


class NetworkInputs:
    """Network inputs of the training images, kept in memory as far as the budget reaches and read again from disk beyond it.

    Args:
        size_hw: Height and width of the network's input.
        budget_bytes: Memory for the resized images; 256x256 px takes 192 KiB per image.
        threads: Images decoded at once where they are not in memory; None takes one per processor.
    """

    def __init__(self, size_hw: tuple[int, int], *, budget_bytes: int = DEFAULT_CACHE_BYTES, threads: int | None = None) -> None:
        self._size_hw = size_hw
        self._room = budget_bytes // (size_hw[0] * size_hw[1] * 3)
        self._threads = threads or os.cpu_count() or 1
        self._kept: dict[Path, Image] = {}

    def add(self, sample: Sample, image: Image) -> None:
        """Resize and keep a training image; does nothing for test images and when the budget is used up. Any thread may call it."""
        if sample.split == "train" and len(self._kept) < self._room:
            self._kept[sample.path] = resize(image, self._size_hw)

    def keep_only(self, samples: Sequence[Sample]) -> None:
        """Forget all images but these."""
        wanted = {sample.path for sample in samples}
        self._kept = {path: image for path, image in self._kept.items() if path in wanted}

    def read(self, samples: Sequence[Sample]) -> npt.NDArray[np.uint8]:
        """Return (len(samples), H, W, 3) uint8 RGB.

        Raises:
            DataError: If an image that is not in memory can no longer be read.
        """
        missing = [sample for sample in samples if sample.path not in self._kept]
        loaded: dict[Path, Image] = {}
        if missing:
            with ThreadPoolExecutor(self._threads) as pool:
                loaded = dict(zip((sample.path for sample in missing), pool.map(self._load, missing), strict=True))
        return np.stack([self._kept[path] if path in self._kept else loaded[path] for path in (sample.path for sample in samples)])

    def _load(self, sample: Sample) -> Image:
        return resize(sample.read_image(), self._size_hw)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingData:
    """What a training learns from.

    Attributes:
        root: The data folder.
        classes: Names of the products, sorted.
        samples: Images to train on.
        held_out: Good images kept for calibration, as the checkpoint lists them.
        left_out: Unreadable files and why.
        inputs: The pixels of ``samples``.
    """

    root: Path
    classes: Sequence[str]
    samples: Sequence[Sample]
    held_out: Sequence[dict[str, str]]
    left_out: Sequence[tuple[Path, str]]
    inputs: NetworkInputs

    @property
    def labels(self) -> list[int]:
        """Class number of each sample."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[sample.class_name] for sample in self.samples]

    def fingerprint(self) -> str:
        """Return a hash of the training images and their classes in their order; it does not depend on where the folder lies."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(printable(f"{sample.class_name}\0{sample.pixel_sha256}\n").encode())
        return digest.hexdigest()


def keep_back(data: TrainingData, share: float, *, seed: int, at_most: int) -> tuple[TrainingData, TrainingData]:
    """Return the training images that are learned from, and at most ``at_most`` of those that are not, as many of each product.

    The second has no images where ``share`` of a product's is none. Unlike ``data.held_out`` they are part of the training: what is measured on them
    decides about the model.

    Args:
        data: All training images.
        share: Share of each product's images that are not learned from, in (0, 1).
        seed: Chooses them.
        at_most: Most of them that are returned.

    Raises:
        ConfigError: If a product would keep no image to learn from.
    """
    learned, kept_back = hold_out(data.samples, share, seed=seed)
    chosen = limit_per_class(kept_back, max(1, at_most // len(data.classes)), seed=seed)
    return dataclasses.replace(data, samples=learned), dataclasses.replace(data, samples=chosen)


def load_training_data(
    root: Path | str,
    size_hw: tuple[int, int],
    *,
    config: DataConfig,
    seed: int = 0,
    threads: int | None = None,
    on_listed: Callable[[DatasetIndex], Callable[[], None]] | None = None,
) -> TrainingData:
    """Read and check a dataset, keep a part of the good images out of training, and hold the others in memory.

    Args:
        root: Folder in one of the layouts of ``snl_train.data.layouts``.
        size_hw: Height and width of the network's input.
        config: What is held out, how many images are used, what may be left out, how much memory they may take.
        seed: Chooses the images that are held out or used.
        threads: Images decoded at once; None takes one per processor.
        on_listed: Called with what was found before it is read; what it returns is called after each image.

    Raises:
        DataError: As ``read_dataset``.
        ConfigError: If the hold-out leaves a class without images.
    """
    index = list_dataset(root)
    inputs = NetworkInputs(size_hw, budget_bytes=config.cache_mib << 20, threads=threads)
    report = on_listed(index) if on_listed is not None else None

    def on_image(sample: Sample, image: Image) -> None:
        inputs.add(sample, image)
        if report is not None:
            report()

    index = check_dataset(index, skip_unreadable=config.skip_unreadable, threads=threads, bit_depth=config.bit_depth, on_image=on_image)
    samples, kept_back = hold_out(index.train, config.hold_out, seed=seed)
    samples = limit_per_class(samples, config.max_per_class, seed=seed)
    inputs.keep_only(samples)
    return TrainingData(
        root=index.root,
        classes=index.classes,
        samples=samples,
        held_out=[{"path": index.relative(sample), "sha256": sample.pixel_sha256, "class_name": sample.class_name} for sample in kept_back],
        left_out=index.left_out,
        inputs=inputs,
    )
