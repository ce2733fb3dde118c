"""A raw buffer becomes the image that its declared pixel format says, at its own depth, or an error."""

import numpy as np
import pytest

from snl_runtime.errors import ConfigError, FrameError
from snl_runtime.images.preprocess import in_rgb_order
from snl_runtime.line.sources.pixel_formats import FOURCC_FORMATS, PIXEL_FORMATS, decode, find_fourcc, find_pixel_format

FIRST_ROWS = {"RG": ("RG", "GB"), "GR": ("GR", "BG"), "GB": ("GB", "RG"), "BG": ("BG", "GR")}
"""The two rows that repeat, written out from PFNC: a name is the first two pixels of the first row."""
COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "white": (1, 1, 1)}
YUV = {"black": (0, 128, 128), "gray": (90, 128, 128), "white": (255, 128, 128), "red": (76, 85, 255), "blue": (29, 255, 107)}
"""Full range, by hand: Y = 0.299 R + 0.587 G + 0.114 B, U = 0.564 (B - Y) + 128, V = 0.713 (R - Y) + 128."""
RGB = {"black": (0, 0, 0), "gray": (90, 90, 90), "white": (255, 255, 255), "red": (255, 0, 0), "blue": (0, 0, 255)}


def mosaic(pattern, rgb, dtype, size=8):
    """What a sensor with that filter sees of a patch of one color."""
    values = dict(zip("RGB", rgb))
    return np.array([[values[FIRST_ROWS[pattern][row % 2][column % 2]] for column in range(size)] for row in range(size)], dtype)


def yuyv(y, u, v, first):
    pixel_pair = (y, u, y, v) if first == "y" else (u, y, v, y)
    return np.tile(np.array(pixel_pair, np.uint8).reshape(1, 2, 2), (6, 4, 1))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("pattern", FIRST_ROWS)
def test_patch_of_one_color_keeps_color_and_depth_in_every_bayer_pattern(pattern, bits, color):
    declared = find_pixel_format(f"Bayer{pattern}{bits}")
    highest = 2**bits - 1
    rgb = tuple(highest * share for share in COLORS[color])
    image = decode(mosaic(pattern, rgb, declared.dtype), declared)
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert image.shape == (8, 8, 3)
    assert (in_rgb_order(image, declared.color) == rgb).all(), "a 12-bit value stays the 12-bit value"


def test_wrong_bayer_pattern_would_be_seen_by_these_tests():
    red_seen_as_blue = decode(mosaic("RG", (255, 0, 0), np.uint8), find_pixel_format("BayerBG8"))
    assert (in_rgb_order(red_seen_as_blue, "bgr") == (0, 0, 255)).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_mono_is_passed_on_as_it_is_and_without_a_copy(bits):
    declared = find_pixel_format(f"Mono{bits}")
    buffer = np.arange(12, dtype=declared.dtype).reshape(3, 4) * (2**bits // 16)
    image = decode(buffer, declared)
    assert (image == buffer).all()
    assert np.shares_memory(image, buffer)
    assert declared.color == "gray"
    assert decode(buffer[:, :, None], declared).shape == (3, 4)


@pytest.mark.parametrize(
    ("name", "rgb"), [("RGB8", (200, 90, 10)), ("BGR8Packed", (200, 90, 10)), ("RGB12", (4095, 90, 10)), ("BGR10", (1023, 90, 10))]
)
def test_channel_order_is_the_declared_one(name, rgb):
    declared = find_pixel_format(name)
    stored = rgb if name.startswith("RGB") else rgb[::-1]
    image = decode(np.full((4, 5, 3), stored, declared.dtype), declared)
    assert (in_rgb_order(image, declared.color) == rgb).all()


@pytest.mark.parametrize("color", YUV)
@pytest.mark.parametrize(("name", "first"), [("YUV422_8", "y"), ("YUV422_YUYV_Packed", "y"), ("YUV422_8_UYVY", "u"), ("YUV422Packed", "u")])
def test_yuv_of_an_industrial_camera_has_the_full_range(name, first, color):
    declared = find_pixel_format(name)
    image = in_rgb_order(decode(yuyv(*YUV[color], first), declared), declared.color)
    assert np.abs(image.astype(int) - RGB[color]).max() <= 2, "the values of YUV above are rounded"


@pytest.mark.parametrize(("code", "first"), [("YUYV", "y"), ("UYVY", "u")])
@pytest.mark.parametrize(("yuv", "rgb"), [((16, 128, 128), (0, 0, 0)), ((235, 128, 128), (255, 255, 255)), ((81, 90, 240), (255, 0, 0))])
def test_yuv_of_a_webcam_has_the_range_of_television(code, first, yuv, rgb):
    declared = find_fourcc(code)
    image = in_rgb_order(decode(yuyv(*yuv, first), declared), declared.color)
    assert np.abs(image.astype(int) - rgb).max() <= 2


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("Mono8", np.zeros((4, 4), np.uint16)),
        ("Mono12", np.zeros((4, 4), np.uint8)),
        ("Mono8", np.zeros((4, 4, 3), np.uint8)),
        ("BayerRG8", np.zeros((4, 4, 3), np.uint8)),
        ("RGB8", np.zeros((4, 4), np.uint8)),
        ("YUV422_8", np.zeros((4, 4, 3), np.uint8)),
        ("YUV422_8", np.zeros((4, 3, 2), np.uint8)),
        ("BayerRG8", np.zeros((1, 4), np.uint8)),
        ("Mono8", np.zeros((0, 4), np.uint8)),
    ],
)
def test_buffer_of_another_layout_is_an_error_not_a_guess(name, buffer):
    with pytest.raises(FrameError, match=f"{name} needs"):
        decode(buffer, find_pixel_format(name))


@pytest.mark.parametrize("name", ["", "mono8", "BayerXY8", "Mono32", "YUV411_8"])
def test_unknown_format_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"camera\.pixel_format .* cannot be decoded; use one of BGR10, .*Mono8"):
        find_pixel_format(name, key="camera.pixel_format")
    with pytest.raises(ConfigError, match="use one of"):
        find_fourcc(name + "?")


def test_packed_formats_and_codes_name_the_unpacked_values():
    assert PIXEL_FORMATS["Mono12p"].packed
    assert PIXEL_FORMATS["BayerRG12Packed"].dtype is np.uint16
    assert FOURCC_FORMATS["BYR2"].name == "BayerBG16"
    assert find_fourcc("Y16").name == "Mono16"
