"""How many images a file holds, and each of them as a file of its own."""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snl_runtime.images.containers import TiffFile, gif_blocks, iso_boxes, jpeg_segments, png_chunks, riff_chunks
from snl_runtime.images.formats import find_format

_PNM_NUMBER = rb"\s+(?:#[^\n]*\n\s*)*(\d{1,9})"
_PNM_HEADER = re.compile(rb"(P4)" + 2 * _PNM_NUMBER + rb"\s|(P[56])" + 3 * _PNM_NUMBER + rb"\s")


@dataclass(frozen=True, slots=True, eq=False)
class ContainedImages:
    """The images that a file holds.

    Attributes:
        count: How many; thumbnails and transparency masks do not count.
        cut: Returns the file of one of them, by its number from 0; None where a decoder has to go through all of them (an animation), or where the
            file is that of its only image.
    """

    count: int
    cut: Callable[[int], bytes] | None = None


def find_images(data: bytes) -> ContainedImages:
    """Return the images in the bytes of a file; what is truncated counts as one more, since a part of it is there."""
    find = _FINDERS.get(find_format(data) or "")
    return ContainedImages(1) if find is None else find(data)


def pnm_end(data: bytes, start: int = 0) -> int | None:
    """Return where a binary PNM that begins at ``start`` ends, None if there is none."""
    header = _PNM_HEADER.match(data, start)
    if header is None:
        return None
    if header[1]:
        return header.end() + (int(header[2]) + 7) // 8 * int(header[3])
    samples = int(header[5]) * int(header[6]) * (3 if header[4] == b"P6" else 1)
    return header.end() + samples * (2 if int(header[7]) > 255 else 1)


def _in_tiff(data: bytes) -> ContainedImages:
    file = TiffFile(data)
    found = file.directories()
    full = [directory for directory in found if not directory.is_reduced]
    if full and full == found[:1]:
        return ContainedImages(1)
    return ContainedImages(len(full), lambda number: file.starting_with(full[number]))


def _in_jpeg(data: bytes) -> ContainedImages:
    """Return the images that the multi-image index (CIPA DC-007) of a JPEG lists, panoramas and stereo pairs."""
    for segment in jpeg_segments(data):
        if segment.kind == b"\xe2" and data[segment.start : segment.start + 4] == b"MPF\0":
            return _in_index(data, segment.start + 4)
    return ContainedImages(1)


def _in_index(data: bytes, base: int) -> ContainedImages:
    directories = TiffFile(data, base).directories()
    values = (directories[0].values if directories else None) or {}
    listed_bytes = values.get(0xB002, ())
    entries = bytes(listed_bytes) if max(listed_bytes, default=0) < 256 else b""
    order = "<" if data[base : base + 2] == b"II" else ">"
    listed = [struct.unpack_from(f"{order}III", entries, at) for at in range(0, len(entries) - 15, 16)]
    # The offset of the first image is 0 and counts from the file's start, those of the others from the index. Kind 1 is a thumbnail.
    ranges = [(base + offset if offset else 0, size) for kind, size, offset in listed if kind >> 16 & 0xFF != 1]
    if len(ranges) < 2:
        return ContainedImages(1)
    return ContainedImages(len(ranges), lambda number: data[ranges[number][0] : ranges[number][0] + ranges[number][1]])


def _in_png(data: bytes) -> ContainedImages:
    """Return the frames that are there, not the number that the animation's header gives: that may be damaged."""
    kinds = [chunk.kind for chunk in png_chunks(data)]
    return ContainedImages(max(1, kinds.count(b"fcTL")) if b"acTL" in kinds else 1)


def _in_gif(data: bytes) -> ContainedImages:
    return ContainedImages(max(1, sum(block.kind == b"," for block in gif_blocks(data))))


def _in_webp(data: bytes) -> ContainedImages:
    return ContainedImages(max(1, sum(chunk.kind == b"ANMF" for chunk in riff_chunks(data))))


def _in_avif(data: bytes) -> ContainedImages:
    """Return the samples of the longest track of an image sequence."""
    counts = [1]
    for movie in iso_boxes(data):
        if movie.kind == b"moov":
            tracks = [part for part in iso_boxes(data, movie.start, movie.end) if part.kind == b"trak"]
            counts += [_sample_count(data, track.start, track.end) for track in tracks]
    return ContainedImages(min(max(counts), len(data)))  # a sample has a byte at least


def _sample_count(data: bytes, start: int, end: int) -> int:
    for name in (b"mdia", b"minf", b"stbl", b"stsz"):
        box = next((part for part in iso_boxes(data, start, end) if part.kind == name), None)
        if box is None:
            return 1
        start, end = box.start, box.end
    return int.from_bytes(data[start + 8 : start + 12], "big")


def _in_jpeg_2000(data: bytes) -> ContainedImages:
    if data[:4] == b"\xff\x4f\xff\x51":
        return ContainedImages(1)
    streams = [box for box in iso_boxes(data) if box.kind == b"jp2c"]
    if len(streams) < 2:
        return ContainedImages(1)
    return ContainedImages(len(streams), lambda number: data[streams[number].start : streams[number].end])


def _in_pnm(data: bytes) -> ContainedImages:
    starts = [0]
    while (end := pnm_end(data, starts[-1])) is not None and end < len(data) and _PNM_HEADER.match(data, end):
        starts.append(end)
    if len(starts) < 2:
        return ContainedImages(1)
    ends: Sequence[int] = [*starts[1:], len(data)]
    return ContainedImages(len(starts), lambda number: data[starts[number] : ends[number]])


_FINDERS: dict[str, Callable[[bytes], ContainedImages]] = {
    "TIFF": _in_tiff,
    "JPEG": _in_jpeg,
    "PNG": _in_png,
    "GIF": _in_gif,
    "WebP": _in_webp,
    "AVIF": _in_avif,
    "JPEG 2000": _in_jpeg_2000,
    "PNM": _in_pnm,
}
