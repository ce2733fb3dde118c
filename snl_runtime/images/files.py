"""Reading and writing images: every tool of the SDK sees the same pixels of the same file, and a truncated file is an error, not a gray half."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError, FrameError
from snl_runtime.files import atomic_path
from snl_runtime.images.integrity import find_damage
from snl_runtime.images.listing import display_name
from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.pages import find_images
from snl_runtime.images.preprocess import in_rgb_order, to_8_bit
from snl_runtime.types import Image

WRITABLE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"})
"""File name endings, lower case, of the formats that ``write_image`` writes."""
LEAST_16_BIT_VALUE = 1 << 14
"""Images of 16 bits to learn from reach at least this somewhere; a camera of 10 to 14 bits in files of 16 does not."""

_MASK_THRESHOLD = 128


def read_image(path: str | os.PathLike[str], bit_depth: int | None = None) -> Image:
    """Return the image of a file as (H, W, 3) uint8 RGB.

    It stands as its EXIF orientation says, as ``cv2.imread`` shows it. Gray is replicated, alpha dropped, 16 bits become
    round(v * 255 / (2**bits - 1)). Thumbnails beside the image are passed over.

    Args:
        path: The file.
        bit_depth: Bits that a value uses, see :func:`snl_runtime.images.preprocess.to_rgb`; None for 8 or 16, whichever the file has.

    Raises:
        DataError: If the file cannot be read, is truncated, holds several images, is no image of 8 or 16 bits, or not of that bit depth; the
            message names it.
    """
    return to_image(read_frame(path), path, bit_depth)


def read_frame(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Return the image of a file as (H, W, 3) RGB, uint8 or uint16 as it is stored; otherwise as :func:`read_image`.

    Raises:
        DataError: As there.
    """
    (page,) = _read_pages(Path(path), expect_one=True)
    if page.frame is None:
        raise DataError(page.fault or "")
    return page.frame


def decode_frame(data: bytes, name: str) -> npt.NDArray[Any]:
    """Return the image of an encoded file that lies in memory, as :func:`read_frame` does.

    Args:
        data: The file's bytes.
        name: What the messages call it.

    Raises:
        DataError: As there.
    """
    (page,) = _pages_of(data, name, expect_one=True)
    if page.frame is None:
        raise DataError(page.fault or "")
    return page.frame


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Page:
    """One of the images that a file holds.

    Attributes:
        number: Counted from 1.
        count: How many the file holds.
        frame: (H, W, 3) RGB, uint8 or uint16 as it is stored; None if it cannot be read.
        fault: Why, naming the file; None if it can.
    """

    number: int
    count: int
    frame: npt.NDArray[Any] | None = None
    fault: str | None = None


def read_pages(path: str | os.PathLike[str]) -> Iterator[Page]:
    """Yield every image of a file (TIFF, GIF, MPO, animations), each whole or with what is wrong with it.

    Raises:
        DataError: If the file cannot be read.
    """
    return _read_pages(Path(path), expect_one=False)


def to_image(frame: npt.NDArray[Any], path: str | os.PathLike[str], bit_depth: int | None = None) -> Image:
    """Return what :func:`read_frame` gave in 8 bits, as :func:`read_image` does.

    Raises:
        DataError: If it is not of that bit depth; the message names the file.
    """
    try:
        return to_8_bit(frame, bit_depth)
    except FrameError as error:
        raise DataError(f"{display_name(path)}: {error}") from error


def check_range(frame: npt.NDArray[Any], path: str | os.PathLike[str], bit_depth: int | None) -> None:
    """Refuse stored values that look like fewer bits than the file has: scaled as 16 bits such images are nearly black.

    Raises:
        DataError: Naming the file, its highest value and the option.
    """
    if bit_depth is not None or frame.dtype != np.uint16:
        return
    highest = int(frame.max())
    if highest < LEAST_16_BIT_VALUE:
        bits = next(bits for bits in (10, 12, 14) if highest < 1 << bits)
        raise DataError(
            f"{display_name(path)} has 16 bits and no value above {highest}; say how many bits the camera uses: --bit-depth {bits}, "
            "or --bit-depth 16 if the image really is that dark"
        )


def read_mask(path: str | os.PathLike[str]) -> npt.NDArray[np.bool_]:
    """Return (H, W) bool, True where the stored value is at least 128 (of 255; 16 bits are scaled first); of color, the largest channel counts.

    Raises:
        DataError: As ``read_image``, or if the mask was drawn into the alpha channel.
    """
    mask = np.asarray(read_image(path).max(axis=2) >= _MASK_THRESHOLD)
    stored = load_opencv().imdecode(np.frombuffer(_read_bytes(Path(path)), np.uint8), load_opencv().IMREAD_UNCHANGED)
    if stored is not None and stored.ndim == 3 and stored.shape[2] == 4:
        planes, alpha = stored[:, :, :3], stored[:, :, 3]
        if (planes == planes[0, 0]).all() and (alpha != alpha[0, 0]).any():
            raise DataError(
                f"mask {display_name(path)} looks like an alpha mask: its colors are the same everywhere and its alpha channel is not; "
                "save it in gray, white where the defect is"
            )
    return mask


def write_image(path: str | os.PathLike[str], image_rgb: Image) -> None:
    """Write (H, W, 3) uint8 RGB in the format that the suffix names; the file is whole or not there.

    Raises:
        DataError: If the suffix names no image format.
        SinkError: If the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in WRITABLE_SUFFIXES:
        raise DataError(f"cannot write {display_name(target)}: its name must end in one of {', '.join(sorted(WRITABLE_SUFFIXES))}")
    _, encoded = load_opencv().imencode(target.suffix.lower(), np.ascontiguousarray(image_rgb[:, :, ::-1]))
    with atomic_path(target) as temporary:
        temporary.write_bytes(encoded.tobytes())


def pixel_sha256(image_rgb: Image) -> str:
    """Return the sha256 over ``b"HxWx3\\0"`` and the pixels: equal for equal images, whatever file format they were stored in."""
    height, width = image_rgb.shape[:2]
    digest = hashlib.sha256(f"{height}x{width}x3\0".encode("ascii"))
    digest.update(np.ascontiguousarray(image_rgb).data)
    return digest.hexdigest()


def _read_pages(path: Path, *, expect_one: bool) -> Iterator[Page]:
    return _pages_of(_read_bytes(path), display_name(path), expect_one=expect_one)


def _pages_of(data: bytes, file: str, *, expect_one: bool) -> Iterator[Page]:
    images = find_images(data)
    if images.count == 0:
        raise DataError(f"{file} holds a thumbnail only; save its image as PNG or TIFF of 8 or 16 bits")
    if expect_one and images.count > 1:
        raise DataError(f"{file} holds {images.count} images; inspect each of them with snl-run --pages all, or save each as a file of its own")
    # A decoder has to go through an animation from its start.
    frames = _decode_all(data, file) if images.cut is None and images.count > 1 else None
    for number in range(images.count):
        name = f"{file}, image {number + 1} of {images.count}," if images.count > 1 else file
        try:
            if frames is not None:
                yield Page(number=number + 1, count=images.count, frame=_in_rgb_order(frames, number, name))
                continue
            frame = _decode(data if images.cut is None else images.cut(number), name)
            yield Page(number=number + 1, count=images.count, frame=frame)
        except DataError as error:
            yield Page(number=number + 1, count=images.count, fault=str(error))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {display_name(path)}: {error.strerror or error}") from error


def _decode(data: bytes, name: str) -> npt.NDArray[Any]:
    _require_whole(data, name)
    cv2 = load_opencv()
    try:
        # As stored, but for palettes and the orientation; IMREAD_UNCHANGED would ignore the latter.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except (cv2.error, MemoryError) as error:
        raise DataError(f"{name} cannot be decoded ({' '.join(str(error).split())}); copy it again or remove it") from error
    return _in_rgb_order([] if pixels is None else [pixels], 0, name)


def _decode_all(data: bytes, name: str) -> Sequence[npt.NDArray[Any]]:
    _require_whole(data, name)
    cv2 = load_opencv()
    try:
        _, frames = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except (cv2.error, MemoryError) as error:
        raise DataError(f"{name} cannot be decoded ({' '.join(str(error).split())}); copy it again or remove it") from error
    return list(frames)


def _require_whole(data: bytes, name: str) -> None:
    damage = find_damage(data)
    if damage is not None:
        raise DataError(f"{name} {damage}; copy it again or remove it")


def _in_rgb_order(frames: Sequence[npt.NDArray[Any]], number: int, name: str) -> npt.NDArray[Any]:
    if number >= len(frames):
        raise DataError(f"{name} is not an image that can be decoded, or it is truncated; copy it again or remove it")
    pixels = frames[number]
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name} holds {pixels.dtype} values; save it as PNG or TIFF of 8 or 16 bits")
    try:
        return in_rgb_order(pixels, "gray" if pixels.ndim == 2 or pixels.shape[2] == 1 else "bgr")
    except FrameError as error:
        raise DataError(f"{name}: {error}") from error
