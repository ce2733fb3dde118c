"""Folders of images as people have them, read into one list of samples.

=============  ==========================================================================================
MVTec AD       ``<class>/{train/good,test/good,test/<defect>}``, ``<class>/ground_truth/<defect>/NNN_mask.png``; one class or a folder of them
VisA           ``split_csv/1cls.csv`` or ``<class>/image_anno.csv``, or such a CSV file itself
plain          ``<product>/*.png`` with good images only, or a single folder of them
=============  ==========================================================================================

Masks and bad images are optional everywhere, file numbers may have gaps.
"""

from dataclasses import replace
from pathlib import Path

from snl_runtime.errors import DataError
from snl_runtime.images import IMAGE_SUFFIXES, list_images
from snl_train.data.checks import check_dataset
from snl_train.data.samples import DatasetIndex, Sample
from snl_train.data.visa import find_visa_tables, read_visa, visa_root

__all__ = ["DatasetIndex", "Sample", "check_dataset", "list_dataset", "read_dataset"]

_SPLIT_NAMES = frozenset({"train", "test", "good", "bad", "ok", "ng", "normal", "anomaly", "anomalous", "defect", "defective", "ground_truth"})


def read_dataset(root: Path | str, *, skip_unreadable: bool = False, masks: bool = True, require_train: bool = True) -> DatasetIndex:
    """List the images below ``root`` and check that each of them can be used.

    Every image is decoded once, so this takes milliseconds per image.

    Args:
        root: Folder in one of the three layouts, or a VisA CSV file.
        skip_unreadable: Leave unreadable files out and name them in ``left_out`` instead of raising.
        masks: Look for masks and check them; without it every ``mask_path`` is None.
        require_train: Whether a class without training images is an error; evaluation alone can do without.

    Raises:
        DataError: If the layout is not recognised, a file is unreadable or truncated, a class is empty, a mask has another size than its image
            or marks nothing, or the same image is in train and test. The message is one line and names the file.
    """
    index = list_dataset(root, masks=masks)
    return check_dataset(index, skip_unreadable=skip_unreadable, require_train=require_train)


def list_dataset(root: Path | str, *, masks: bool = True) -> DatasetIndex:
    """List the images below ``root`` without reading them.

    Raises:
        DataError: If the layout is not recognised or a mask file is missing.
    """
    root = Path(root).absolute()
    if not root.exists():
        raise DataError(f"{root} does not exist; expected a folder of images or of classes")
    tables = find_visa_tables(root)
    if tables:
        root = visa_root(root, tables[0])
        samples = read_visa(tables, root, masks=masks)
        classes = {table.parent.name for table in tables if table.name == "image_anno.csv"}
    elif not root.is_dir():
        raise DataError(f"{root} is a file; expected a folder of images or of classes, or a CSV file in VisA's layout")
    else:
        folders = _class_folders(root)
        samples = [sample for folder in folders for sample in _read_class(folder, masks=masks)]
        classes = {_class_name(folder) for folder in folders}
    classes |= {sample.class_name for sample in samples}
    if not classes:
        raise DataError(f"{root} names no image; expected the layout of MVTec AD, of VisA, or a folder of good images per product")
    return DatasetIndex(
        root=root,
        classes=sorted(classes),
        train=[sample for sample in samples if sample.split == "train"],
        test=[sample for sample in samples if sample.split == "test"],
    )


def _class_folders(root: Path) -> list[Path]:
    if _is_mvtec_class(root):
        return [root]
    folders = _subfolders(root)
    if list_images(root):
        if any(list_images(folder, recursive=True) for folder in folders):
            raise DataError(f"{root} holds images and folders of images; expected good images of one product, or one folder per product")
        return [root]
    if not folders:
        raise DataError(f"{root} is empty; expected the layout of MVTec AD, of VisA, or a folder of good images per product")
    return folders


def _read_class(folder: Path, *, masks: bool) -> list[Sample]:
    if _is_mvtec_class(folder):
        return _read_mvtec_class(folder, masks=masks)
    return _read_plain_class(folder)


def _read_plain_class(folder: Path) -> list[Sample]:
    images = list_images(folder)
    for inner in _subfolders(folder):
        if list_images(inner, recursive=True):
            raise DataError(
                f"{inner} holds images below a product's folder; expected {folder.name}/train/good (MVTec AD) or images directly in {folder}"
            )
    if images and folder.name.lower() in _SPLIT_NAMES:
        raise DataError(f"{folder} looks like a split and not like a product; expected <product>/train/good or one folder per product")
    return [Sample(path=path, class_name=_class_name(folder)) for path in images]


def _read_mvtec_class(folder: Path, *, masks: bool) -> list[Sample]:
    name = _class_name(folder)
    for split in (folder / "train", folder / "test"):
        if split.is_dir() and list_images(split):
            raise DataError(f"{list_images(split)[0]} lies directly in {split.name}; expected it in {split.name}/good or {split.name}/<defect>")
    for inner in _subfolders(folder / "train"):
        if inner.name != "good" and list_images(inner, recursive=True):
            raise DataError(f"{inner} is in the train split, which may hold good images only; expected {folder / 'train' / 'good'}")
    samples = [Sample(path=path, class_name=name) for path in _images(folder / "train" / "good")]
    for inner in _subfolders(folder / "test"):
        is_bad = inner.name != "good"
        defect = inner.name if is_bad else None
        samples.extend(Sample(path=path, class_name=name, split="test", is_anomalous=is_bad, defect=defect) for path in _images(inner))
    return _with_masks(samples, folder / "ground_truth") if masks else samples


def _with_masks(samples: list[Sample], ground_truth: Path) -> list[Sample]:
    """Return the samples with their masks; a class either has all masks of its bad images or none."""
    found = {sample.path: _find_mask(sample, ground_truth) for sample in samples if sample.is_anomalous}
    if not any(found.values()):
        return samples
    for path, mask in found.items():
        if mask is None:
            expected = ground_truth / path.parent.name / f"{path.stem}_mask.png"
            raise DataError(f"{path} has no mask although others of its class have one; expected {expected}")
    return [replace(sample, mask_path=found.get(sample.path)) for sample in samples]


def _find_mask(sample: Sample, ground_truth: Path) -> Path | None:
    folder = ground_truth / (sample.defect or "")
    for stem in (f"{sample.path.stem}_mask", sample.path.stem):
        for suffix in (".png", *sorted(IMAGE_SUFFIXES)):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def _is_mvtec_class(folder: Path) -> bool:
    return any((folder / inner).is_dir() for inner in ("train", "test"))


def _images(folder: Path) -> list[Path]:
    return list_images(folder) if folder.is_dir() else []


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith((".", "__")))


def _class_name(folder: Path) -> str:
    return folder.resolve().name or "product"
