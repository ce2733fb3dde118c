"""Is an image file whole? OpenCV fills the missing part of a truncated file with gray and reports success, so the bytes are checked first."""

import re
import struct
import zlib

from snl_runtime.images.containers import Part, TiffFile, gif_blocks, iso_boxes, jpeg_segments, png_chunks
from snl_runtime.images.formats import find_format
from snl_runtime.images.pages import pnm_end

_JPEG_END_MARKER = 0xD9
_JPEG_SCAN_MARKER = 0xDA
# In the entropy-coded part FF is followed by 00 (a stuffed byte), by D0 to D7 (a restart) or by FF (filling); anything else ends the scan.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TIFF_OFFSET_TAGS = {273: 279, 324: 325}
"""Tag that lists where strips or tiles start -> tag that lists their sizes."""
_PIXEL_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
"""Chunks of an animated PNG that hold pixels although their names say that a decoder may pass them over."""


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with a file's bytes as the end of a sentence about the file, None if nothing was found.

    Truncation is found in every format but AVIF where its pixels reach to the end by declaration, and any change of a PNG. A JPEG whose middle was
    altered is not: the format has no checksum. Of a file of several images the first is looked at, see :mod:`snl_runtime.images.pages`.
    """
    if not data:
        return "is empty (0 bytes)"
    if data[:2] == b"\xff\xd8":
        return _find_jpeg_damage(data)
    if data[:2] == b"BM":
        return _find_bmp_damage(data)
    find = _FINDERS.get(find_format(data) or "")
    return None if find is None else find(data)


def _missing_bytes(data: bytes, expected: int) -> str | None:
    if len(data) >= expected:
        return None
    return f"is truncated: it has {len(data)} of at least {expected} bytes"


def _find_jpeg_damage(data: bytes) -> str | None:
    """Walk the segments: an end marker inside an embedded preview does not count, nor do bytes after the image's own end."""
    truncated = f"is truncated: the JPEG of {len(data)} bytes has no end marker"
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            return f"is damaged: there is no JPEG marker at byte {position}"
        marker = data[position + 1]
        if marker == 0xFF:  # filling before a marker
            position += 1
            continue
        if marker == _JPEG_END_MARKER:
            return None
        position += 2
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without content
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if length < 2:
            return truncated
        position += length
        if marker == _JPEG_SCAN_MARKER:
            scan_end = _JPEG_SCAN_END.search(data, position)
            if scan_end is None:
                return truncated
            position = scan_end.start()
    return truncated


def _find_png_damage(data: bytes) -> str | None:
    for chunk in png_chunks(data):
        if chunk.end + 4 > len(data):
            break
        has_pixels = chunk.kind[:1].isupper() or chunk.kind in _PIXEL_CHUNKS
        checksum = int.from_bytes(data[chunk.end : chunk.end + 4], "big")
        if has_pixels and zlib.crc32(memoryview(data)[chunk.start - 4 : chunk.end]) != checksum:
            return f"is damaged: the checksum of its PNG chunk at byte {chunk.start - 8} is wrong"
        if chunk.kind == b"IEND":
            return None
    return f"is truncated: the PNG of {len(data)} bytes has no end chunk"


def _find_bmp_damage(data: bytes) -> str | None:
    if len(data) < 26:
        return _missing_bytes(data, 54)
    pixel_offset, header_bytes = struct.unpack_from("<II", data, 10)
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return _missing_bytes(data, pixel_offset + (width * bits + 31) // 32 * 4 * height)
    if header_bytes < 40:
        return None
    if len(data) < 54:
        return _missing_bytes(data, 54)
    width, height, _, bits, compression, pixel_bytes = struct.unpack_from("<iiHHII", data, 18)
    if compression in (0, 3):  # run lengths: the size is not known beforehand
        pixel_bytes = (abs(width) * bits + 31) // 32 * 4 * abs(height)
    return _missing_bytes(data, pixel_offset + pixel_bytes)


def _find_tiff_damage(data: bytes) -> str | None:
    """Check that the strips or tiles of the first directory lie inside the file."""
    directories = TiffFile(data).directories()
    values = directories[0].values if directories else None
    if values is None:
        return f"is truncated: the TIFF of {len(data)} bytes ends inside its directory"
    for offsets_tag, sizes_tag in _TIFF_OFFSET_TAGS.items():
        offsets = values.get(offsets_tag, ())
        sizes = values.get(sizes_tag, (1,) * len(offsets))
        ends = [start + size for start, size in zip(offsets, sizes, strict=False)]
        if ends and max(ends) > len(data):
            return _missing_bytes(data, max(ends))
    return None


def _find_webp_damage(data: bytes) -> str | None:
    return _missing_bytes(data, 8 + int.from_bytes(data[4:8], "little"))


def _find_gif_damage(data: bytes) -> str | None:
    end = Part(b"", 0, 0)
    for block in gif_blocks(data):
        end = block
    return None if end.kind == b";" else f"is truncated: the GIF of {len(data)} bytes has no end"


def _find_avif_damage(data: bytes) -> str | None:
    return _missing_bytes(data, max((box.end for box in iso_boxes(data)), default=16))


def _find_jpeg_2000_damage(data: bytes) -> str | None:
    if data[:4] == b"\xff\x4f\xff\x51":
        return _find_codestream_damage(data, 0, len(data))
    boxes = list(iso_boxes(data))
    stream = next((box for box in boxes if box.kind == b"jp2c"), None)
    if stream is None or max(box.end for box in boxes) > len(data):
        return f"is truncated: the JPEG 2000 of {len(data)} bytes lacks a part of its pixels"
    return _find_codestream_damage(data, stream.start, stream.end)


def _find_codestream_damage(data: bytes, start: int, end: int) -> str | None:
    """Go from tile to tile; the last one is followed by an end marker."""
    tile = next((segment for segment in jpeg_segments(data, start + 2) if segment.kind == b"\x90"), None)
    position = len(data) if tile is None else tile.start - 4
    while data[position : position + 2] == b"\xff\x90" and position + 12 <= len(data):
        length = int.from_bytes(data[position + 6 : position + 10], "big")
        position = position + length if length >= 12 else end - 2  # 0: up to the end
    return None if data[position : position + 2] == b"\xff\xd9" else f"is truncated: the JPEG 2000 of {len(data)} bytes has no end marker"


def _find_pnm_damage(data: bytes) -> str | None:
    if data[:2] in (b"P1", b"P2", b"P3"):
        return None if data[-1:].isspace() else "is truncated: its last number is not followed by a line end"
    if data[:2] == b"P7":
        header, found, _ = data.partition(b"\nENDHDR\n")
        fields = {name: value for name, _, value in (line.partition(b" ") for line in header.splitlines())}
        try:
            width, height, depth, highest = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        except (KeyError, ValueError):
            return "is damaged or truncated: its header lacks a size"
        return _missing_bytes(data, len(header) + len(found) + width * height * depth * (2 if highest > 255 else 1))
    end = pnm_end(data)
    return "is damaged or truncated: its header lacks a size" if end is None else _missing_bytes(data, end)


def _find_sun_raster_damage(data: bytes) -> str | None:
    if len(data) < 32:
        return _missing_bytes(data, 32)
    width, height, depth, length, kind, _, map_length = struct.unpack_from(">7I", data, 4)
    if kind != 2:  # not run lengths
        length = max(length, (width * depth + 15) // 16 * 2 * height)
    return _missing_bytes(data, 32 + map_length + length)


_FINDERS = {
    "PNG": _find_png_damage,
    "TIFF": _find_tiff_damage,
    "WebP": _find_webp_damage,
    "GIF": _find_gif_damage,
    "AVIF": _find_avif_damage,
    "JPEG 2000": _find_jpeg_2000_damage,
    "PNM": _find_pnm_damage,
    "Sun raster": _find_sun_raster_damage,
}
