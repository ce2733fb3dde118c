"""What a caller hands over when several frames are judged at once, checked before any of them is looked at."""

from collections.abc import Sequence

from snl_runtime.errors import ConfigError


def checked_frames(images: object) -> list[object]:
    """Return the frames of a batch, which are a list or another sequence of arrays, in a list that nobody else changes meanwhile.

    Raises:
        ConfigError: If it is one array, which could be one frame as well as several, or no sequence.
    """
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes, bytearray, memoryview)):
        return list(images)
    shape = getattr(images, "shape", None)
    got = type(images).__name__ if shape is None else f"one {type(images).__name__} of shape {tuple(shape)}"
    raise ConfigError(f"images must be a list of frames, got {got}; write detect_batch(list(frames)), or detect(frame) for a single one")


def checked_products(products: object, count: int) -> list[str | None]:
    """Return the product of each of ``count`` frames.

    Args:
        products: One name for all of them, or a sequence with one per frame; None, alone or in the sequence, for the detector's own.
        count: How many frames there are.

    Raises:
        ConfigError: If the sequence has another length or holds anything else.
    """
    if products is None or isinstance(products, str):
        return [products] * count
    if not isinstance(products, Sequence) or len(products) != count:
        got = f"{len(products)}" if isinstance(products, Sequence) else type(products).__name__
        raise ConfigError(f"products must be one name, or one per frame: {count} frames, got {got}")
    for index, product in enumerate(products):
        if product is not None and not isinstance(product, str):
            raise ConfigError(f"products[{index}] must be a name or None, got {type(product).__name__}")
    return list(products)
