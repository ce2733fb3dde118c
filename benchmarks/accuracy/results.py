"""From the JSON record of a run to rows of ``benchmarks/results/<protocol>.csv``: one row per class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy.protocol import load_protocol
from benchmarks.accuracy.records import read_records
from benchmarks.accuracy.tables import ORIGIN, Layout, joined, merge_rows, number_text, read_rows
from snl_runtime.errors import ConfigError, DataError

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
ACCURACY = Layout(
    key=("variant", "source", "setting", "image_size", "class_set", "device", "seed", "class"),
    values=("good", "anomalous", *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")), "test_images", *ORIGIN),
)
"""``source`` is the package that was measured, ``good`` and ``anomalous`` count test images, ``_low`` and ``_high`` end the 95 % bootstrap interval
over test images, ``test_images`` begins the hash of the class's test images. Pixel figures are empty without masks, all figures where a training
diverged."""


def export(out: Path, results: Path, *, only: str | None = None) -> list[str]:
    """Add the finished runs below ``out``, of all protocols or of one, to the tables in ``results`` and return a line for each protocol.

    Raises:
        ConfigError: If there is no run, or one was measured on other test images than its table.
        DataError: If a record or a table cannot be read.
        SinkError: If a table cannot be written.
    """
    folders = [folder for folder in sorted(out.iterdir()) if folder.is_dir() and only in (None, folder.name)] if out.is_dir() else []
    found = {folder.name: read_records(folder) for folder in folders}
    if not any(found.values()):
        raise ConfigError(f"there are no finished runs in {out}; run a protocol first, or name their folder with --out")
    lines = []
    for name, records in found.items():
        if records:
            load_protocol(name)  # a table that no protocol explains could not be shown
            path = results / f"{name}.csv"
            rows = [row for record in records for row in rows_of(record)]
            check_test_images(path, rows)
            replaced = merge_rows(path, ACCURACY, rows)
            lines.append(f"{path}: {len(rows)} rows of {len(records)} runs" + (f", {replaced} in place of other figures" if replaced else ""))
    return lines


def rows_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each class of a run.

    Raises:
        DataError: If the record lacks something.
    """
    try:
        return _rows_of(record)
    except (KeyError, TypeError) as error:
        what = f"{record['variant']}, seed {record['seed']}, of {record['protocol']}"
        raise DataError(f"the record of {what} lacks {error}; run it again with this version") from error


def _rows_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    pieces = [*record["slices"], record["provenance"]]
    common = {
        **{name: str(record[name]) for name in ("variant", "source", "setting", "image_size", "class_set", "seed")},
        "device": " and ".join(dict.fromkeys(piece["device"] for piece in pieces)),
        "commit": joined([piece["commit"] for piece in pieces]),
        "date": record["provenance"]["finished_at"][:10],
    }
    evaluation = record.get("evaluation") or {"classes": {}}
    return [
        {**common, "class": name, "test_images": record["data"]["test_sha256"][name][:12], **_figures(evaluation["classes"].get(name))}
        for name in record["classes"]
    ]


def check_test_images(path: Path, rows: list[dict[str, str]]) -> None:
    """Raise where figures of different images would stand in one column.

    Raises:
        ConfigError: If so.
    """
    seen: dict[str, str] = {}
    for row in [*read_rows(path, ACCURACY), *rows]:
        if seen.setdefault(row["class"], row["test_images"]) != row["test_images"]:
            raise ConfigError(f"runs for {path} were measured on different test images of class {row['class']!r}; they cannot stand in one table")


def _figures(group: Mapping[str, Any] | None) -> dict[str, str]:
    if group is None:
        return dict.fromkeys(("good", "anomalous", *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high"))), "")
    found = {"good": str(group["good"]), "anomalous": str(group["anomalous"])}
    for metric in METRICS:
        measure = group["metrics"][metric]
        low, high = measure["interval"] or (None, None)
        found |= {metric: number_text(measure["value"]), f"{metric}_low": number_text(low), f"{metric}_high": number_text(high)}
    return found
