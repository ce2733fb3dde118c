"""Whether a video file is as long as its own headers say."""

import struct
from pathlib import Path
from typing import BinaryIO


def count_missing_bytes(path: Path) -> int:
    """Return by how many bytes an AVI or MP4/MOV file is shorter than its chunks announce; 0 for whole files and for other formats.

    FFmpeg decodes the half frame at such an end into an image that looks whole, so the file has to say itself that it was cut.

    Raises:
        OSError: If the file cannot be read.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            return max(0, _riff_end(file) - size_bytes)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
            return max(0, _box_end(file, size_bytes) - size_bytes)
    return 0


def _riff_end(file: BinaryIO) -> int:
    """Follow the RIFF chunks (large AVI files have several) to where the last one ends; 0 if a recorder never filled in the size."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            return position
        (length,) = struct.unpack("<I", head[4:])
        if length in (0, 0xFFFFFFFF):
            return 0
        position += 8 + length + length % 2


def _box_end(file: BinaryIO, size_bytes: int) -> int:
    position = 0
    while position < size_bytes:
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return position
        (length,) = struct.unpack(">I", head[:4])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:  # 0 means "to the end of the file", anything else below 8 is no box
            return size_bytes
        position += length
    return position
