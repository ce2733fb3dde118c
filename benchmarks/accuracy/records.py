"""One JSON file per run, written whole or not at all.

``<out>/<protocol>/<run>.json`` exists once a run is measured. Beside it lie the checkpoint, the training's own state and log, and
``<run>.slices.json``: the pieces that the training was done in, each with its commit, device and versions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.protocol import Run
from snl_runtime.errors import DataError
from snl_runtime.files import atomic_write_text

SCHEMA = 1
_SLICES = ".slices.json"
_REQUIRED = frozenset({"record", "protocol", "variant", "setting", "class_set", "classes", "image_size", "seed", "source", "provenance", "slices"})


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where the files of one run lie."""

    folder: Path
    name: str

    @property
    def record(self) -> Path:
        """The result."""
        return self.folder / f"{self.name}.json"

    @property
    def checkpoint(self) -> Path:
        """The trained model."""
        return self.folder / f"{self.name}.pt"

    @property
    def slices(self) -> Path:
        """The pieces of the training."""
        return self.folder / f"{self.name}{_SLICES}"

    @property
    def log(self) -> Path:
        """Progress of a run in a process of its own."""
        return self.folder / f"{self.name}.log"


def run_files(out: Path, run: Run) -> RunFiles:
    """Return where the files of a run lie below ``out``."""
    return RunFiles(out / run.protocol, run.name)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write plain values atomically as strict JSON.

    Raises:
        SinkError: If the file cannot be written.
    """
    atomic_write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Return what ``write_record`` wrote.

    Raises:
        DataError: If the file is no record of this benchmark.
    """
    record = _read_json(path)
    missing = sorted(_REQUIRED - record.keys())
    if missing or record["record"] != SCHEMA:
        why = f"it has no {missing[0]!r}" if missing else f"it has schema {record['record']!r}, expected {SCHEMA}"
        raise DataError(f"{path} is not a result of this benchmark ({why}); remove it, or give another --out")
    return record


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all results in a folder, sorted by file name; none if there is no folder.

    Raises:
        DataError: If a file is no record of this benchmark.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.endswith(_SLICES) and not path.name.startswith(".")]
    return [read_record(path) for path in paths]


def read_slices(path: Path) -> list[dict[str, Any]]:
    """Return the pieces of a training so far; none if it has not begun."""
    return list(_read_json(path)["slices"]) if path.exists() else []


def write_slices(path: Path, slices: Sequence[Mapping[str, Any]]) -> None:
    """Write the pieces of a training atomically."""
    write_record(path, {"slices": list(slices)})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}); remove it and run again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a result of this benchmark; remove it, or give another --out")
    return content
