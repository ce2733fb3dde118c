"""An image file gives its stored pixels as RGB, or a DataError that names it; a truncated file never gives half an image."""

import contextlib
import hashlib
import struct
import zlib

import cv2
import numpy as np
import pytest

from snl_runtime.errors import DataError, SinkError
from snl_runtime.images.files import WRITABLE_SUFFIXES, pixel_sha256, read_image, read_mask, write_image

LOSSLESS = [".png", ".bmp", ".tif", ".ppm", ".webp"]


@pytest.fixture
def image():
    """Smooth, so that compression works, but nowhere constant."""
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8), (110, 90), interpolation=cv2.INTER_CUBIC)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_give_back_what_was_written(suffix, image, tmp_path):
    write_image(tmp_path / f"x{suffix}", image)
    assert np.array_equal(read_image(tmp_path / f"x{suffix}"), image)


def test_jpeg_gives_what_opencv_decodes_in_rgb_order(image, tmp_path):
    write_image(tmp_path / "x.jpg", image)
    assert np.array_equal(read_image(tmp_path / "x.jpg"), cv2.imread(str(tmp_path / "x.jpg"))[:, :, ::-1])


def test_gray_is_replicated_and_alpha_dropped(tmp_path):
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cv2.imwrite(str(tmp_path / "g.png"), gray)
    assert np.array_equal(read_image(tmp_path / "g.png"), np.stack([gray] * 3, axis=2))
    bgra = np.dstack([gray, gray + 50, gray + 100, np.zeros_like(gray)])
    cv2.imwrite(str(tmp_path / "a.png"), bgra)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.dstack([gray + 100, gray + 50, gray]))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_by_257_and_never_by_content(suffix, tmp_path):
    values = np.array([[0, 128, 129, 257], [300, 4095, 65406, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / f"x{suffix}"), values)
    assert read_image(tmp_path / f"x{suffix}")[:, :, 1].tolist() == [[0, 0, 1, 1], [1, 16, 254, 255]]


def test_progressive_jpeg_with_restarts_is_whole_until_it_is_cut(image, tmp_path):
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    cv2.imwrite(str(tmp_path / "x.jpg"), image, options)
    assert read_image(tmp_path / "x.jpg").shape == image.shape
    data = (tmp_path / "x.jpg").read_bytes()
    for length in range(100, len(data) - 1, 97):
        (tmp_path / "x.jpg").write_bytes(data[:length])
        with pytest.raises(DataError, match=r"x\.jpg"):
            read_image(tmp_path / "x.jpg")


def test_end_marker_of_an_embedded_preview_does_not_hide_a_truncation(image, tmp_path):
    write_image(tmp_path / "x.jpg", image)
    data = (tmp_path / "x.jpg").read_bytes()
    preview = b"\xff\xe2" + struct.pack(">H", 2 + 8) + b"\xff\xd8\xff\xd9" * 2
    (tmp_path / "x.jpg").write_bytes((data[:2] + preview + data[2:])[: len(data) // 2])
    with pytest.raises(DataError, match="has no end marker"):
        read_image(tmp_path / "x.jpg")


def test_bytes_after_the_end_of_a_picture_do_no_harm(image, tmp_path):
    for suffix in (".jpg", ".png", ".bmp"):
        write_image(tmp_path / f"x{suffix}", image)
        expected = read_image(tmp_path / f"x{suffix}")
        with (tmp_path / f"x{suffix}").open("ab") as file:
            file.write(b"\0" * 100)
        assert np.array_equal(read_image(tmp_path / f"x{suffix}"), expected)


def test_changed_bit_of_a_png_is_an_error_and_an_unknown_chunk_is_not(image, tmp_path):
    write_image(tmp_path / "x.png", image)
    data = (tmp_path / "x.png").read_bytes()
    middle = len(data) // 2
    (tmp_path / "y.png").write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    with pytest.raises(DataError, match="y.png is damaged"):
        read_image(tmp_path / "y.png")
    end = data.rindex(b"IEND") - 4
    (tmp_path / "z.png").write_bytes(data[:end] + png_chunk(b"stNo", b"station 7") + data[end:])
    assert np.array_equal(read_image(tmp_path / "z.png"), image)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"just text, no image", "not an image"), (b"\xff\xd8", "truncated"), (b"BM", "truncated")]
)
def test_file_that_is_no_picture_is_an_error_that_names_it(content, message, tmp_path):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"odd\.png.*{message}"):
        read_image(tmp_path / "odd.png")


def test_missing_file_and_folder_are_errors_that_name_them(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.png: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match=f"cannot read {tmp_path}"):
        read_image(tmp_path)


def test_float_tiff_is_refused_by_its_type(tmp_path):
    cv2.imwrite(str(tmp_path / "x.tif"), np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match="float32 values"):
        read_image(tmp_path / "x.tif")


def test_random_bytes_after_every_magic_never_raise_anything_but_data_errors(tmp_path):
    rng = np.random.default_rng(0)
    for magic in (
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"RIFF\x20\0\0\0WEBP",
        b"P5\n",
        b"GIF89a",
        b"\xff\x4f\xff\x51",
        b"II+\0\x08\0\0\0",
        b"P7\n",
        b"",
    ):
        for _ in range(20):
            (tmp_path / "x.bin").write_bytes(magic + rng.bytes(int(rng.integers(0, 200))))
            with contextlib.suppress(DataError):
                read_image(tmp_path / "x.bin")


def test_mask_is_anomalous_from_128_on(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), np.array([[0, 1, 127], [128, 129, 255]], np.uint8))
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[False, False, False], [True, True, True]]


def test_pixel_hash_is_of_shape_and_pixels_and_not_of_the_file(image, tmp_path):
    expected = hashlib.sha256(b"90x110x3\0" + image.tobytes()).hexdigest()
    assert pixel_sha256(image) == expected
    for suffix in (".png", ".bmp"):
        write_image(tmp_path / f"x{suffix}", image)
        assert pixel_sha256(read_image(tmp_path / f"x{suffix}")) == expected
    assert pixel_sha256(np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]) == expected  # a view counts by its pixels
    assert pixel_sha256(image.reshape(110, 90, 3)) != expected


def test_write_refuses_an_unknown_suffix_and_a_missing_folder(image, tmp_path):
    assert ".png" in WRITABLE_SUFFIXES
    with pytest.raises(DataError, match="must end in one of"):
        write_image(tmp_path / "x.gif", image)
    with pytest.raises(SinkError, match="cannot write"):
        write_image(tmp_path / "missing" / "x.png", image)
