"""The folder of results: a plan of rows and parts, one Parquet file per part, and ``_SUCCESS`` only when every part is whole.

    out/_run.json                                   what judged: model, backend, threads, thresholds
    out/_plan/0001.jsonl                            which row belongs to which part; archives that grew add files
    out/product=bottle/day=2026-11-28/part-000000.parquet
    out/_SUCCESS

A part is written beside its place and renamed into it, and its name follows from the plan, so a part that is written twice is there once. Readers of
Parquet pass over names that begin with ``_``.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snl_runtime.errors import ConfigError, DataError
from snl_runtime.files import atomic_path, atomic_write_text
from snl_runtime.fleet.archive import ArchiveRow
from snl_runtime.fleet.packages import load_package
from snl_runtime.text import printable, to_json

SUCCESS, RUN, PLAN, DEATHS = "_SUCCESS", "_run.json", "_plan", "_deaths"
RESULT_SCHEMA = 1
NO_PRODUCT = "__HIVE_DEFAULT_PARTITION__"
"""What readers of partitioned Parquet take for null."""
_IDENTITY = b"snl.part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that are judged, written and counted together; all of one product and one day.

    Attributes:
        number: Counted from 0 over the whole folder.
        product: Partition; None if no product is named and several are calibrated.
        day: Partition, ``YYYY-MM-DD``.
        ids: Id of each row, in the order of ``rows``.
        rows: What to judge.
    """

    number: int
    product: str | None
    day: str
    ids: tuple[int, ...]
    rows: tuple[ArchiveRow, ...]

    def path(self, out: Path) -> Path:
        """Return where its results lie."""
        product = NO_PRODUCT if self.product is None else quote(self.product, safe="")
        return out / f"product={product}" / f"day={self.day}" / f"part-{self.number:06d}.parquet"

    def identity(self, model_sha256: str) -> bytes:
        """Return what its file carries to say which rows it holds and what judged them."""
        rows = [[row_id, printable(row.file), row.row, row.size_bytes, row.modified_ns] for row_id, row in zip(self.ids, self.rows)]
        return hashlib.sha256(to_json([model_sha256, rows]).encode("ascii")).hexdigest().encode("ascii")

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values; file names that are not UTF-8 survive."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Part":
        """Return the part that :meth:`to_plain` described."""
        rows = tuple(ArchiveRow(**row) for row in plain["rows"])
        return cls(**{**plain, "ids": tuple(plain["ids"]), "rows": rows})


def plan_parts(rows: Sequence[ArchiveRow], *, part_rows: int, only_product: str | None, first_id: int = 0, first_part: int = 0) -> list[Part]:
    """Return the rows in parts of at most ``part_rows``, each of one product, one day and, of a table, one row group.

    Args:
        rows: In the order of their ids.
        part_rows: Most rows of a part.
        only_product: Product that rows which name none are judged as, where a single one is calibrated.
        first_id: Id of the first row.
        first_part: Number of the first part.
    """
    groups: dict[tuple[str | None, str, str, int | None], list[tuple[int, ArchiveRow]]] = {}
    for row_id, row in enumerate(rows, first_id):
        key = (row.product or only_product, row.day, row.file if row.row is not None else "", row.row_group)
        groups.setdefault(key, []).append((row_id, row))
    parts: list[Part] = []
    for (product, day, _, _), members in groups.items():
        for begin in range(0, len(members), part_rows):
            chunk = members[begin : begin + part_rows]
            ids, chosen = tuple(row_id for row_id, _ in chunk), tuple(row for _, row in chunk)
            parts.append(Part(number=first_part + len(parts), product=product, day=day, ids=ids, rows=chosen))
    return parts


def write_part(out: Path, part: Part, records: Sequence[Mapping[str, Any]], model_sha256: str, *, maps: bool = False) -> None:
    """Write the results of a part; whoever looks finds all of them or none.

    Args:
        out: Folder of the results.
        part: Which rows.
        records: One for each, in their order.
        model_sha256: What judged them.
        maps: Whether each record has a ``map`` (:func:`snl_runtime.fleet.maps.pack_map`), which becomes a column.

    Raises:
        SinkError: If they cannot be written.
    """
    pyarrow, parquet = load_package("pyarrow"), load_package("pyarrow.parquet")
    recorded = (*_RECORDED, *(("map",) if maps else ()))
    columns = [
        {"row_id": row_id, "file": printable(row.file), "row": row.row, **{name: record[name] for name in recorded}}
        for row_id, row, record in zip(part.ids, part.rows, records, strict=True)
    ]
    schema = _result_schema(maps=maps).with_metadata({_IDENTITY: part.identity(model_sha256)})
    table = pyarrow.Table.from_pylist(columns, schema=schema)
    target = part.path(out)
    with contextlib.suppress(FileExistsError):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        parquet.write_table(table, temporary)


def is_whole(out: Path, part: Part, model_sha256: str) -> bool:
    """Return whether the results of a part lie there, all of them, of these rows and of this model."""
    pyarrow, parquet = load_package("pyarrow"), load_package("pyarrow.parquet")
    try:
        with parquet.ParquetFile(part.path(out)) as file:
            carried = (file.schema_arrow.metadata or {}).get(_IDENTITY)
            return bool(carried == part.identity(model_sha256) and file.metadata.num_rows == len(part.rows))
    except (OSError, pyarrow.ArrowException):
        return False


def part_verdicts(out: Path, part: Part) -> list[tuple[str, str]]:
    """Return verdict and reason code of each row of a whole part."""
    table = load_package("pyarrow.parquet").ParquetFile(part.path(out)).read(columns=["verdict", "reason_code"])
    return list(zip(table["verdict"].to_pylist(), table["reason_code"].to_pylist()))


def read_plan(out: Path) -> list[Part]:
    """Return the parts that were planned so far; none in a new folder.

    Raises:
        DataError: If a file of the plan cannot be read.
    """
    parts: list[Part] = []
    for file in sorted((out / PLAN).glob("[0-9]*.jsonl")):
        try:
            parts += [Part.from_plain(json.loads(line)) for line in file.read_text(encoding="ascii").splitlines()]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} cannot be read ({error}); name another folder with --out") from error
    return parts


def extend_plan(out: Path, parts: Iterable[Part]) -> None:
    """Add parts to the plan, all of them or none.

    Raises:
        SinkError: If they cannot be written.
    """
    folder = out / PLAN
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob("[0-9]*.jsonl"))) + 1
    # json.dumps and not to_json: names that are not UTF-8 keep their bytes as surrogates.
    atomic_write_text(folder / f"{number:04d}.jsonl", "".join(json.dumps(part.to_plain()) + "\n" for part in parts))


def read_run(out: Path) -> dict[str, Any] | None:
    """Return what judges in this folder; None in a new one.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        found = json.loads((out / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{out / RUN} cannot be read ({error}); name another folder with --out") from error
    if not isinstance(found, dict) or found.get("schema") != RESULT_SCHEMA:
        raise DataError(f"{out / RUN} is not of schema {RESULT_SCHEMA}; name another folder with --out")
    return found


def require_same_run(out: Path, run: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that something else began.

    Raises:
        ConfigError: Naming the first difference.
    """
    before = read_run(out)
    if before is None:
        return
    for key, value in json.loads(json.dumps(run)).items():
        if before.get(key) != value:
            shown = "the decisions of the manifest changed" if key == "decisions" else f"{key} was {before.get(key)} and is now {value}"
            raise ConfigError(f"{out} holds results of another run: {shown}; name another folder with --out")


def begin_run(out: Path, run: Mapping[str, Any]) -> None:
    """Write down what judges in a new folder; do nothing in one that was begun.

    Raises:
        SinkError: If it cannot be written.
    """
    if read_run(out) is None:
        atomic_write_text(out / RUN, json.dumps(run, indent=1) + "\n")


def mark_success(out: Path, parts: Sequence[Part], model_sha256: str) -> None:
    """Write ``_SUCCESS`` after looking at every part once more.

    Raises:
        DataError: If a part is not whole.
        SinkError: If it cannot be written.
    """
    missing = [part.number for part in parts if not is_whole(out, part, model_sha256)]
    if missing:
        raise DataError(f"{len(missing)} parts of {out} are not whole, the first is part {missing[0]}; run the same command again")
    remove_leftovers(out)
    counts = {"schema": RESULT_SCHEMA, "rows": sum(len(part.rows) for part in parts), "parts": len(parts), "model_sha256": model_sha256}
    atomic_write_text(out / SUCCESS, to_json(counts) + "\n")


def remove_leftovers(out: Path) -> None:
    """Remove what killed workers left: files half written, and what they were at when they died."""
    for file in (out / DEATHS).glob("part-*.json"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none
        (out / DEATHS).rmdir()
    for file in out.glob("product=*/day=*/.part-*.parquet"):
        file.unlink(missing_ok=True)


def read_results(out: Path, columns: Sequence[str], *, row_ids: Sequence[int] | None = None) -> Any:
    """Return the results of a whole inspection as an Arrow table, with the partitions ``product`` and ``day`` as columns.

    Args:
        out: Folder of the results.
        columns: Which to read besides.
        row_ids: Rows to return; None for all.

    Raises:
        DataError: If the inspection is not finished, or holds other rows than it says.
    """
    dataset = load_package("pyarrow.dataset")
    pyarrow = load_package("pyarrow")
    try:
        success = json.loads((out / SUCCESS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{out} has no {SUCCESS}: the inspection is not finished; run its snl-inspect command again") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{out / SUCCESS} cannot be read: {error}") from error
    parts = read_plan(out)
    schema = pyarrow.schema([("product", pyarrow.string()), ("day", pyarrow.string())])
    files = [str(part.path(out)) for part in parts]
    try:
        partitioning = dataset.partitioning(schema, flavor="hive")
        found = dataset.dataset(files, format="parquet", partitioning=partitioning, partition_base_dir=str(out))
        table = found.to_table(columns=[*columns, "product", "day"])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"the results in {out} cannot be read: {' '.join(str(error).split())}") from error
    if table.num_rows != success.get("rows") or len(parts) != success.get("parts"):
        raise DataError(
            f"{out} holds {table.num_rows} rows in {len(parts)} parts, {SUCCESS} says {success.get('rows')} in {success.get('parts')}; inspect again"
        )
    return table if row_ids is None else table.filter(load_package("pyarrow.compute").is_in(table["row_id"], pyarrow.array(row_ids, pyarrow.int64())))


_RECORDED = ("verdict", "reason_code", "reason", "score", "threshold", "reject_threshold", "ignored_share", "regions", "model_sha256")
"""Fields of a record that a row keeps as they are."""


def _result_schema(*, maps: bool) -> Any:
    pyarrow = load_package("pyarrow")
    text, number = pyarrow.string(), pyarrow.float64()
    region = pyarrow.struct([("box_xyxy", pyarrow.list_(pyarrow.int32())), ("score", number), ("area_px", pyarrow.int64()), ("area_mm2", number)])
    fields = [("row_id", pyarrow.int64()), ("file", text), ("row", pyarrow.int64()), ("verdict", text), ("reason_code", text), ("reason", text)]
    fields += [(name, number) for name in ("score", "threshold", "reject_threshold", "ignored_share")]
    fields += [("regions", pyarrow.list_(region)), ("model_sha256", text)]
    if maps:
        count = pyarrow.int32()
        stored = [("height", count), ("width", count), ("roi_xyxy", pyarrow.list_(count)), ("cells", pyarrow.binary()), ("ignored", pyarrow.binary())]
        fields += [("map", pyarrow.struct(stored))]
    return pyarrow.schema(fields)
