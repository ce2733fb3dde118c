"""Result tables as CSV: fixed columns, one row per key, in a fixed order, so that a new measurement changes its own lines only."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from snl_runtime.errors import DataError
from snl_runtime.files import atomic_write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
"""Where committed results lie, one file per protocol."""
Row: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a table.

    Attributes:
        key: Columns that tell rows apart.
        values: What was measured, and where it comes from.
        is_sorted: Whether rows are sorted by key; otherwise they keep their order and new ones go to the end.
    """

    key: tuple[str, ...]
    values: tuple[str, ...]
    is_sorted: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns in order."""
        return (*self.key, *self.values)


ORIGIN = ("commit", "date")
"""Commits that trained and measured, separated by spaces, and the day (UTC) on which a row was measured."""

SCORING = Layout(key=("model", "seed", "scoring", "class", "device"), values=("image_auroc", "pixel_auroc", *ORIGIN))
"""Of ``benchmarks.accuracy.scoring_ablation``; ``model`` is the checkpoint's name without its seed."""
COMBINATIONS = Layout(key=("protocol", *SCORING.key), values=SCORING.values)
"""Of ``benchmarks.accuracy.combinations``; ``scoring`` is how the maps of student and memory are put together."""
CONTAMINATION = Layout(
    key=("protocol", "variant", "bad_percent", "images_per_center", "seed", "class", "device"),
    values=("good", "bad", "image_auroc", "pixel_auroc", "moved_auroc", "moved_auroc_without", *ORIGIN),
)
"""Of ``benchmarks.accuracy.contamination``; ``good`` and ``bad`` count training images, ``moved_auroc`` and ``moved_auroc_without`` are the image
AUROC of the bad ones among them, by the memory that was fitted with them and by the one without any. A center may stand for one image; rows with
``images_per_center`` 2 are of the commit in them, when a memory could ask for two."""
MIXTURES = Layout(key=("model", "seed", "kind", "of", "device"), values=("auroc", *ORIGIN))
"""Of ``benchmarks.accuracy.interference``; ``of`` is a pair of classes, or the class that is pasted on."""
LINE = Layout(
    key=("product", "normalization_map"),
    values=("pass_threshold", "synthetic_defects_detected", "good", "good_not_passed", "bad", "bad_passed", "device", *ORIGIN),
)
"""Of ``benchmarks.realmix_line``; parts of the test set, ``normalization_map`` is yes or no."""
INT8 = Layout(
    key=("int8_parts", "product"),
    values=(
        "images",
        *("correlation_lowest", "correlation_median", "largest_change_of_peak", "image_auroc_float", "image_auroc_int8"),
        *("flips", "flips_outside_10_percent_band", "device", *ORIGIN),
    ),
    is_sorted=False,
)
"""Of ``benchmarks.int8_gate``; the product ``all`` stands for all of them."""
LATENCY = Layout(key=("stage", "frame"), values=("milliseconds", "megabytes", "percent_of_peak_bandwidth", "device", *ORIGIN), is_sorted=False)
"""Of ``benchmarks.speed.gpu``: kernels on frames that are on the device already."""
AIMS = Layout(key=("what", "device"), values=("p50", "p99", "unit", "aim", "percent_of_aim", "note", "versions", *ORIGIN), is_sorted=False)
"""Of ``benchmarks.speed.gpu_aims``; ``percent_of_aim`` is of p50, and of p99 where that has an aim too."""
KINDS = {"mixup": "mixup, image AUROC", "paste": "paste, image AUROC", "paste_pixel": "paste, pixel AUROC"}


def read_rows(path: Path, layout: Layout) -> list[dict[str, str]]:
    """Return the rows of a table; none if there is no file.

    Raises:
        DataError: If the file cannot be read, or has other columns or two rows of one key.
    """
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path} ({error}); restore it from git") from error
    if tuple(reader.fieldnames or ()) != layout.columns:
        raise DataError(f"{path} has the columns {', '.join(reader.fieldnames or ())}, expected {', '.join(layout.columns)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(layout.columns) or None in row.values():
            raise DataError(f"{path}, line {number} does not have {len(layout.columns)} fields; restore it from git")
    keys = [_key(row, layout) for row in rows]
    repeated = next((key for number, key in enumerate(keys) if key in keys[:number]), None) if len(set(keys)) < len(keys) else None
    if repeated is not None:
        raise DataError(f"{path} has two rows of {', '.join(repeated)}; remove one")
    return rows


def merge_rows(path: Path, layout: Layout, rows: Iterable[Row]) -> int:
    """Add rows to a table, in place of those with the same key, and return how many were replaced by other values.

    Raises:
        DataError: If the file that is there is no such table.
        SinkError: If it cannot be written.
    """
    before = {_key(row, layout): row for row in read_rows(path, layout)}
    new = {_key(row, layout): {column: row[column] for column in layout.columns} for row in rows}
    replaced = sum(key in before and before[key] != row for key, row in new.items())
    merged = {**before, **new}
    text = io.StringIO()
    writer = csv.DictWriter(text, layout.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged[key] for key in (sorted(merged) if layout.is_sorted else merged))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text.getvalue())
    return replaced


def number_text(value: float | None) -> str:
    """Return a figure as tables have it, empty for None.

    >>> number_text(0.968123452)
    '0.96812345'
    """
    return "" if value is None else f"{value:.8f}"


def joined(values: Sequence[str]) -> str:
    """Return different values in order of appearance as one field."""
    return " ".join(dict.fromkeys(values))


def _key(row: Row, layout: Layout) -> tuple[str, ...]:
    return tuple(row[column] for column in layout.key)
