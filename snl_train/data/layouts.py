"""Folders of images as people have them, read into one list of samples.

=============  ==========================================================================================
MVTec AD       ``<class>/{train/good,test/good,test/<defect>}``, ``<class>/ground_truth/<defect>/NNN_mask.png``; one class or a folder of them
VisA           ``split_csv/1cls.csv`` or ``<class>/image_anno.csv``, or such a CSV file itself
plain          ``<product>/*.png`` or ``<product>/good`` with good images only, or a single folder of them
=============  ==========================================================================================

Masks and bad images are optional everywhere, file numbers may have gaps. ``ok``, ``normal`` and the like mean ``good``, and folders inside ``good``,
``<defect>`` and their masks count, see :mod:`snl_runtime.images.labels` and :mod:`snl_runtime.images.listing`. What lies elsewhere is listed as left
out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from snl_runtime.errors import DataError
from snl_runtime.images.labels import find_not_good, is_good_name, is_split_name
from snl_runtime.images.listing import LeftOut, Listing, display_name, is_junk, list_images
from snl_train.data.checks import check_dataset
from snl_train.data.masks import assign_masks
from snl_train.data.samples import DatasetIndex, Sample
from snl_train.data.visa import find_visa_tables, read_visa, visa_root

__all__ = ["DatasetIndex", "Sample", "check_dataset", "list_dataset", "read_dataset"]


def read_dataset(root: Path | str, *, skip_unreadable: bool = False, masks: bool = True, require_train: bool = True) -> DatasetIndex:
    """List the images below ``root`` and check that each of them can be used.

    Every image is decoded once, so this takes milliseconds per image.

    Args:
        root: Folder in one of the three layouts, or a VisA CSV file.
        skip_unreadable: Leave unreadable files out and name them in ``left_out`` instead of raising.
        masks: Look for masks and check them; without it every ``mask_path`` is None.
        require_train: Whether a class without training images is an error; evaluation alone can do without.

    Raises:
        DataError: If the layout is not recognized, a file is unreadable or truncated, a class is empty, a mask has another size than its image
            or marks nothing, or the same image is in train and test. The message is one line and names the file.
    """
    index = list_dataset(root, masks=masks)
    return check_dataset(index, skip_unreadable=skip_unreadable, require_train=require_train)


def list_dataset(root: Path | str, *, masks: bool = True) -> DatasetIndex:
    """List the images below ``root`` without reading them.

    Raises:
        DataError: If the layout is not recognized or a mask file is missing.
    """
    root = Path(root).absolute()
    if not root.exists():
        raise DataError(f"{display_name(root)} does not exist; expected a folder of images or of classes")
    tables = find_visa_tables(root)
    if tables:
        root = visa_root(root, tables[0])
        samples = read_visa(tables, root, masks=masks)
        classes = {table.parent.name for table in tables if table.name == "image_anno.csv"}
        listing = Listing(root=root, taken=tuple(sorted(sample.path for sample in samples)))
    elif not root.is_dir():
        raise DataError(f"{display_name(root)} is a file; expected a folder of images or of classes, or a CSV file in VisA's layout")
    else:
        listing = list_images(root)
        folders = _class_folders(listing)
        samples = [sample for folder in folders for sample in _read_class(listing, folder, masks=masks)]
        classes = {_class_name(folder) for folder in folders}
        listing = _without_unused(listing, samples)
    classes |= {sample.class_name for sample in samples}
    if not classes:
        raise DataError(f"{display_name(root)} names no image; expected the layout of MVTec AD, of VisA, or a folder of good images per product")
    return DatasetIndex(
        root=root,
        classes=sorted(classes),
        train=[sample for sample in samples if sample.split == "train"],
        test=[sample for sample in samples if sample.split == "test"],
        listing=listing,
    )


def _class_folders(listing: Listing) -> list[Path]:
    root = listing.root
    if _is_mvtec_class(root):
        return [root]
    folders = _subfolders(root)
    if listing.inside(root):
        if any(listing.below(folder) for folder in folders):
            raise DataError(
                f"{display_name(root)} holds images and folders of images ({_found(listing, root)}); "
                "expected good images of one product, or one folder per product"
            )
        return [root]
    if not folders:
        raise DataError(f"{display_name(root)} is empty; expected the layout of MVTec AD, of VisA, or a folder of good images per product")
    return [root] if any(is_good_name(folder.name) for folder in folders) else folders


def _read_class(listing: Listing, folder: Path, *, masks: bool) -> list[Sample]:
    if _is_mvtec_class(folder):
        return _read_mvtec_class(listing, folder, masks=masks)
    return _read_plain_class(listing, folder)


def _read_plain_class(listing: Listing, folder: Path) -> list[Sample]:
    images = listing.below(folder)
    if images and is_split_name(folder.name):
        raise DataError(f"{display_name(folder)} looks like a split and not like a product; expected <product>/train/good or one folder per product")
    inner = {path.relative_to(folder).parts[0] for path in images if path.parent != folder}
    if inner and (listing.inside(folder) or not all(is_good_name(name) for name in inner)):
        raise DataError(
            f"{display_name(folder)} holds {len(images)} images in folders that do not all say good ({_found(listing, folder)}); expected "
            f"{folder.name}/train/good and {folder.name}/test/<defect> (MVTec AD), {folder.name}/good alone, or good images directly in {folder.name}"
        )
    _check_good(listing, [folder / name for name in sorted(inner)])
    return [Sample(path=path, class_name=_class_name(folder)) for path in images]


def _read_mvtec_class(listing: Listing, folder: Path, *, masks: bool) -> list[Sample]:
    name = _class_name(folder)
    train, test = _child(folder, "train"), _child(folder, "test")
    for split in (train, test):
        direct = listing.inside(split)
        if direct:
            raise DataError(f"{display_name(direct[0])} lies directly in {split.name}; expected it in {split.name}/good or {split.name}/<defect>")
    for inner in _subfolders(train):
        if not is_good_name(inner.name) and listing.below(inner):
            raise DataError(f"{display_name(inner)} is in the train split, which may hold good images only; expected {display_name(train / 'good')}")
    groups = [inner for inner in _subfolders(test) if listing.below(inner)]
    if groups and not any(is_good_name(group.name) for group in groups):
        raise DataError(
            f"{display_name(test)} has no folder of good images, it holds {_found(listing, test)}; name the folder of the good ones test/good"
        )
    _check_good(listing, [inner for inner in (*_subfolders(train), *groups) if is_good_name(inner.name)])
    samples = [Sample(path=path, class_name=name) for path in listing.below(train)]
    for group in groups:
        is_bad = not is_good_name(group.name)
        defect = group.name if is_bad else None
        samples.extend(Sample(path=path, class_name=name, split="test", is_anomalous=is_bad, defect=defect) for path in listing.below(group))
    if not masks:
        return samples
    ground_truth = _child(folder, "ground_truth")
    unreadable = [one.path for one in listing.rejected if one.path.is_relative_to(test)]
    return assign_masks(samples, listing.below(ground_truth), test=test, ground_truth=ground_truth, unreadable=unreadable)


def _without_unused(listing: Listing, samples: Sequence[Sample]) -> Listing:
    """Return the listing with what the layout has no place for among what is left out."""
    used = {path for sample in samples for path in (sample.path, sample.mask_path) if path is not None}
    unused = [LeftOut(path, "lies where the layout has no images") for path in listing.taken if path not in used]
    return replace(listing, taken=tuple(path for path in listing.taken if path in used), left_out=(*listing.left_out, *unused))


def _check_good(listing: Listing, folders: Sequence[Path]) -> None:
    for folder in folders:
        not_good = find_not_good(path.relative_to(folder) for path in listing.below(folder))
        if not_good:
            raise DataError(f"{display_name(folder)} holds folders that do not say good: {', '.join(not_good[:3])}; take them out or rename them")


def _found(listing: Listing, folder: Path) -> str:
    counts = {inner.name: len(listing.below(inner)) for inner in _subfolders(folder)}
    return ", ".join(f"{display_name(name)} with {count} images" for name, count in counts.items() if count)


def _is_mvtec_class(folder: Path) -> bool:
    return any(_child(folder, name).is_dir() for name in ("train", "test"))


def _child(folder: Path, name: str) -> Path:
    """Return a subfolder by its name in any case; ``folder / name`` if there is none."""
    found = [inner for inner in _subfolders(folder) if inner.name.lower() == name]
    if len(found) > 1:
        raise DataError(f"{display_name(folder)} holds {' and '.join(inner.name for inner in found)}; make one folder of them")
    return found[0] if found else folder / name


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not is_junk(inner.name) and not inner.name.startswith("__"))


def _class_name(folder: Path) -> str:
    return folder.resolve().name or "product"
