"""Checks that need the pixels: done once, by decoding every image of a dataset."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError
from snl_runtime.images.files import check_range, pixel_sha256, read_frame, to_image
from snl_runtime.images.listing import display_name
from snl_runtime.images.opencv import load_opencv
from snl_runtime.model.frame_range import size_text
from snl_runtime.types import Image
from snl_runtime.verdict.frame_checks import MIN_DEVIATION
from snl_train.data.samples import DatasetIndex, Sample

INVERTED_MASK_SHARE = 0.9
"""Share of the frame that a mask covers, in most frames of a class, where it marks the good part and not the defect."""


def check_dataset(
    index: DatasetIndex,
    *,
    skip_unreadable: bool = False,
    require_train: bool = True,
    threads: int | None = None,
    bit_depth: int | None = None,
    on_image: Callable[[Sample, Image], None] | None = None,
) -> DatasetIndex:
    """Decode every image once and return the index with the hash of each image's pixels.

    Args:
        index: What ``list_dataset`` found.
        skip_unreadable: Leave unreadable files out and name them in ``left_out`` instead of raising; so with what could not be taken for an image.
        require_train: Whether a class without training images is an error.
        threads: Images decoded at once; None takes one per processor.
        bit_depth: Bits that a value of the images uses, as for ``read_image``.
        on_image: Called with each readable sample and its pixels, (H, W, 3) uint8 RGB, from the decoding threads and in no fixed order.

    Raises:
        DataError: If a file is unreadable, a class is empty, a mask has another size or marks nothing, the masks of a class look inverted, a training
            image shows nothing or uses a small part of its bits, or one image is in train and test.
    """
    rejected = () if index.listing is None else index.listing.rejected
    if index.listing is not None and not skip_unreadable:
        index.listing.require_all()
    samples = [*index.train, *index.test]
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        pending = [
            pool.submit(partial(_check_sample, skip_unreadable=skip_unreadable, bit_depth=bit_depth, on_image=on_image), sample) for sample in samples
        ]
        try:
            outcomes = [future.result() for future in pending]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _check_mask_shares([outcome for outcome in outcomes if isinstance(outcome, _Checked)])
    kept = [outcome.sample for outcome in outcomes if isinstance(outcome, _Checked)]
    checked = DatasetIndex(
        root=index.root,
        classes=index.classes,
        train=[sample for sample in kept if sample.split == "train"],
        test=[sample for sample in kept if sample.split == "test"],
        left_out=[
            *index.left_out,
            *((one.path, str(one)) for one in rejected),
            *((outcome.path, outcome.reason) for outcome in outcomes if isinstance(outcome, _Unreadable)),
        ],
        listing=index.listing,
    )
    _check_classes(checked, require_train=require_train)
    _check_overlap(checked.train, checked.test)
    return checked


def sizes_of(samples: Sequence[Sample]) -> dict[str, list[list[int]]]:
    """Return class -> height and width of its images, sorted and each once; plain values, for files."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    for sample in samples:
        if sample.size_hw is not None:
            sizes.setdefault(sample.class_name, set()).add(sample.size_hw)
    return {name: [list(size) for size in sorted(found)] for name, found in sorted(sizes.items())}


def notes_on_sizes(samples: Sequence[Sample], trained: Mapping[str, Sequence[Sequence[int]]]) -> list[str]:
    """Return one sentence per class whose test images have sizes that training did not see; classes that ``trained`` does not know are left out."""
    notes = []
    for name, sizes in sizes_of(samples).items():
        seen = [list(size) for size in trained.get(name, [])]
        other = [size for size in sizes if size not in seen]
        if seen and other:
            count = sum(sample.class_name == name and sample.size_hw is not None and list(sample.size_hw) in other for sample in samples)
            total = sum(sample.class_name == name for sample in samples)
            notes.append(
                f"{count} of {total} test images of {name} have a size that training did not see ({_listed(other)}; trained on {_listed(seen)}): "
                "they are squashed to the network's input like all others, and a line that was calibrated on the trained size refuses them"
            )
    return notes


@dataclass(frozen=True, slots=True)
class _Unreadable:
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class _Checked:
    sample: Sample
    mask_share: float | None = None


def _check_sample(
    sample: Sample, *, skip_unreadable: bool, bit_depth: int | None, on_image: Callable[[Sample, Image], None] | None
) -> _Checked | _Unreadable:
    try:
        frame = read_frame(sample.path)
        mask = sample.read_mask()
    except DataError as error:
        if not skip_unreadable:
            raise
        return _Unreadable(sample.path, str(error))
    if sample.split == "train":
        check_range(frame, sample.path, bit_depth)
    image = to_image(frame, sample.path, bit_depth)
    if sample.split == "train":
        _check_contrast(image, sample.path)
    _check_mask(mask, image, sample)
    checked = replace(sample, pixel_sha256=pixel_sha256(image), size_hw=(image.shape[0], image.shape[1]), bit_depth=bit_depth)
    if on_image is not None:
        on_image(checked, image)
    return _Checked(checked, None if mask is None else float(mask.mean()))


def _check_contrast(image: Image, path: Path) -> None:
    _, deviations = load_opencv().meanStdDev(image)
    if deviations.max() < MIN_DEVIATION:
        raise DataError(
            f"{display_name(path)} shows nothing: its values deviate by {deviations.max():.2g} gray levels, expected at least {MIN_DEVIATION:g}; "
            "check lens, light and bit depth, or remove it"
        )


def _check_mask(mask: npt.NDArray[np.bool_] | None, image: Image, sample: Sample) -> None:
    if mask is None:
        return
    if mask.shape != image.shape[:2]:
        sizes = f"{mask.shape[1]} x {mask.shape[0]} px and its image {sample.path} {image.shape[1]} x {image.shape[0]} px"
        raise DataError(f"mask {sample.mask_path} has {sizes}; expected equal sizes")
    if not mask.any():
        raise DataError(f"mask {sample.mask_path} is empty although {sample.path} is a bad image; expected pixels >= 128 where the defect is")


def _check_mask_shares(checked: Sequence[_Checked]) -> None:
    for name in sorted({one.sample.class_name for one in checked}):
        masked = [one for one in checked if one.sample.class_name == name and one.mask_share is not None]
        full = [one.sample.mask_path for one in masked if one.mask_share is not None and one.mask_share > INVERTED_MASK_SHARE]
        if 2 * len(full) > len(masked):
            raise DataError(
                f"{len(full)} of {len(masked)} masks of class {name!r} cover more than {INVERTED_MASK_SHARE:.0%} of the frame, e.g. {full[0]}: "
                "they look inverted; expected white where the defect is and black elsewhere"
            )


def _listed(sizes_hw: Sequence[Sequence[int]]) -> str:
    shown = ", ".join(size_text((height, width)) for height, width in sizes_hw[:3])
    return f"{shown} and {len(sizes_hw) - 3} more" if len(sizes_hw) > 3 else shown


def _check_classes(index: DatasetIndex, *, require_train: bool) -> None:
    required = index.train if require_train else [*index.train, *index.test]
    present = {sample.class_name for sample in required}
    for name in index.classes:
        if name not in present:
            kind = "good training image" if require_train else "image"
            left_out = f" ({len(index.left_out)} unreadable files were left out)" if index.left_out else ""
            folder = index.root / name if (index.root / name).is_dir() else index.root
            raise DataError(f"class {name!r} in {folder} has no {kind}{left_out}; add images or remove the folder")


def _check_overlap(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    trained = {sample.pixel_sha256: sample for sample in train}
    for sample in test:
        reference = trained.get(sample.pixel_sha256)
        if reference is not None:
            raise DataError(f"{sample.path} in the test split is the same image as {reference.path} in the train split; remove one of them")
