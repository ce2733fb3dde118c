"""Raw camera buffers to images, by the declared pixel format only: nothing here looks at pixel values to guess one.

Names are those of GenICam's Pixel Format Naming Convention (PFNC), with the older names that cameras still use and the FourCC names of V4L2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError, FrameError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.types import ColorOrder

Layout: TypeAlias = Literal["mono", "bayer", "color", "yuv"]

_BAYER_PATTERNS = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}
"""PFNC names the first two pixels of the first row. OpenCV's short names (COLOR_BayerBG2BGR for RGGB) name the second row's second and third
pixel; its long ones (COLOR_BayerRGGB2BGR) say what they mean and are used here."""
_FOURCC_NAMES = {"GREY": "Mono8", "Y10 ": "Mono10", "Y12 ": "Mono12", "Y16 ": "Mono16"} | {
    "RGGB": "BayerRG8", "GRBG": "BayerGR8", "GBRG": "BayerGB8", "BA81": "BayerBG8",
    "RG10": "BayerRG10", "BA10": "BayerGR10", "GB10": "BayerGB10", "BG10": "BayerBG10",
    "RG12": "BayerRG12", "BA12": "BayerGR12", "GB12": "BayerGB12", "BG12": "BayerBG12",
    "RG16": "BayerRG16", "GR16": "BayerGR16", "GB16": "BayerGB16", "BYR2": "BayerBG16",
}  # fmt: skip
"""V4L2's codes; BA81, BA10, BA12 and BYR2 have grown historically."""
_FULL_RANGE = "COLOR_YCrCb2BGR"
"""Industrial cameras send YUV with all 256 steps of Y, webcams (V4L2's YUYV and UYVY) with Y from 16 to 235."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """What the bytes of a buffer mean.

    Attributes:
        name: PFNC name.
        layout: ``mono``, a ``bayer`` mosaic, ``color`` with interleaved channels, or ``yuv`` 4:2:2.
        bits: Bits that a value uses; more than 8 are stored in the low bits of uint16.
        channels: Values per pixel as the buffer is laid out.
        color: Meaning of the last axis after :func:`decode`.
        conversion: Name of OpenCV's conversion to BGR; empty if none is needed.
        luma: Which of the two channels of ``yuv`` is Y.
        packed: Whether the camera sends values across byte borders; the camera's library must have unpacked them before :func:`decode`.
    """

    name: str
    layout: Layout
    bits: int
    channels: int
    color: ColorOrder
    conversion: str = ""
    luma: int = 0
    packed: bool = False

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Type of the values before and after :func:`decode`."""
        return np.uint8 if self.bits == 8 else np.uint16


def _all_formats() -> dict[str, PixelFormat]:
    formats: dict[str, PixelFormat] = {}

    def add(name: str, *further: str, **values: Any) -> None:
        for one in (name, *further):
            formats[one] = PixelFormat(name=name, **values)

    for bits in (8, 10, 12, 14, 16):
        add(f"Mono{bits}", layout="mono", bits=bits, channels=1, color="gray")
        for pixels, pattern in _BAYER_PATTERNS.items():
            add(f"Bayer{pixels}{bits}", layout="bayer", bits=bits, channels=1, color="bgr", conversion=f"COLOR_Bayer{pattern}2BGR")
    for bits in (10, 12):
        for suffix in ("p", "Packed"):
            add(f"Mono{bits}{suffix}", layout="mono", bits=bits, channels=1, color="gray", packed=True)
            for pixels, pattern in _BAYER_PATTERNS.items():
                conversion = f"COLOR_Bayer{pattern}2BGR"
                add(f"Bayer{pixels}{bits}{suffix}", layout="bayer", bits=bits, channels=1, color="bgr", conversion=conversion, packed=True)
    add("RGB8", "RGB8Packed", layout="color", bits=8, channels=3, color="rgb")
    add("BGR8", "BGR8Packed", layout="color", bits=8, channels=3, color="bgr")
    for bits in (10, 12):
        add(f"RGB{bits}", f"RGB{bits}Packed", layout="color", bits=bits, channels=3, color="rgb")
        add(f"BGR{bits}", f"BGR{bits}Packed", layout="color", bits=bits, channels=3, color="bgr")
    add("YUV422_8", "YUV422_YUYV_Packed", layout="yuv", bits=8, channels=2, color="bgr", conversion=_FULL_RANGE)
    add("YUV422_8_UYVY", "YUV422Packed", layout="yuv", bits=8, channels=2, color="bgr", conversion=_FULL_RANGE, luma=1)
    return formats


def _fourcc_formats() -> dict[str, PixelFormat]:
    formats = {code: PIXEL_FORMATS[name] for code, name in _FOURCC_NAMES.items()}
    for code, conversion, luma in (("YUYV", "COLOR_YUV2BGR_YUY2", 0), ("UYVY", "COLOR_YUV2BGR_UYVY", 1)):
        formats[code] = PixelFormat(name=code, layout="yuv", bits=8, channels=2, color="bgr", conversion=conversion, luma=luma)
    return formats


PIXEL_FORMATS: Mapping[str, PixelFormat] = MappingProxyType(_all_formats())
"""Every name that can be declared for a GenICam camera."""
FOURCC_FORMATS: Mapping[str, PixelFormat] = MappingProxyType(_fourcc_formats())
"""Every code that can be declared for a V4L2 camera."""


def find_pixel_format(name: str, *, key: str = "pixel_format") -> PixelFormat:
    """Return the format of a PFNC name.

    Args:
        name: As the camera calls it, e.g. ``BayerRG12``.
        key: Dotted name of the setting, for the message.

    Raises:
        ConfigError: If the name is not known or cannot be decoded.
    """
    if name in PIXEL_FORMATS:
        return PIXEL_FORMATS[name]
    raise ConfigError(f"{key} '{name}' cannot be decoded; use one of {', '.join(sorted(PIXEL_FORMATS))}")


def find_fourcc(code: str, *, key: str = "pixel_format") -> PixelFormat:
    """Return the format of a V4L2 code; trailing blanks may be left out.

    Raises:
        ConfigError: If the code is not known.
    """
    padded = code.ljust(4)
    if padded in FOURCC_FORMATS:
        return FOURCC_FORMATS[padded]
    raise ConfigError(f"{key} '{code}' cannot be decoded; use one of {', '.join(sorted(code.strip() for code in FOURCC_FORMATS))}")


def decode(buffer: npt.NDArray[Any], declared: PixelFormat) -> npt.NDArray[Any]:
    """Return the image of a buffer at its own depth: a 12-bit value stays the 12-bit value.

    Bayer mosaics are interpolated bilinearly at the depth of the sensor. YUV becomes BGR by ITU-R BT.601.

    Args:
        buffer: (H, W), (H, W, 1) or (H, W, C) as the camera's library hands it out, unpacked.
        declared: What it holds.

    Returns:
        (H, W) for mono, else (H, W, 3), uint8 or uint16, in the order ``declared.color``; a view of ``buffer`` where nothing had to be done.

    Raises:
        FrameError: If the buffer's dtype or shape is not that of the declared format.
    """
    image = buffer[:, :, 0] if buffer.ndim == 3 and buffer.shape[2] == 1 else buffer
    shape_is_right = image.ndim == 2 if declared.channels == 1 else image.ndim == 3 and image.shape[2] == declared.channels
    if image.dtype != declared.dtype or not shape_is_right or image.size == 0:
        layout = "(H, W)" if declared.channels == 1 else f"(H, W, {declared.channels})"
        raise FrameError(
            f"the camera sent {buffer.dtype} values of shape {buffer.shape}, {declared.name} needs {np.dtype(declared.dtype)} of shape {layout}; "
            "declare the pixel format that the camera sends"
        )
    if not declared.conversion:
        return image
    if min(image.shape[:2]) < 2 or (declared.layout == "yuv" and image.shape[1] % 2):
        raise FrameError(f"{declared.name} needs at least 2 x 2 pixels and an even width for YUV, got {image.shape[1]} x {image.shape[0]}")
    cv2 = load_opencv()
    if declared.conversion == _FULL_RANGE:
        image = _each_pixels_chroma(image, declared.luma)
    converted: npt.NDArray[Any] = cv2.cvtColor(image, getattr(cv2, declared.conversion))
    return converted


def _each_pixels_chroma(image: npt.NDArray[np.uint8], luma: int) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) Y, Cr, Cb of (H, W, 2) 4:2:2, where two neighbors share one Cb and one Cr."""
    chroma = image[:, :, 1 - luma]
    return np.dstack([image[:, :, luma], np.repeat(chroma[:, 1::2], 2, axis=1), np.repeat(chroma[:, 0::2], 2, axis=1)])
