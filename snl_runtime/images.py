"""Reading and writing pictures: every tool of the SDK sees the same pixels of the same file, and a truncated file is an error, not a grey half."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError, FrameError
from snl_runtime.files import atomic_path
from snl_runtime.image_integrity import find_damage
from snl_runtime.opencv import load_opencv
from snl_runtime.preprocess import in_rgb_order, to_8_bit
from snl_runtime.types import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"})
"""File name endings, lower case, that ``list_images`` takes for pictures."""

_MASK_THRESHOLD = 128


def read_image(path: str | os.PathLike[str], bit_depth: int | None = None) -> Image:
    """Return the stored pixels of a file as (H, W, 3) uint8 RGB.

    An EXIF orientation is ignored, because a camera on a line sends none and a mask has none. Grey is replicated, alpha dropped, 16 bits become
    round(v * 255 / (2**bits - 1)). A TIFF or PNG with several pictures gives its first.

    Args:
        path: The file.
        bit_depth: Bits that a value uses, see :func:`snl_runtime.preprocess.to_rgb`; None for 8 or 16, whichever the file has.

    Raises:
        DataError: If the file cannot be read, is truncated, is no picture of 8 or 16 bits or not of that bit depth; the message names it.
    """
    pixels = read_frame(path)
    try:
        return to_8_bit(pixels, bit_depth)
    except FrameError as error:
        raise DataError(f"{path}: {error}") from error


def read_frame(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Return the stored pixels of a file as (H, W, 3) RGB, uint8 or uint16 as they are; otherwise as :func:`read_image`.

    Raises:
        DataError: If the file cannot be read, is truncated or is no picture of 8 or 16 bits; the message names it.
    """
    pixels = _decode(Path(path))
    if pixels.ndim == 2:
        return in_rgb_order(pixels, "gray")
    return in_rgb_order(pixels, "bgra" if pixels.shape[2] == 4 else "bgr")


def read_mask(path: str | os.PathLike[str]) -> npt.NDArray[np.bool_]:
    """Return (H, W) bool, True where the stored value is at least 128 (of 255; 16 bits are scaled first); of colour, the largest channel counts.

    Raises:
        DataError: As ``read_image``.
    """
    return np.asarray(read_image(path).max(axis=2) >= _MASK_THRESHOLD)


def list_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """Return the pictures of a folder, sorted by path; hidden files and folders are left out.

    Raises:
        DataError: If ``folder`` is no folder that can be listed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; name a folder that holds images")
    try:
        found = list(root.rglob("*") if recursive else root.iterdir())
    except OSError as error:
        raise DataError(f"cannot list {root}: {error.strerror or error}") from error
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and _is_visible(path.relative_to(root)) and path.is_file())


def write_image(path: str | os.PathLike[str], image_rgb: Image) -> None:
    """Write (H, W, 3) uint8 RGB in the format that the suffix names; the file is whole or not there.

    Raises:
        DataError: If the suffix names no picture format.
        SinkError: If the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"cannot write {target}: its name must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}")
    _, encoded = load_opencv().imencode(target.suffix.lower(), np.ascontiguousarray(image_rgb[:, :, ::-1]))
    with atomic_path(target) as temporary:
        temporary.write_bytes(encoded.tobytes())


def pixel_sha256(image_rgb: Image) -> str:
    """Return the sha256 over ``b"HxWx3\\0"`` and the pixels: equal for equal pictures, whatever file format they were stored in."""
    height, width = image_rgb.shape[:2]
    digest = hashlib.sha256(f"{height}x{width}x3\0".encode("ascii"))
    digest.update(np.ascontiguousarray(image_rgb).data)
    return digest.hexdigest()


def _is_visible(relative: Path) -> bool:
    return not any(part.startswith(".") for part in relative.parts)


def _decode(path: Path) -> npt.NDArray[Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    damage = find_damage(data)
    if damage is not None:
        raise DataError(f"{path} {damage}; copy it again or remove it")
    cv2 = load_opencv()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded ({' '.join(str(error).split())}); copy it again or remove it") from error
    if pixels is None:
        raise DataError(f"{path} is not a picture that can be decoded, or it is truncated; copy it again or remove it")
    if pixels.dtype not in (np.uint8, np.uint16) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise DataError(f"{path} holds {pixels.dtype} values of shape {pixels.shape}; expected 8 or 16 bits with 1, 3 or 4 channels")
    pixels = np.asarray(pixels)
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
