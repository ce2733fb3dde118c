"""Which images form which training batch, and which stay out of training."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError, DataError
from snl_train.data.samples import Sample


class BalancedBatches:
    """Endless batches that show every class equally often, whatever its number of images.

    Each batch holds every class ``batch_size // classes`` times; the remaining places go to the classes shown least so far, at random among equals.
    So the counts of two classes differ by at most one in every batch and over the whole training. Within a class every image is shown once
    before any is shown again: small classes repeat, large ones take several epochs to be seen whole.

    An epoch is as many batches as it takes to draw as many images as there are: ``ceil(images / batch_size)``. The order depends on nothing but the
    arguments, so a resumed training skips to where it stopped.

    Args:
        labels: Class number of each image.
        batch_size: Images per batch.
        seed: Any integer >= 0.

    Example:
        >>> batches = BalancedBatches([0, 0, 0, 1], batch_size=2, seed=0)
        >>> batches.batches_per_epoch
        2
        >>> [sorted(batches.labels[batch].tolist()) for batch, _ in zip(batches, range(3))]
        [[0, 1], [0, 1], [0, 1]]
    """

    def __init__(self, labels: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.size == 0:
            raise DataError("there is no image to draw a batch from")
        self._batch_size = batch_size
        self._seed = seed
        self._members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that together hold as many images as the dataset (the last one may exceed it)."""
        return -(-self.labels.size // self._batch_size)

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield (batch_size,) image numbers, starting at the first batch."""
        rng = np.random.default_rng(self._seed)
        shown = np.zeros(len(self._members), dtype=np.int64)
        queues = [np.zeros(0, dtype=np.int64) for _ in self._members]
        while True:
            quota = self._quota(rng, shown)
            shown += quota
            batch: list[int] = []
            for number, wanted in enumerate(quota):
                while queues[number].size < wanted:
                    queues[number] = np.concatenate([queues[number], rng.permutation(self._members[number])])
                batch.extend(queues[number][:wanted])
                queues[number] = queues[number][wanted:]
            yield rng.permutation(np.asarray(batch, dtype=np.int64))

    def _quota(self, rng: np.random.Generator, shown: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        each, rest = divmod(self._batch_size, len(shown))
        quota = np.full(len(shown), each, dtype=np.int64)
        by_need = np.lexsort((rng.random(len(shown)), shown))  # least shown first, at random among equals
        quota[by_need[:rest]] += 1
        return quota


def hold_out(samples: Sequence[Sample], share: float, *, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split good images into those to train on and those to keep for calibration.

    Takes ``round(share * n)`` of each class's ``n`` different images, chosen by a hash of seed and pixels: the choice does not depend on file
    names, order or the other classes, and copies of one image stay on one side.

    Args:
        samples: Good training images with ``pixel_sha256`` set.
        share: Part to keep, in [0, 1).
        seed: Any integer.

    Returns:
        The images to train on and the images held out, both in the given order.

    Raises:
        ConfigError: If ``share`` is out of range, or a class would keep no image to train on.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"hold-out must be at least 0 and below 1, got {share}")
    held: set[str] = set()
    for name in sorted({sample.class_name for sample in samples}):
        hashes = sorted({sample.pixel_sha256 for sample in samples if sample.class_name == name}, key=lambda sha256: _random_rank(seed, sha256))
        count = round(share * len(hashes))
        if count >= len(hashes):
            raise ConfigError(
                f"holding out {share} of the {len(hashes)} images of class {name!r} leaves none to train on; add images or lower --hold-out"
            )
        held.update(hashes[:count])
    trained = [sample for sample in samples if sample.pixel_sha256 not in held]
    lost = {sample.class_name for sample in samples} - {sample.class_name for sample in trained}
    if lost:
        raise ConfigError(f"every training image of class {min(lost)!r} is also in another class and was held out there; remove the copies")
    return trained, [sample for sample in samples if sample.pixel_sha256 in held]


def limit_per_class(samples: Sequence[Sample], count: int | None, *, seed: int) -> list[Sample]:
    """Return at most ``count`` samples of each class, chosen by seed and pixels, in the given order; all of them for None."""
    if count is None:
        return list(samples)
    chosen: set[Sample] = set()
    for name in {sample.class_name for sample in samples}:
        members = sorted((sample for sample in samples if sample.class_name == name), key=lambda sample: _random_rank(seed, _view_name(sample)))
        chosen.update(members[:count])
    return [sample for sample in samples if sample in chosen]


def choose_golden(samples: Sequence[Sample], *, per_class: int = 2, at_most: int = 16, seed: int) -> list[int]:
    """Return the numbers of the samples that travel with the model, ``per_class`` of each class in turn, ``at_most`` in all."""
    rounds: list[list[int]] = [[] for _ in range(per_class)]
    for name in sorted({sample.class_name for sample in samples}):
        numbers = [number for number, sample in enumerate(samples) if sample.class_name == name]
        numbers.sort(key=lambda number: _random_rank(seed, _view_name(samples[number])))
        for turn, number in enumerate(numbers[:per_class]):
            rounds[turn].append(number)
    return [number for turn in rounds for number in turn][:at_most]


def _view_name(sample: Sample) -> str:
    return f"{sample.pixel_sha256}:{sample.view}" if sample.view else sample.pixel_sha256


def _random_rank(seed: int, sha256: str) -> str:
    return hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()
