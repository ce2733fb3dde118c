"""Which mask belongs to which image of a dataset in MVTec AD's layout."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from snl_runtime.errors import DataError
from snl_runtime.images.listing import display_name
from snl_train.data.samples import Sample

_MASK_ENDING = re.compile(r"[ ._-](mask|gt|label)$", re.IGNORECASE)


def assign_masks(
    samples: Sequence[Sample], masks: Sequence[Path], *, test: Path, ground_truth: Path, unreadable: Sequence[Path] = ()
) -> list[Sample]:
    """Return the samples of one class with their masks; a class either has all masks of its bad images or none.

    The mask of ``test/<defect>/000.png`` is ``ground_truth/<defect>/000.png``, ``000_mask.png``, ``000_gt.png`` or ``000_label.png``, of any format
    and in any case; folders inside ``<defect>`` count.

    Args:
        samples: Images of the class.
        masks: Files below ``ground_truth``.
        test: Folder of its test images.
        ground_truth: Folder of its masks.
        unreadable: Test images that could not be taken; their masks are no mistake.

    Raises:
        DataError: If a mask fits no image or several, if several fit one image, or if a bad image has none although others have.
    """
    tested = [*(sample.path for sample in samples if sample.split == "test"), *unreadable]
    if not masks or not tested:
        return list(samples)
    images: dict[tuple[str, str], list[Path]] = {}
    for path in tested:
        images.setdefault(_key(path.relative_to(test)), []).append(path)
    found: dict[Path, Path] = {}
    strays = []
    for mask in masks:
        fitting = _fitting(mask.relative_to(ground_truth), images)
        if not fitting:
            strays.append(mask)
        elif len(fitting) > 1:
            raise DataError(f"mask {display_name(mask)} fits {len(fitting)} images: {_shown(fitting)}; give these images different names")
        elif fitting[0] in found:
            raise DataError(f"{display_name(fitting[0])} has several masks: {_shown([found[fitting[0]], mask])}; keep one of them")
        else:
            found[fitting[0]] = mask
    bad = [sample.path for sample in samples if sample.is_anomalous]
    expected = display_name(_expected(bad[0], test, ground_truth)) if bad else f"{display_name(ground_truth)}/<defect>/<image>_mask.png"
    if strays:
        raise DataError(
            f"{len(strays)} of {len(masks)} masks in {display_name(ground_truth)} fit no image: {_shown(strays)}; expected e.g. {expected}"
        )
    for path in bad:
        if path not in found:
            expected = display_name(_expected(path, test, ground_truth))
            raise DataError(f"{display_name(path)} has no mask although others of its class have one; expected {expected}")
    return [replace(sample, mask_path=found.get(sample.path)) if sample.is_anomalous else sample for sample in samples]


def _fitting(mask: PurePath, images: dict[tuple[str, str], list[Path]]) -> list[Path]:
    """Return the images that a mask is named after: as it is, or without the ending that says what it is."""
    folder, stem = _key(mask)
    return images.get((folder, stem)) or images.get((folder, _MASK_ENDING.sub("", stem))) or []


def _key(relative: PurePath) -> tuple[str, str]:
    return relative.parent.as_posix().casefold(), relative.stem.casefold()


def _expected(image: Path, test: Path, ground_truth: Path) -> Path:
    return ground_truth / image.relative_to(test).with_name(f"{image.stem}_mask.png")


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(display_name(path) for path in paths[:3])
