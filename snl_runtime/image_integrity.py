"""Is a picture file whole? OpenCV fills the missing part of a truncated file with grey and reports success, so the bytes are checked first."""

import re
import struct
import zlib

_JPEG_START = b"\xff\xd8"
_JPEG_END_MARKER = 0xD9
_JPEG_SCAN_MARKER = 0xDA
# In the entropy-coded part FF is followed by 00 (a stuffed byte), by D0 to D7 (a restart) or by FF (filling); anything else ends the scan.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_TIFF_STARTS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_VALUE_FORMATS = {3: "H", 4: "I"}
_TIFF_OFFSET_TAGS = {273: 279, 324: 325}
"""Tag that lists where strips or tiles start -> tag that lists their sizes."""


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with a file's bytes as the end of a sentence about the file, None if nothing was found.

    Truncation of JPEG, PNG, BMP, TIFF and WebP is found, and any change of a PNG. A JPEG whose middle was altered is not: the format has no checksum.
    """
    if not data:
        return "is empty (0 bytes)"
    if data.startswith(_JPEG_START):
        return _find_jpeg_damage(data)
    if data.startswith(_PNG_START):
        return _find_png_damage(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _missing_bytes(data, 8 + int.from_bytes(data[4:8], "little"))
    if data[:2] == b"BM":
        return _find_bmp_damage(data)
    if data[:4] in _TIFF_STARTS:
        return _find_tiff_damage(data, _TIFF_STARTS[data[:4]])
    return None


def _missing_bytes(data: bytes, expected: int) -> str | None:
    if len(data) >= expected:
        return None
    return f"is truncated: it has {len(data)} of at least {expected} bytes"


def _find_jpeg_damage(data: bytes) -> str | None:
    """Walk the segments: an end marker inside an embedded preview does not count, nor do bytes after the picture's own end."""
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
    position = len(_PNG_START)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        is_critical = kind[:1].isupper()
        if is_critical and zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"is damaged: the checksum of its PNG chunk at byte {position} is wrong"
        if kind == b"IEND":
            return None
        position = end + 4
    return f"is truncated: the PNG of {len(data)} bytes has no end chunk"


def _find_bmp_damage(data: bytes) -> str | None:
    if len(data) < 54:
        return _missing_bytes(data, 54)
    pixel_offset, header_bytes = struct.unpack_from("<II", data, 10)
    if header_bytes < 40:
        return None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (0, 3):  # run lengths: the size is not known beforehand
        return None
    row_bytes = (abs(width) * bits + 31) // 32 * 4
    return _missing_bytes(data, pixel_offset + row_bytes * abs(height))


def _find_tiff_damage(data: bytes, order: str) -> str | None:
    """Check that the first picture's strips or tiles lie inside the file."""
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, directory)
        entries: dict[int, tuple[int, ...]] = {}
        for index in range(count):
            tag, kind, length = struct.unpack_from(f"{order}HHI", data, directory + 2 + 12 * index)
            if kind in _TIFF_VALUE_FORMATS and tag in {*_TIFF_OFFSET_TAGS, *_TIFF_OFFSET_TAGS.values()}:
                entries[tag] = _tiff_values(data, order, directory + 10 + 12 * index, _TIFF_VALUE_FORMATS[kind], length)
    except struct.error:
        return f"is truncated: the TIFF of {len(data)} bytes ends inside its directory"
    for offsets_tag, sizes_tag in _TIFF_OFFSET_TAGS.items():
        ends = [start + size for start, size in zip(entries.get(offsets_tag, ()), entries.get(sizes_tag, ()), strict=False)]
        if ends and max(ends) > len(data):
            return _missing_bytes(data, max(ends))
    return None


def _tiff_values(data: bytes, order: str, position: int, value_format: str, count: int) -> tuple[int, ...]:
    if count * struct.calcsize(value_format) > 4:
        (position,) = struct.unpack_from(f"{order}I", data, position)
    if count > len(data):
        raise struct.error("more values than bytes")
    return struct.unpack_from(f"{order}{count}{value_format}", data, position)
