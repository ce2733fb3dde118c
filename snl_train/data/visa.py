"""The layout of the VisA dataset: images and masks are named by CSV files.

Two kinds of file exist: ``split_csv/1cls.csv`` (columns object, split, label, image, mask) for all classes, and ``<class>/image_anno.csv``
(columns image, label, mask) which states no split. For the latter every tenth good image, in the order of the names, goes to the test split; the
proportion is that of ``1cls.csv``.
"""

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from snl_runtime.errors import DataError
from snl_runtime.images.labels import is_good_name
from snl_train.data.samples import Sample, Split

SPLIT_FILE = Path("split_csv") / "1cls.csv"
ANNOTATION_FILE = "image_anno.csv"
_TEST_EVERY = 10


def find_visa_tables(root: Path) -> list[Path]:
    """Return the CSV files that describe ``root``; empty if it does not follow VisA's layout.

    Args:
        root: A folder, or one CSV file.
    """
    if root.is_file():
        return [root] if root.suffix.lower() == ".csv" else []
    for table in (root / SPLIT_FILE, root / SPLIT_FILE.name, root / ANNOTATION_FILE):
        if table.is_file():
            return [table]
    return sorted(root.glob(f"*/{ANNOTATION_FILE}"))


def visa_root(root: Path, table: Path) -> Path:
    """Return the folder that the paths inside ``table`` start from."""
    if table.parent.name == SPLIT_FILE.parent.name or table.name == ANNOTATION_FILE:
        return table.parent.parent
    return table.parent if root.is_file() else root


def read_visa(tables: Sequence[Path], base: Path, *, masks: bool) -> list[Sample]:
    """Return the samples that the tables name, in their order.

    Raises:
        DataError: If a table lacks a column, holds an unknown split, or puts a bad image into training.
    """
    samples: list[Sample] = []
    for table in tables:
        reader = _read_annotations if table.name == ANNOTATION_FILE else _read_split
        samples.extend(reader(table, base, masks=masks))
    return samples


def _rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        with table.open("rb") as file:
            encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        with table.open(newline="", encoding=encoding) as file:
            if not file.readline().startswith("sep="):  # Excel's own first line
                file.seek(0)
            start = file.tell()
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(start)
            reader = csv.DictReader(file, delimiter=delimiter)
            missing = [name for name in columns if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{table} has no column {missing[0]!r}; expected the columns {', '.join(columns)}")
            for row in reader:
                if None in row or any(row.get(name) is None for name in columns):
                    got = sum(len(value) if isinstance(value, list) else value is not None for value in row.values())
                    raise DataError(f"{table}, line {reader.line_num}: expected {len(reader.fieldnames or [])} values, got {got}")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}; save it as CSV in UTF-8") from error


def _read_split(table: Path, base: Path, *, masks: bool) -> list[Sample]:
    samples: list[Sample] = []
    for line, row in _rows(table, ("object", "split", "label", "image", "mask")):
        split = row["split"].strip()
        if split not in ("train", "test"):
            raise DataError(f"{table}, line {line}: split is {split!r}, expected 'train' or 'test'")
        sample = _sample(row, base, row["object"].strip(), "train" if split == "train" else "test", masks=masks)
        if sample.split == "train" and sample.is_anomalous:
            raise DataError(
                f"{table}, line {line}: {sample.path} is labeled {sample.defect!r} but is in the train split, which may hold good images only"
            )
        samples.append(sample)
    return samples


def _read_annotations(table: Path, base: Path, *, masks: bool) -> list[Sample]:
    rows = sorted((row for _, row in _rows(table, ("image", "label", "mask"))), key=lambda row: row["image"])
    samples: list[Sample] = []
    good_seen = 0
    for row in rows:
        is_good = is_good_name(row["label"])
        good_seen += is_good
        split: Split = "test" if not is_good or good_seen % _TEST_EVERY == 0 else "train"
        samples.append(_sample(row, base, table.parent.name, split, masks=masks))
    return samples


def _path(text: str) -> str:
    return text.strip().replace("\\", "/")  # as Windows writes them


def _sample(row: Mapping[str, str], base: Path, class_name: str, split: Split, *, masks: bool) -> Sample:
    label = row["label"].strip()
    is_anomalous = not is_good_name(label)
    mask = _path(row["mask"])
    return Sample(
        path=base / _path(row["image"]),
        class_name=class_name,
        split=split,
        is_anomalous=is_anomalous,
        defect=label if is_anomalous else None,
        mask_path=base / mask if masks and mask and is_anomalous else None,
        mask_holds_labels=True,
    )
