"""Which images become golden samples: a few, spread over the classes, the same on every run."""

import hashlib
from collections.abc import Sequence

from snl_runtime.errors import ConfigError, DataError
from snl_runtime.types import Image


def choose_golden(images: Sequence[Image], classes: Sequence[str], count: int) -> list[int]:
    """Return the positions of ``count`` images, drawn in turn from every class.

    The choice depends on the pixels and the class names only, not on the order of the files: within a class images are taken by ascending hash of
    their pixels. Images with the same pixels in one class are taken once. Fewer than ``count`` come back only if there are fewer different images.

    Args:
        images: Any number of (H, W, 3) uint8 images; sizes may differ.
        classes: The class name of each image.
        count: How many to choose, at least 1; with fewer than one per class, the classes that come first by name are served.

    Raises:
        ConfigError: If ``count`` is below 1.
        DataError: If there is no image, or the two sequences differ in length.
    """
    if count < 1:
        raise ConfigError(f"the number of golden samples must be at least 1, got {count}")
    if not len(images) or len(images) != len(classes):
        raise DataError(
            f"golden samples need one class name per image and at least one image, got {len(images)} images and {len(classes)} class names"
        )
    queues = [_by_pixels(images, [i for i, name in enumerate(classes) if name == class_name]) for class_name in sorted(set(classes))]
    chosen: list[int] = []
    for turn in range(max(len(queue) for queue in queues)):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    return chosen[:count]


def _by_pixels(images: Sequence[Image], positions: Sequence[int]) -> list[int]:
    by_hash: dict[str, int] = {}
    for position in positions:
        image = images[position]
        by_hash.setdefault(hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest(), position)
    return [by_hash[key] for key in sorted(by_hash)]
