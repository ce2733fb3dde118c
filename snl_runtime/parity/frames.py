"""Frames for the parity gate: a folder of the user's, or crops, flips and noise of the golden samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError
from snl_runtime.images.files import read_image
from snl_runtime.images.labels import is_good_name, is_ground_truth
from snl_runtime.images.listing import list_images
from snl_runtime.types import Image

DERIVED_SOURCE = "golden crops, flips and noise"
DERIVED_LIMIT = 8
"""Golden samples that frames are made of, three frames each: enough to see a fault, few enough for a WRN50 on two cores."""
_SEED = 2402


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GateFrame:
    """One image that reference and subject both score.

    Attributes:
        name: Name for messages.
        image_rgb: (H, W, 3) uint8 RGB of any size.
        is_anomalous: What the folder says about it; None if it says nothing.
    """

    name: str
    image_rgb: Image
    is_anomalous: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSet:
    """A counted set of frames that are read one at a time.

    Attributes:
        source: What the report says about where they come from.
        count: How many there are.
    """

    source: str
    count: int
    make: Callable[[], Iterator[GateFrame]]

    def __iter__(self) -> Iterator[GateFrame]:
        return self.make()


def folder_frames(folder: Path, bit_depth: int | None = None) -> FrameSet:
    """Return every image below ``folder``.

    If some lie in a folder called ``good`` (or ``ok``, ``normal``, ...), these frames are good and all others bad (as in MVTec AD's ``test``), and
    the gate looks at AUROC too. Folders called ``ground_truth`` hold masks and are left out.

    Args:
        folder: Where they are.
        bit_depth: Bits that a value of the files uses, as for ``read_image``.

    Raises:
        DataError: If there is no image or one cannot be taken, or, while iterating, if one cannot be read.
    """
    paths = [path for path in list_images(folder).require_all().taken if not is_ground_truth(path.relative_to(folder))]
    if not paths:
        raise DataError(f"--frames {folder} holds no image; name a folder of images from the line")
    good = {path for path in paths if any(is_good_name(part) for part in path.relative_to(folder).parts[:-1])}

    def read() -> Iterator[GateFrame]:
        for path in paths:
            is_anomalous = path not in good if good else None
            yield GateFrame(name=path.relative_to(folder).as_posix(), image_rgb=read_image(path, bit_depth), is_anomalous=is_anomalous)

    return FrameSet(source=f"--frames {folder.name}", count=len(paths), make=read)


def derived_frames(golden: npt.NDArray[np.uint8]) -> FrameSet:
    """Return three frames for each of at most eight golden samples, the same on every run.

    A crop (smaller than the network's input, so the preprocessing enlarges it), a flip (the same size) and a noisy copy of twice the size (the
    preprocessing shrinks it).

    Args:
        golden: (n, H, W, 3) uint8 RGB, n >= 1.
    """
    chosen = np.unique(np.linspace(0, len(golden) - 1, min(len(golden), DERIVED_LIMIT)).round().astype(int))

    def make() -> Iterator[GateFrame]:
        for index in chosen:
            yield from _variants(golden[index], int(index))

    return FrameSet(source=DERIVED_SOURCE, count=3 * len(chosen), make=make)


def _variants(image: Image, index: int) -> Sequence[GateFrame]:
    generator = np.random.default_rng((_SEED, index))
    height, width = image.shape[:2]
    crop_h, crop_w = (int(side * generator.uniform(0.5, 0.9)) for side in (height, width))
    top, left = int(generator.integers(height - crop_h)), int(generator.integers(width - crop_w))
    enlarged = image.repeat(2, axis=0).repeat(2, axis=1).astype(np.int16)
    noisy = (enlarged + generator.normal(0, 12, enlarged.shape).astype(np.int16)).clip(0, 255).astype(np.uint8)
    return (
        GateFrame(name=f"golden {index} cropped", image_rgb=np.ascontiguousarray(image[top : top + crop_h, left : left + crop_w])),
        GateFrame(name=f"golden {index} flipped", image_rgb=np.ascontiguousarray(image[:, ::-1])),
        GateFrame(name=f"golden {index} with noise", image_rgb=noisy),
    )
