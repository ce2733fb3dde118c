"""One image of a dataset, and the list of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.images.files import read_image, read_mask
from snl_runtime.images.listing import Listing
from snl_runtime.types import Image

Split: TypeAlias = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image and what is known about it.

    Attributes:
        path: The image file.
        class_name: Product it shows.
        split: Part of the dataset it belongs to; training images are always good.
        is_anomalous: Whether the part is bad.
        defect: Kind of defect as the dataset names it; None for a good part.
        mask_path: File with the defective pixels; None for good parts and for classes that have image-level labels only.
        mask_holds_labels: Whether the mask may hold label numbers (VisA) rather than 0 and 255.
        pixel_sha256: Hash of the decoded pixels; empty until the image was read.
        size_hw: Height and width of the image; None until it was read.
        view: Which of the image's views is meant, where it is seen in tiles; 0 where it is only seen as a whole.
        bit_depth: Bits that a value of the file uses, as for ``snl_runtime.images.files.read_image``.
    """

    path: Path
    class_name: str
    split: Split = "train"
    is_anomalous: bool = False
    defect: str | None = None
    mask_path: Path | None = None
    mask_holds_labels: bool = False
    pixel_sha256: str = ""
    size_hw: tuple[int, int] | None = None
    view: int = 0
    bit_depth: int | None = None

    def read_image(self) -> Image:
        """Return the image, (H, W, 3) uint8 RGB.

        Raises:
            DataError: If it cannot be read or is not of its bit depth.
        """
        return read_image(self.path, self.bit_depth)

    def read_mask(self) -> npt.NDArray[np.bool_] | None:
        """Return the defective pixels, (H, W) bool, or None without a mask.

        A pixel is anomalous when >= 128. VisA stores label numbers (1, 2, ...): a VisA mask in which nothing reaches 128 is anomalous where not 0.

        Raises:
            DataError: If the mask cannot be read.
        """
        if self.mask_path is None:
            return None
        mask = read_mask(self.mask_path)
        if self.mask_holds_labels and not mask.any():
            return np.asarray(read_image(self.mask_path).any(axis=2))
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIndex:
    """All images of a dataset.

    Attributes:
        root: Folder that ``relative`` paths start from.
        classes: Names of the products, sorted.
        train: Good images to learn from.
        test: Images to measure on; empty for good-only datasets.
        left_out: Unreadable files and why, one pair each; empty unless skipping was asked for.
        listing: Files found, taken and left out; None for an index that was not made from files.
    """

    root: Path
    classes: Sequence[str]
    train: Sequence[Sample]
    test: Sequence[Sample]
    left_out: Sequence[tuple[Path, str]] = ()
    listing: Listing | None = None

    def without_training(self) -> "DatasetIndex":
        """Return the index without training images, also those that could not be taken."""
        listing = self.listing
        if listing is not None:
            rejected = tuple(one for one in listing.rejected if "train" not in one.path.relative_to(self.root).as_posix().lower().split("/"))
            listing = replace(listing, rejected=rejected)
        return replace(self, train=[], listing=listing)

    def relative(self, sample: Sample) -> str:
        """Return the sample's path below ``root`` with forward slashes, or its whole path if it lies elsewhere."""
        if sample.path.is_relative_to(self.root):
            return sample.path.relative_to(self.root).as_posix()
        return sample.path.as_posix()

    def classes_with_masks(self) -> list[str]:
        """Return the classes for which pixel metrics exist; the others have image-level labels only."""
        named = {sample.class_name for sample in self.test if sample.mask_path is not None}
        return [name for name in self.classes if name in named]
