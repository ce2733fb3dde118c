"""The parts that image files are made of, without decoding any: chunks, boxes, segments, directories.

Every walk yields parts in their order and may yield a last one that ends beyond the data: then the file is truncated.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PNG_START = b"\x89PNG\r\n\x1a\n"
_TIFF_STARTS = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
_TIFF_VALUES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_TIFF_TAGS = frozenset({254, 255, 273, 279, 324, 325, 0xB001, 0xB002})
_GIF_IMAGE, _GIF_EXTENSION = 0x2C, 0x21


class Part(NamedTuple):
    """A part of a file: its kind and where its content starts and ends."""

    kind: bytes
    start: int
    end: int


def png_chunks(data: bytes) -> Iterator[Part]:
    """Yield the chunks of a PNG; each ends before its checksum of 4 bytes."""
    position = len(PNG_START)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield Part(kind, position + 8, position + 8 + length)
        position += 12 + length


def riff_chunks(data: bytes) -> Iterator[Part]:
    """Yield the chunks inside a RIFF file, such as a WebP."""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        yield Part(kind, position + 8, position + 8 + length)
        position += 8 + length + length % 2


def iso_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Part]:
    """Yield the boxes of a JPEG 2000 or AVIF file, or those inside one of its boxes."""
    limit = len(data) if end is None else min(end, len(data))
    while start + 8 <= limit:
        length, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if length == 1 and start + 16 <= limit:
            (length,) = struct.unpack_from(">Q", data, content)
            content += 8
        elif length == 0:
            length = limit - start
        if length < content - start:  # no box can be so short
            yield Part(kind, content, limit + 1)
            return
        yield Part(kind, content, start + length)
        start += length


def gif_blocks(data: bytes) -> Iterator[Part]:
    """Yield the blocks of a GIF: ``,`` for an image, ``!`` for an extension, ``;`` for the end of the file."""
    if len(data) < 13:
        return
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while position < len(data):
        kind, start = data[position], position
        position += 1
        if kind == _GIF_IMAGE and position + 9 <= len(data):
            flags = data[position + 8]
            position += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == _GIF_EXTENSION:
            position += 1
        else:
            yield Part(bytes([kind]), start, position)
            return
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
        yield Part(bytes([kind]), start, position)


def jpeg_segments(data: bytes, start: int = 2) -> Iterator[Part]:
    """Yield the segments of a JPEG, or of the main header of a JPEG 2000 codestream, up to the first whose pixels follow."""
    while start + 4 <= len(data) and data[start] == 0xFF:
        if data[start + 1] == 0xFF:  # filling before a marker
            start += 1
            continue
        kind, length = data[start + 1 : start + 2], int.from_bytes(data[start + 2 : start + 4], "big")
        yield Part(kind, start + 4, start + 2 + length)
        if kind in (b"\xda", b"\xd9", b"\x90") or length < 2:
            return
        start += 2 + length


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """One of the directories of a TIFF, each of which describes an image.

    Attributes:
        offset: Where it lies.
        values: Tag -> values, of those tags that tell how many images there are and where their pixels lie; None if it lies outside the file.
    """

    offset: int
    values: dict[int, tuple[int, ...]] | None

    @property
    def is_reduced(self) -> bool:
        """Whether it describes a thumbnail or a transparency mask and no image of its own."""
        values = self.values or {}
        return bool((values.get(254) or (0,))[0] & 0b101) or (values.get(255) or (1,))[0] == 2


class TiffFile:
    """The directories of a TIFF or BigTIFF.

    Args:
        data: The file.
        base: Where its offsets count from, for a TIFF inside another file.
    """

    def __init__(self, data: bytes, base: int = 0) -> None:
        self._data, self._base = data, base
        self._order, self._is_big = _TIFF_STARTS.get(bytes(data[base : base + 4]), ("<", False))

    def directories(self) -> list[TiffDirectory]:
        """Return the directories in their order; one that is cut off, or leads back to an earlier one, is the last."""
        found: list[TiffDirectory] = []
        seen: set[int] = set()
        try:
            position = self._offset_at(8 if self._is_big else 4)
            while position:
                if position in seen:
                    return [*found, TiffDirectory(position, None)]
                seen.add(position)
                found.append(TiffDirectory(position, None))
                values, after = self._read(position)
                found[-1] = TiffDirectory(position, values)
                position = self._offset_at(after)
        except struct.error:
            if not found or found[-1].values is not None:
                found.append(TiffDirectory(len(self._data), None))
        return found

    def starting_with(self, directory: TiffDirectory) -> bytes:
        """Return the file with another directory as its first, so that a decoder sees that image."""
        changed = bytearray(self._data)
        struct.pack_into(self._order + ("Q" if self._is_big else "I"), changed, 8 if self._is_big else 4, directory.offset)
        return bytes(changed)

    def _offset_at(self, position: int) -> int:
        (offset,) = struct.unpack_from(self._order + ("Q" if self._is_big else "I"), self._data, self._base + position)
        if offset > len(self._data):  # of 8 bytes, it may be more than any index
            raise struct.error("an offset beyond the file")
        return int(offset)

    def _read(self, position: int) -> tuple[dict[int, tuple[int, ...]], int]:
        entry, width, counter = ("HHQ", 8, "Q") if self._is_big else ("HHI", 4, "H")
        (count,) = struct.unpack_from(self._order + counter, self._data, self._base + position)
        position += struct.calcsize(self._order + counter)
        size = struct.calcsize(self._order + entry) + width
        if count * size > len(self._data):
            raise struct.error("more entries than bytes")
        values: dict[int, tuple[int, ...]] = {}
        for at in range(position, position + count * size, size):
            tag, kind, length = struct.unpack_from(self._order + entry, self._data, self._base + at)
            if tag in _TIFF_TAGS:
                values[tag] = self._values(at + size - width, kind, length, width)
        return values, position + count * size

    def _values(self, position: int, kind: int, count: int, width: int) -> tuple[int, ...]:
        is_raw = kind == 7  # undefined bytes, as the entries of a multi-image index are
        letter = "B" if is_raw else _TIFF_VALUES.get(kind)
        if letter is None:
            return ()
        if count * struct.calcsize(letter) > width:
            position = self._offset_at(position)
        if count > len(self._data):
            raise struct.error("more values than bytes")
        return struct.unpack_from(f"{self._order}{count}{letter}", self._data, self._base + position)
