"""Training images in memory: every file is decoded, hashed and resized once."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError
from snl_runtime.images.preprocess import resize
from snl_runtime.images.views import Views, tile_views, whole_view
from snl_runtime.text import printable
from snl_runtime.types import Image
from snl_train.config import DataConfig
from snl_train.data.checks import check_dataset
from snl_train.data.layouts import list_dataset
from snl_train.data.samples import DatasetIndex, Sample
from snl_train.data.sampling import hold_out, limit_per_class

DEFAULT_CACHE_BYTES = 2 << 30

ViewsOf: TypeAlias = Callable[[tuple[int, int]], Views]
"""Height and width of an image -> how it is seen."""


def views_of_images(size_hw: tuple[int, int], config: DataConfig) -> ViewsOf | None:
    """Return how images are seen as a configuration says, None for a configuration that sees each as a whole."""
    return None if config.tiles is None else functools.partial(tile_views, network_hw=size_hw, tiles=config.tiles)


class NetworkInputs:
    """Network inputs of the training images, kept in memory as far as the budget reaches and read again from disk beyond it.

    Args:
        size_hw: Height and width of the network's input.
        views_of: The views of an image of some height and width; None to see each image as a whole.
        budget_bytes: Memory for the resized images; a view of 256x256 px takes 192 KiB.
        threads: Images decoded at once where they are not in memory; None takes one per processor.
    """

    def __init__(
        self, size_hw: tuple[int, int], *, views_of: ViewsOf | None = None, budget_bytes: int = DEFAULT_CACHE_BYTES, threads: int | None = None
    ) -> None:
        self.views_of: ViewsOf = views_of or (lambda _: whole_view(size_hw))
        self._room = budget_bytes // (size_hw[0] * size_hw[1] * 3)
        self._threads = threads or os.cpu_count() or 1
        self._kept: dict[tuple[Path, int], Image] = {}

    def add(self, sample: Sample, image: Image) -> None:
        """Resize and keep a training image; does nothing for test images and when the budget is used up. Any thread may call it."""
        if sample.split == "train" and len(self._kept) < self._room:
            views = self.views_of((image.shape[0], image.shape[1]))
            self._kept |= {(sample.path, number): view for number, view in enumerate(views.cut(resize(image, views.map_hw)))}

    def keep_only(self, samples: Sequence[Sample]) -> None:
        """Forget all images but these."""
        wanted = {sample.path for sample in samples}
        self._kept = {key: image for key, image in self._kept.items() if key[0] in wanted}

    def seen(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return a sample for each view of some images whose sizes are known."""
        counts = [1 if sample.size_hw is None else self.views_of(sample.size_hw).count for sample in samples]
        return [replace(sample, view=view) for sample, count in zip(samples, counts) for view in range(count)]

    def read(self, samples: Sequence[Sample]) -> npt.NDArray[np.uint8]:
        """Return (len(samples), H, W, 3) uint8 RGB.

        Raises:
            DataError: If an image that is not in memory can no longer be read.
        """
        keys = [(sample.path, sample.view) for sample in samples]
        missing: dict[Path, list[Sample]] = {}
        for sample, key in zip(samples, keys):
            if key not in self._kept:
                missing.setdefault(sample.path, []).append(sample)
        loaded: dict[tuple[Path, int], Image] = {}
        if missing:
            with ThreadPoolExecutor(self._threads) as pool:
                for views in pool.map(self._load, missing.values()):
                    loaded |= views
        return np.stack([self._kept[key] if key in self._kept else loaded[key] for key in keys])

    def _load(self, samples: Sequence[Sample]) -> dict[tuple[Path, int], Image]:
        """Return the views of one image that are asked for, which is decoded once."""
        image = samples[0].read_image()
        views = self.views_of((image.shape[0], image.shape[1]))
        cut = views.cut(resize(image, views.map_hw), [views.grid[sample.view] for sample in samples])
        return {(sample.path, sample.view): view for sample, view in zip(samples, cut, strict=True)}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingData:
    """What a training learns from.

    Attributes:
        root: The data folder.
        classes: Names of the products, sorted.
        samples: Images to train on; one for each view where they are seen in tiles.
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


def keep_back(data: TrainingData, share: float, *, seed: int, at_most: int, setting: str) -> tuple[TrainingData, TrainingData]:
    """Return the training images that are learned from, and at most ``at_most`` of those that are not, as many of each product.

    Unlike ``data.held_out`` the second are part of the training: what is measured on them decides about the model.

    Args:
        data: All training images.
        share: Share of each product's images that are not learned from, in (0, 1).
        seed: Chooses them.
        at_most: Most of them that are returned.
        setting: Name of ``share`` in the configuration, for the error.

    Raises:
        ConfigError: If a product would keep no image to learn from.
        DataError: If ``share`` of every product's images is none.
    """
    learned, kept_back = hold_out(data.samples, share, seed=seed)
    chosen = limit_per_class(kept_back, max(1, at_most // len(data.classes)), seed=seed)
    if not chosen:
        raise DataError(
            f"{setting} is {share}, which of {len(data.samples)} training images keeps none of any product back, and some are needed that are not "
            f"learned from; add images, or raise {setting}"
        )
    return replace(data, samples=learned), replace(data, samples=chosen)


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
    inputs = NetworkInputs(size_hw, views_of=views_of_images(size_hw, config), budget_bytes=config.cache_mib << 20, threads=threads)
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
        samples=inputs.seen(samples),
        held_out=[{"path": index.relative(sample), "sha256": sample.pixel_sha256, "class_name": sample.class_name} for sample in kept_back],
        left_out=index.left_out,
        inputs=inputs,
    )
