"""Frames kept as files: the very array of the camera comes back, with what is needed to judge it again."""

import io
import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError
from snl_runtime.images.containers import PNG_START, png_chunks
from snl_runtime.images.integrity import find_damage
from snl_runtime.images.opencv import load_opencv
from snl_runtime.line.records import record_of
from snl_runtime.text import printable, to_json
from snl_runtime.types import AnomalyResult, ColorOrder, Frame

ARCHIVE_SCHEMA = 1
NAME = re.compile(
    r"(?P<stamp>\d{8}T\d{6}\.\d{3}Z)_(?:[A-Za-z0-9_]*_)?(?P<index>\d{6,})_(?P<verdict>PASS|REVIEW|REJECT|ERROR)(?:_\d+)?\.(?:png|npy|jpg)"
)
"""Names that an image folder gives: time of capture in UTC, source, index, verdict, and a number where two were equal."""
_KEYWORD = b"snl-edge"
_HEADER_END = len(PNG_START) + 25
"""Where the first chunk of a PNG, its header, ends."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ArchivedFrame:
    """One file of an archive.

    Attributes:
        path: The file.
        image: The array as the camera gave it: shape, dtype and channel order.
        color: Meaning of its last axis; of a file that does not say so, ``gray``, ``bgr`` or ``bgra`` by its channels.
        product: Product that the frame named; None if it named none, or the file does not say so.
        bit_depth: Bits that a value was read with; None if the file does not say so.
        camera: Name of the camera; empty if the file does not say so.
        record: The record of its verdict without ``latency_ms``; of a file that does not hold it what its name says: ``captured_at``, ``frame_index``
            and ``verdict``.
        is_labeled: Whether the file itself holds all this.
    """

    path: Path
    image: npt.NDArray[Any]
    color: ColorOrder
    product: str | None
    bit_depth: int | None
    camera: str
    record: Mapping[str, Any]
    is_labeled: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What its record is found by, see :func:`record_key`."""
        return record_key(self.record)


def record_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a record from all others of a line: time of capture, frame index and source."""
    return record["captured_at"], record["frame_index"], record.get("source_id")


def encode_frame(frame: Frame, result: AnomalyResult, *, camera: str = "") -> tuple[bytes, str]:
    """Return a frame that has an image on the host as the bytes and the suffix of a file.

    PNG with a text chunk ``snl-edge`` that holds the record; ``.npy``, which has no place for it, where PNG cannot hold the array.
    """
    image: Any = frame.image
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.size == 0 or channels not in (1, 3, 4):
        return _npy_bytes(image), ".npy"
    _, encoded = load_opencv().imencode(".png", np.ascontiguousarray(_swapped(image, frame.color)))
    return _labeled(encoded.tobytes(), _label(frame, result, camera)), ".png"


def read_archived(path: Path) -> ArchivedFrame:
    """Return a frame from its file.

    Raises:
        DataError: If the file cannot be read, is damaged, or neither its name nor its content says what it is.
    """
    shown = printable(str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from error
    label = _read_label(data, shown)
    record = label["record"] if label is not None else _from_name(path.name)
    if record is None:
        raise DataError(f"{shown} was not saved by snl-edge: neither its name nor its content says which frame it is")
    image = _read_npy(data, shown) if path.suffix == ".npy" else _read_png(data, shown)
    if label is None:
        by_channels = {3: "bgr", 4: "bgra"}
        color = by_channels.get(image.shape[2], "gray") if image.ndim == 3 else "gray"
        label = {"color": color, "shape": image.shape, "product": None, "bit_depth": None, "camera": ""}
        is_labeled = False
    else:
        is_labeled = True
    return ArchivedFrame(
        path=path,
        image=_swapped(image, label["color"]).reshape(label["shape"]) if is_labeled else image,
        color=cast(ColorOrder, label["color"]),
        product=label["product"],
        bit_depth=label["bit_depth"],
        camera=label["camera"],
        record=record,
        is_labeled=is_labeled,
    )


def _swapped(image: npt.NDArray[Any], color: str) -> npt.NDArray[Any]:
    """Return the channels in the order of PNG's encoder, or back: its own inverse."""
    channels = image.shape[2] if image.ndim == 3 else 1
    if color == "rgb" and channels == 3:
        return image[:, :, ::-1]
    if color == "rgba" and channels == 4:
        return image[:, :, [2, 1, 0, 3]]
    return image


def _label(frame: Frame, result: AnomalyResult, camera: str) -> str:
    record = record_of(frame, result)
    del record["latency_ms"]  # ends when a record is made; the record itself has the one that counts
    image: Any = frame.image
    label = {"archive": ARCHIVE_SCHEMA, "camera": camera, "color": frame.color, "shape": image.shape, "product": frame.product}
    return to_json({**label, "bit_depth": result.bit_depth, "record": record})


def _labeled(png: bytes, text: str) -> bytes:
    content = b"tEXt" + _KEYWORD + b"\0" + text.encode("ascii")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:_HEADER_END] + chunk + png[_HEADER_END:]


def _read_label(data: bytes, shown: str) -> Any | None:
    if not data.startswith(PNG_START):
        return None
    for chunk in png_chunks(data):
        keyword, _, text = data[chunk.start : chunk.end].partition(b"\0")
        if chunk.kind != b"tEXt" or keyword != _KEYWORD:
            continue
        if data[chunk.end : chunk.end + 4] != struct.pack(">I", zlib.crc32(data[chunk.start - 4 : chunk.end])):
            raise DataError(f"{shown} is damaged or truncated: the record in it has another checksum; it cannot be judged again")
        label = json.loads(text)
        if label["archive"] > ARCHIVE_SCHEMA:
            raise DataError(f"{shown} was saved by a newer snl-edge; use that version or a newer one")
        return label
    return None


def _from_name(name: str) -> dict[str, Any] | None:
    found = NAME.fullmatch(name)
    if found is None:
        return None
    captured = datetime.strptime(found["stamp"], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=timezone.utc)
    captured_at = captured.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"captured_at": captured_at, "frame_index": int(found["index"]), "verdict": found["verdict"]}


def _read_png(data: bytes, shown: str) -> npt.NDArray[Any]:
    damage = find_damage(data)
    if damage is not None:
        raise DataError(f"{shown} {damage}; it cannot be judged again")
    cv2 = load_opencv()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError) as error:
        raise DataError(f"{shown} cannot be decoded ({' '.join(str(error).split())})") from error
    if image is None:
        raise DataError(f"{shown} is no image that can be decoded")
    return np.asarray(image)


def _npy_bytes(image: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, image, allow_pickle=False)
    return file.getvalue()


def _read_npy(data: bytes, shown: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{shown} is no whole array ({error}); it cannot be judged again") from error
