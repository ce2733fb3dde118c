"""Image files that OpenCV does not write, built from their formats' descriptions."""

import struct
import zlib

import cv2
import numpy as np


def smooth(seed, size_hw=(90, 110)):
    """Random pixels that compress and are nowhere constant."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def encode(suffix, image, *options):
    done, data = cv2.imencode(suffix, image, list(options))
    assert done, suffix
    return data.tobytes()


def animation(suffix, images, tmp_path):
    """An animation as OpenCV writes it."""
    frames = cv2.Animation()
    frames.frames, frames.durations = list(images), [100] * len(images)
    assert cv2.imwriteanimation(str(tmp_path / f"made{suffix}"), frames)
    return (tmp_path / f"made{suffix}").read_bytes()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(images, *, big=False, order="<", subfiles=(), orientation=1):
    """Uncompressed TIFF of 8- or 16-bit images, (H, W) or (H, W, 3) RGB; directories lie behind the pixels."""
    word, size, count = ("Q", 8, "Q") if big else ("I", 4, "H")
    mark = b"II" if order == "<" else b"MM"
    data = bytearray(mark + struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else mark + struct.pack(order + "HI", 42, 0))
    link = size
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        channels = 1 if image.ndim == 2 else image.shape[2]
        strip = len(data)
        data += image.astype(image.dtype.newbyteorder(order)).tobytes()
        bits = struct.pack(f"{order}{channels}H", *[8 * image.itemsize] * channels)
        if len(bits) > size:
            data += bits
            bits = struct.pack(order + word, len(data) - len(bits))
        values = {
            254: subfiles[number] if subfiles else 0,
            256: width,
            257: height,
            258: bits,
            259: 1,
            262: 1 if channels == 1 else 2,
            273: strip,
            274: orientation,
            277: channels,
            278: height,
            279: image.nbytes,
        }
        struct.pack_into(order + word, data, link, len(data))
        data += struct.pack(order + count, len(values))
        for tag, value in values.items():
            packed = value if isinstance(value, bytes) else struct.pack(order + "I", value)
            kind, length = (3, channels) if tag == 258 else (4, 1)
            data += struct.pack(f"{order}HH{word}", tag, kind, length) + packed.ljust(size, b"\0")
        link = len(data)
        data += struct.pack(order + word, 0)
    return bytes(data)


def exif(orientation):
    """The Exif block of an orientation alone."""
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)


def oriented_jpeg(image, orientation):
    data = encode(".jpg", image)
    block = b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def oriented_png(image, orientation):
    data = encode(".png", image)
    return data[:33] + png_chunk(b"eXIf", exif(orientation)) + data[33:]


def oriented_webp(image, orientation):
    data = encode(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 101)
    block = exif(orientation)
    height, width = image.shape[:2]
    header = b"VP8X" + struct.pack("<II", 10, 0x08) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + header + data[12:] + b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mpo(images, *, kinds=(0x020003, 0x020003, 0x020003)):
    """Several JPEGs in one file with the index of CIPA DC-007; kind 0x010001 is a thumbnail."""
    files = [encode(".jpg", image) for image in images]
    index_bytes = 4 + 8 + 2 + 3 * 12 + 4 + 16 * len(files)
    first = len(files[0]) + 4 + index_bytes
    entries, offset = b"", first - (2 + 4 + 4)
    for number, file in enumerate(files):
        entries += struct.pack(">IIIHH", kinds[number], first if number == 0 else len(file), 0 if number == 0 else offset, 0, 0)
        offset += 0 if number == 0 else len(file)
    tags = struct.pack(">HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(">HHII", 0xB001, 4, 1, len(files))
    tags += struct.pack(">HHII", 0xB002, 7, len(entries), 8 + 2 + 3 * 12 + 4)
    index = b"MPF\0" + b"MM\0*" + struct.pack(">IH", 8, 3) + tags + struct.pack(">I", 0) + entries
    segment = b"\xff\xe2" + struct.pack(">H", len(index) + 2) + index
    return files[0][:2] + segment + files[0][2:] + b"".join(files[1:])
