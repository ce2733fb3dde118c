"""A file gives the image that it shows and nothing of a truncated one; of several images it gives none, or each on its own."""

import contextlib
import importlib.util
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import DataError
from snl_runtime.images.files import check_range, read_frame, read_image, read_mask, read_pages, to_image
from snl_runtime.images.integrity import find_damage
from snl_runtime.images.pages import find_images

_spec = importlib.util.spec_from_file_location("snl_tests_image_files", Path(__file__).parents[1] / "image_files.py")
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

HAS_ANIMATIONS = hasattr(cv2, "imwriteanimation")
IMAGES = [files.smooth(seed) for seed in range(3)]
RGB = [np.ascontiguousarray(image[:, :, ::-1]) for image in IMAGES]


def stored(path):
    """The pixels that cv2.imread shows, RGB."""
    shown = cv2.imread(str(path))
    if shown is None:  # OpenCV 5.0.0 fails so on a TIFF that lies on its side, and decodes it from memory
        shown = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    return shown[:, :, ::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("make", [files.oriented_jpeg, files.oriented_png, files.oriented_webp])
def test_orientation_is_that_of_cv2_imread(make, orientation, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(make(IMAGES[0], orientation))
    assert np.array_equal(read_image(path), stored(path))
    if make is files.oriented_jpeg or orientation == 1:
        assert read_image(path).shape[:2] == ((90, 110) if orientation < 5 else (110, 90))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_orientation_of_a_tiff_is_that_of_cv2_imread_also_with_16_bits(orientation, order, tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(files.tiff([RGB[0]], order=order, orientation=orientation))
    assert np.array_equal(read_image(path), stored(path))
    deep = RGB[0][:, :, 0].astype(np.uint16) * 257
    path.write_bytes(files.tiff([deep], order=order, orientation=orientation))
    frame = read_frame(path)
    assert frame.dtype == np.uint16
    assert np.array_equal(read_image(path), stored(path))


@pytest.mark.parametrize("orientation", [3, 6])
def test_mask_is_turned_like_its_image(orientation, tmp_path):
    mask = np.zeros((90, 110, 3), np.uint8)
    mask[10:20, 5:40] = 255
    (tmp_path / "m.png").write_bytes(files.oriented_png(mask, orientation))
    assert np.array_equal(read_mask(tmp_path / "m.png"), stored(tmp_path / "m.png").max(axis=2) >= 128)


def several(tmp_path):
    """Name -> file of three images, and whether they come back without loss."""
    made = {
        "stack.tif": (files.tiff(RGB), True),
        "motorola.tif": (files.tiff(RGB, order=">"), True),
        "big.btf": (files.tiff(RGB, big=True), True),
        "stereo.mpo": (files.mpo(IMAGES), False),
        "three.ppm": (b"".join(files.encode(".ppm", image) for image in IMAGES), True),
    }
    if HAS_ANIMATIONS:
        made["moving.png"] = (files.animation(".png", IMAGES, tmp_path), True)
        made["moving.gif"] = (files.animation(".gif", IMAGES, tmp_path), False)
        made["moving.webp"] = (files.animation(".webp", IMAGES, tmp_path), False)
        made["moving.avif"] = (files.animation(".avif", IMAGES, tmp_path), False)
    return made


def test_file_of_several_pictures_is_an_error_that_says_how_many(tmp_path):
    for name, (data, _) in several(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name} holds 3 images; .*--pages all"):
            read_image(tmp_path / name)


def test_every_page_is_the_picture_that_was_put_there(tmp_path):
    for name, (data, is_lossless) in several(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        pages = list(read_pages(tmp_path / name))
        assert [(page.number, page.count, page.fault) for page in pages] == [(1, 3, None), (2, 3, None), (3, 3, None)], name
        for page, expected in zip(pages, RGB, strict=True):
            difference = np.abs(page.frame.astype(int) - expected)
            assert difference.max() == 0 if is_lossless else difference.mean() < 16, name


def test_file_of_one_picture_has_one_page(tmp_path):
    for suffix in (".png", ".jpg", ".tif", ".gif", ".ppm"):
        if suffix == ".gif" and not HAS_ANIMATIONS:
            continue
        path = tmp_path / f"x{suffix}"
        path.write_bytes(files.encode(suffix, IMAGES[0]))
        (page,) = read_pages(path)
        assert np.array_equal(page.frame, read_image(path))


def test_reduced_pages_and_thumbnails_are_no_pictures(tmp_path):
    small = np.ascontiguousarray(RGB[1][::4, ::4])
    for name, data in {
        "after.tif": files.tiff([RGB[0], small], subfiles=(0, 1)),
        "before.tif": files.tiff([small, RGB[0]], subfiles=(1, 0)),
        "big.tif": files.tiff([small, RGB[0]], subfiles=(1, 0), big=True),
        "mask.tif": files.tiff([RGB[0], small], subfiles=(0, 4)),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_image(tmp_path / name), RGB[0]), name
    (tmp_path / "x.jpg").write_bytes(files.mpo([IMAGES[0], IMAGES[1][::4, ::4]], kinds=(0x030000, 0x010001)))
    assert read_image(tmp_path / "x.jpg").shape == (90, 110, 3)
    (tmp_path / "raw.dng").write_bytes(files.tiff([small], subfiles=(1,)))
    with pytest.raises(DataError, match=r"raw\.dng holds a thumbnail only"):
        read_image(tmp_path / "raw.dng")


def test_damaged_page_is_an_error_of_that_page_alone(tmp_path):
    data = files.mpo(IMAGES)
    second = data.index(b"\xff\xd8\xff", 4)
    end = data.index(b"\xff\xd9", second)
    (tmp_path / "x.mpo").write_bytes(data[:end] + b"\0\0" + data[end + 2 :])
    pages = list(read_pages(tmp_path / "x.mpo"))
    assert [page.fault is None for page in pages] == [True, False, True]
    assert "x.mpo, image 2 of 3, is " in pages[1].fault
    stack = files.tiff(RGB)
    (tmp_path / "x.tif").write_bytes(stack[: len(stack) - 10])
    pages = list(read_pages(tmp_path / "x.tif"))
    assert [page.fault is None for page in pages] == [True, True, False]


def codestream(jp2):
    return jp2[jp2.index(b"\xff\x4f\xff\x51") :]


WHOLE = {
    ".jpg": lambda: files.encode(".jpg", IMAGES[0]),
    ".progressive.jpg": lambda: files.encode(".jpg", IMAGES[0], cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    ".png": lambda: files.encode(".png", IMAGES[0]),
    ".bmp": lambda: files.encode(".bmp", IMAGES[0]),
    ".tif": lambda: files.encode(".tif", IMAGES[0]),
    ".plain.tif": lambda: files.tiff([RGB[0]]),
    ".big.tif": lambda: files.tiff([RGB[0]], big=True, order=">"),
    ".webp": lambda: files.encode(".webp", IMAGES[0]),
    ".gif": lambda: files.encode(".gif", IMAGES[0]),
    ".jp2": lambda: files.encode(".jp2", IMAGES[0]),
    ".j2k": lambda: codestream(files.encode(".jp2", IMAGES[0])),
    ".avif": lambda: files.encode(".avif", IMAGES[0]),
    ".ppm": lambda: files.encode(".ppm", IMAGES[0]),
    ".pgm": lambda: files.encode(".pgm", IMAGES[0][:, :, 0]),
    ".ascii.pgm": lambda: files.encode(".pgm", IMAGES[0][:, :, 0], cv2.IMWRITE_PXM_BINARY, 0),
    ".pbm": lambda: files.encode(".pbm", (IMAGES[0][:, :, 0] > 99).astype(np.uint8) * 255),
    ".pam": lambda: files.encode(".pam", IMAGES[0]),
    ".ras": lambda: files.encode(".ras", IMAGES[0]),
    ".mpo": lambda: files.mpo(IMAGES),
}


def small_samples():
    """One small file of every kind, of those that this OpenCV writes."""
    samples = {"big.tif": files.tiff(RGB, big=True), "motorola.tif": files.tiff([image[:9] for image in RGB], order=">")}
    for suffix, make in WHOLE.items():
        with contextlib.suppress(cv2.error, AssertionError):
            samples[suffix] = make()
    if HAS_ANIMATIONS:
        with tempfile.TemporaryDirectory() as folder:
            for suffix in (".png", ".gif", ".webp", ".avif"):
                samples[f"moving{suffix}"] = files.animation(suffix, IMAGES, Path(folder))
    return samples


SAMPLES = small_samples()


@pytest.mark.parametrize("suffix", WHOLE)
def test_truncated_file_never_gives_other_pixels_than_the_whole_one(suffix, tmp_path):
    try:
        data = WHOLE[suffix]()
    except (cv2.error, AssertionError):
        pytest.skip(f"this OpenCV writes no {suffix}")
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    whole = [page.frame for page in read_pages(path)]
    assert all(frame is not None for frame in whole)
    cuts = {len(data) * part // 60 for part in range(60)} | {len(data) - back for back in (1, 2, 3, 4, 8, 12)} | set(range(1, 60, 7))
    for length in sorted(cuts):
        path.write_bytes(data[:length])
        with contextlib.suppress(DataError):
            assert np.array_equal(read_frame(path), whole[0]), length


@pytest.mark.parametrize("offset", [2**64 - 1, 2**63, 10**9])
def test_directory_beyond_the_file_is_a_picture_that_is_damaged(offset, tmp_path):
    data = files.tiff(RGB[:1], big=True)
    (tmp_path / "x.tif").write_bytes(data[:-8] + offset.to_bytes(8, "little"))
    first, second = read_pages(tmp_path / "x.tif")
    assert np.array_equal(first.frame, RGB[0])
    assert "x.tif, image 2 of 2, is truncated" in second.fault
    with pytest.raises(DataError, match="holds 2 images"):
        read_image(tmp_path / "x.tif")


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_never_break_the_search_for_pictures_and_damage(data):
    whole = bytearray(data.draw(st.sampled_from(sorted(SAMPLES.values()))))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, min(len(whole), 400) - 1) | st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    pictures = find_images(damaged)
    assert 0 <= pictures.count <= len(damaged) + 1
    for number in range(min(pictures.count, 3)):
        find_damage(damaged if pictures.cut is None else pictures.cut(number))


def test_every_truncation_of_a_common_file_is_an_error(tmp_path):
    for suffix in (".jpg", ".png", ".bmp", ".tif", ".webp", ".ppm", ".plain.tif"):
        data = WHOLE[suffix]()
        for length in {len(data) * tenth // 10 for tenth in range(10)} | {1, 2, 8, len(data) - 1}:
            (tmp_path / "x").write_bytes(data[:length])
            with pytest.raises(DataError):
                read_image(tmp_path / "x")


def test_frame_beyond_the_limits_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "wide.png").write_bytes(files.encode(".png", np.zeros((2, 70000), np.uint8)))
    with pytest.raises(DataError, match=r"wide\.png: a frame may have 65536 pixels a side"):
        read_image(tmp_path / "wide.png")
    (tmp_path / "huge.pgm").write_bytes(b"P5\n70000 70000\n255\n" + bytes(100))
    with pytest.raises(DataError, match=r"huge\.pgm"):
        read_image(tmp_path / "huge.pgm")


def read_reference_image(path, bit_depth=None):
    """As training and calibration read their images."""
    frame = read_frame(path)
    check_range(frame, path, bit_depth)
    return to_image(frame, path, bit_depth)


def deep(path, highest):
    values = np.linspace(0, highest, 48 * 64).round().astype(np.uint16).reshape(48, 64)
    assert cv2.imwrite(str(path), values)
    return values


@pytest.mark.parametrize(("highest", "option"), [(1023, 10), (4095, 12), (16383, 14)])
def test_dark_16_bit_file_is_no_reference_until_its_bits_are_declared(highest, option, tmp_path):
    values = deep(tmp_path / "x.png", highest)
    with pytest.raises(DataError, match=rf"x\.png .* no value above {highest}; .*--bit-depth {option}"):
        read_reference_image(tmp_path / "x.png")
    expected = np.round(values.astype(float) * 255 / (2**option - 1)).astype(np.uint8)
    assert np.array_equal(read_reference_image(tmp_path / "x.png", option)[:, :, 0], expected)
    assert np.array_equal(read_reference_image(tmp_path / "x.png", 16)[:, :, 0], np.round(values / 257).astype(np.uint8))
    if option < 14:
        assert read_image(tmp_path / "x.png", option + 2).max() <= 64
    check_range(read_frame(tmp_path / "x.png").astype(np.uint8), "x.png", None)  # 8 bits use what they use


def test_value_above_the_declared_bits_is_an_error_that_names_file_and_value(tmp_path):
    deep(tmp_path / "x.png", 5000)
    with pytest.raises(DataError, match=r"x\.png: .*5000.*12 bits"):
        read_image(tmp_path / "x.png", 12)
    assert read_reference_image(tmp_path / "x.png", 14).max() == round(5000 * 255 / 16383)


def test_bright_16_bit_file_needs_no_declaration(tmp_path):
    deep(tmp_path / "x.png", 16384)
    assert read_reference_image(tmp_path / "x.png").max() == round(16384 / 257)


@pytest.mark.parametrize("plane", [0, 255])
def test_mask_drawn_into_the_alpha_channel_is_refused_by_what_it_looks_like(plane, tmp_path):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[5:9, 3:12] = 255
    colors = np.full((20, 30, 3), plane, np.uint8)
    (tmp_path / "m.png").write_bytes(files.encode(".png", np.dstack([colors, alpha])))
    with pytest.raises(DataError, match=r"m\.png looks like an alpha mask"):
        read_mask(tmp_path / "m.png")
    drawn = np.dstack([np.repeat(alpha[:, :, None], 3, axis=2), np.full_like(alpha, 255)])
    (tmp_path / "n.png").write_bytes(files.encode(".png", drawn))
    assert np.array_equal(read_mask(tmp_path / "n.png"), alpha == 255)
