"""What there is to inspect: every image of a folder, an address or a Parquet table as one row, those that cannot be read included."""

import concurrent.futures
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from snl_runtime.errors import ConfigError, DataError
from snl_runtime.fleet.packages import load_package
from snl_runtime.images.formats import HEAD_BYTES
from snl_runtime.images.listing import Listing, display_name, is_junk, list_images, refuse_content
from snl_runtime.line.archived_frames import NAME
from snl_runtime.text import redact_credentials

IMAGE_COLUMN, PRODUCT_COLUMN, TIME_COLUMN = "image", "product", "captured_at"
"""Columns of a Parquet table: encoded images, and optionally the product and the time of capture of each."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_LOOKS_AT_ONCE = 24
"""Objects of a store whose first bytes are read at the same time: each waits for an answer and computes nothing. Arrow keeps 25 connections."""
_opened_stores: dict[str, Any] = {}
"""File systems by what opens them: one keeps its connections, and a new one for every image would begin with a handshake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRow:
    """One image to inspect.

    Attributes:
        file: Path or address of the file that holds it.
        row: Row of a Parquet table, counted from 0; None for an image file.
        row_group: Row group of the table that holds the row; None for an image file.
        size_bytes: Size of the file.
        modified_ns: Time of its last change, nanoseconds since the epoch.
        product: Product that it shows; None if unknown.
        day: Day of capture in UTC, ``YYYY-MM-DD``: from the name of a frame that a station saved, or the table, else the day of the last change.
        fault: Why it cannot be read, None as far as is known.
    """

    file: str
    row: int | None = None
    row_group: int | None = None
    size_bytes: int
    modified_ns: int
    product: str | None
    day: str
    fault: str | None = None

    @property
    def name(self) -> str:
        """What records call it: the file, and the row of a table behind it."""
        return self.file if self.row is None else f"{self.file}#row={self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The rows of an archive, sorted by file and row, and the counts for a person."""

    rows: tuple[ArchiveRow, ...]
    summary: str


def list_archive(data: str, *, product: str | None, product_folders: bool = False, exclude: Sequence[Path] = ()) -> Archive:
    """Return what an archive holds.

    Args:
        data: A folder of images; a Parquet file, or a folder of them, whose name ends in ``.parquet``; or the address of either, ``s3://bucket/...``.
        product: Product of all rows that do not say theirs; None if unknown.
        product_folders: Whether the product of an image is the name of the first folder below ``data``.
        exclude: Folders that the caller writes to.

    Raises:
        DataError: If there is nothing to inspect, or it cannot be listed; the message names it.
    """
    if data.partition("?")[0].rstrip("/").endswith(".parquet"):
        rows = sorted(_table_rows(data, product), key=lambda row: (row.file, row.row or 0))
        summary = f"{redact_credentials(data)}: {len(rows)} rows"
    elif is_address(data):
        rows, summary = _remote_rows(data, product, product_folders)
    else:
        listing = list_images(data, exclude=exclude)
        rows, summary = _folder_rows(listing, product, product_folders), listing.summary()
    if not rows:
        raise DataError(f"{summary}; name a folder with images in it or below it, or a Parquet table")
    return Archive(rows=tuple(rows), summary=summary)


def is_address(data: str) -> bool:
    """Return whether ``data`` names another file system, e.g. ``s3://bucket/folder``."""
    return _ADDRESS.match(data) is not None


def open_file_system(data: str) -> tuple[Any, str]:
    """Return the Arrow file system of a path or an address, and the path in it.

    Raises:
        ConfigError: If the address holds credentials.
        DataError: If Arrow knows no such file system or refuses the address.
    """
    fs = load_package("pyarrow.fs")
    if is_address(data) and "@" in data.partition("://")[2].partition("/")[0]:
        name = redact_credentials(data)
        raise ConfigError(f"{name} holds credentials, which the results would keep; put them where the store's tools look, e.g. AWS_ACCESS_KEY_ID")
    if not is_address(data):
        return fs.LocalFileSystem(), os.path.abspath(data)  # noqa: PTH100 - resolve() would follow links
    try:
        file_system, path = fs.FileSystem.from_uri(data)
    except Exception as error:
        raise DataError(
            f"cannot open {redact_credentials(data)}: {_words(error)}; name it as s3://bucket/folder, with %20 for a space and so on"
        ) from error
    scheme, _, rest = data.partition("://")
    return _opened_stores.setdefault(f"{scheme}://{rest.partition('/')[0]}{_query(data)}", file_system), str(path)


def read_bytes(file: str) -> bytes:
    """Return the bytes of a path or an address.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        if not is_address(file):
            return Path(file).read_bytes()
        file_system, path = open_file_system(file)
        with file_system.open_input_file(path) as opened:
            return bytes(opened.readall())
    except OSError as error:
        raise DataError(f"cannot read {redact_credentials(display_name(file))}: {_words(error)}") from error


def day_of(name: str, modified_ns: int) -> str:
    """Return the day of an image in UTC: of the capture that a station wrote into its name, else of its last change.

    Example:
        >>> day_of("20260131T235959.999Z_top_000012_REJECT.png", 0), day_of("part.png", 86_400_000_000_000)
        ('2026-01-31', '1970-01-02')
    """
    found = NAME.fullmatch(name)
    if found is not None:
        try:
            return datetime.strptime(found["stamp"], _STAMP).date().isoformat()
        except ValueError:
            pass  # digits that are no date
    return datetime.fromtimestamp(modified_ns / 1e9, timezone.utc).date().isoformat()


def _folder_rows(listing: Listing, product: str | None, product_folders: bool) -> list[ArchiveRow]:
    offered = [(path, None) for path in listing.taken] + [(one.path, str(one)) for one in listing.rejected]
    rows = []
    for path, fault in sorted(offered, key=lambda one: one[0]):
        try:
            status = path.stat()
            size_bytes, modified_ns = status.st_size, status.st_mtime_ns
        except OSError:  # a link to nothing, or gone since: reading it says why
            size_bytes, modified_ns = 0, 0
        shown = _product_of(path.relative_to(listing.root).parts, product, product_folders)
        rows.append(
            ArchiveRow(file=str(path), size_bytes=size_bytes, modified_ns=modified_ns, product=shown, day=day_of(path.name, modified_ns), fault=fault)
        )
    return rows


def _product_of(parts: Sequence[str], product: str | None, product_folders: bool) -> str | None:
    return parts[0] if product_folders and len(parts) > 1 else product


def _remote_rows(data: str, product: str | None, product_folders: bool) -> tuple[list[ArchiveRow], str]:
    """List by the rules of folders: by content, hidden files and junk left out."""
    file_system, root = open_file_system(data)
    infos = sorted(_files_below(file_system, root, data), key=lambda info: info.path)
    places = [(info, PurePosixPath(info.path).relative_to(root).parts) for info in infos]
    offered = [(info, parts) for info, parts in places if not any(is_junk(part) for part in parts)]
    with concurrent.futures.ThreadPoolExecutor(_LOOKS_AT_ONCE) as readers:
        faults = list(readers.map(lambda one: _fault_of_object(file_system, one[0]), offered))
    rows = []
    for (info, parts), (is_image, fault) in zip(offered, faults):
        if is_image:
            modified_ns = int(info.mtime_ns or 0)
            shown = _product_of(parts, product, product_folders)
            day = day_of(parts[-1], modified_ns)
            file = _address_of(data, info.path)
            rows.append(ArchiveRow(file=file, size_bytes=int(info.size or 0), modified_ns=modified_ns, product=shown, day=day, fault=fault))
    rejected = sum(row.fault is not None for row in rows)
    taken = f"{len(rows) - rejected} images taken, {rejected} cannot be taken, {len(infos) - len(rows)} files left out"
    return rows, f"{redact_credentials(data)}: {taken}"


def _fault_of_object(file_system: Any, info: Any) -> tuple[bool, str | None]:
    """Return whether an object counts as an image, and why it cannot be read, None as far as is known."""
    try:
        with file_system.open_input_file(info.path) as opened:
            refused = refuse_content(Path(info.path), bytes(opened.read(HEAD_BYTES)))
    except OSError as error:
        return True, f"{info.path} cannot be read: {_words(error)}"
    return (True, None) if refused is None else (refused.is_image, f"{info.path} {refused.reason}")


def _address_of(data: str, path: str) -> str:
    """Return the address of a file below ``data``; in an unquoted name, ``#`` or ``%`` would name another file."""
    scheme = data[: len(data) - len(data.split("://", 1)[1])]
    return f"{scheme}{quote(path)}{_query(data)}"


def _files_below(file_system: Any, root: str, data: str) -> list[Any]:
    fs = load_package("pyarrow.fs")
    try:
        infos = file_system.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise DataError(f"cannot list {redact_credentials(data)}: {_words(error)}; check bucket, folder, network and credentials") from error
    return [info for info in infos if info.type == fs.FileType.File]


def _query(data: str) -> str:
    # Region, endpoint and the like belong to every address of this store.
    _, mark, query = data.partition("?")
    return mark + query


def _table_rows(data: str, product: str | None) -> Iterator[ArchiveRow]:
    file_system, root = open_file_system(data)
    fs = load_package("pyarrow.fs")
    try:
        info = file_system.get_file_info(root)
    except OSError as error:
        raise DataError(f"cannot look at {redact_credentials(data)}: {_words(error)}; check bucket, network and credentials") from error
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{redact_credentials(data)} does not exist; name a Parquet table or a folder of images")
    infos = [info] if info.type == fs.FileType.File else [one for one in _files_below(file_system, root, data) if one.path.endswith(".parquet")]
    for one in infos:
        file = data if one.path == root else _address_of(data, one.path) if is_address(data) else one.path
        yield from _rows_of_table(file_system, one, file, product)


def _rows_of_table(file_system: Any, info: Any, file: str, product: str | None) -> Iterator[ArchiveRow]:
    parquet = load_package("pyarrow.parquet")
    modified_ns, size_bytes = int(info.mtime_ns or 0), int(info.size or 0)
    name = redact_credentials(display_name(file))
    try:
        with parquet.ParquetFile(file_system.open_input_file(info.path)) as table:
            names = table.schema_arrow.names
            if IMAGE_COLUMN not in names:
                raise DataError(f"{name} has the columns {', '.join(names)}; a table of images needs the column {IMAGE_COLUMN!r} with encoded images")
            row = 0
            for group in range(table.num_row_groups):
                wanted = [column for column in (PRODUCT_COLUMN, TIME_COLUMN) if column in names]
                count = table.metadata.row_group(group).num_rows
                columns = table.read_row_group(group, columns=wanted).to_pydict() if wanted else {}
                for at in range(count):
                    shown = columns[PRODUCT_COLUMN][at] if PRODUCT_COLUMN in columns else None
                    captured = columns[TIME_COLUMN][at] if TIME_COLUMN in columns else None
                    yield ArchiveRow(
                        file=file,
                        row=row,
                        row_group=group,
                        size_bytes=size_bytes,
                        modified_ns=modified_ns,
                        product=product if shown is None else str(shown),
                        day=day_of("", modified_ns) if captured is None else _captured_day(captured, f"{name} row {row}"),
                    )
                    row += 1
    except (OSError, load_package("pyarrow").ArrowException) as error:
        raise DataError(f"cannot read {name} as a Parquet table: {_words(error)}; copy it again or remove it") from error


def _captured_day(value: object, where: str) -> str:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError as error:
        raise DataError(f"{where}: {TIME_COLUMN} must be a time such as 2026-11-28T06:53:26Z, got {value!r}") from error
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
    return aware.astimezone(timezone.utc).date().isoformat()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
