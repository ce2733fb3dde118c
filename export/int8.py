"""The INT8 step of an export: quantize the backbone of the fp32 file that was just written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from snl_calibration.quantize import DEFAULT_PARTS, PARTS, BackbonePart, calibration_images, quantize_backbone
from snl_runtime.errors import ConfigError
from snl_runtime.progress import ProgressReporter, no_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """What is quantized, and on which images its ranges are collected.

    Attributes:
        calib_data: Folder of good images.
        parts: Networks whose convolutions run in INT8.
        threads: CPU threads for collecting ranges; None for the library's default.
    """

    calib_data: Path
    parts: Sequence[BackbonePart] = DEFAULT_PARTS
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError(f"--int8-parts must name at least one of {', '.join(PARTS)}")
        calibration_images(self.calib_data)  # a wrong folder shows before the export starts


def parse_parts(text: str) -> tuple[BackbonePart, ...]:
    """Return the parts that ``teacher,student`` names, in the order of the network.

    Raises:
        ConfigError: If a name is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ConfigError(f"--int8-parts must be among {', '.join(PARTS)}, got {unknown[0]!r}")
    return tuple(part for part in PARTS if part in names)


def quantize_file(
    path: Path, options: Int8Options, bit_depth: int | None = None, *, progress: ProgressReporter = no_progress
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the quantized model of an fp32 export, and what the manifest says about it.

    Raises:
        ConfigError: If the graph has no convolution of these parts.
        DataError: If an image cannot be read.
    """
    result = quantize_backbone(
        onnx.load(path),
        calibration_images(options.calib_data),
        parts=options.parts,
        threads=options.threads,
        bit_depth=bit_depth,
        progress=progress,
    )
    plain = {
        "int8_parts": list(options.parts),
        "int8_convolutions": result.convolution_count,
        "calibration_image_count": result.image_count,
        "calibration_sha256": result.images_sha256,
    }
    return result.model, plain
