"""The ignore mask of a product: a black and white image of the line's frames, white where nothing is judged."""

from pathlib import Path

import numpy as np

from snl_runtime.errors import CalibrationRefusedError
from snl_runtime.model.frame_range import FrameSizes, size_text
from snl_runtime.model.ignore_mask import IgnoreMask, ignore_mask_of, ignored_cells, read_ignore_mask
from snl_runtime.types import Image


def render_mask(mask: IgnoreMask) -> Image:
    """Return an image of a mask, (H, W, 3) uint8 RGB: white what is ignored, as in the file."""
    return np.repeat(((mask.values == 0) * np.uint8(255))[:, :, None], 3, axis=2)


def fit_ignore_mask(
    path: Path, sizes: FrameSizes, roi_xyxy: tuple[int, int, int, int] | None, map_hw: tuple[int, int], *, max_ignored: float
) -> IgnoreMask:
    """Return which cells of the map are judged under the mask in a file.

    Args:
        path: The image, of the size of whole frames.
        sizes: Those of the good parts.
        roi_xyxy: Inspected part of the frame; None for all of it.
        map_hw: Height and width of the map over that part.
        max_ignored: Largest share of the map that may be ignored.

    Raises:
        DataError: If the file is no ignore mask.
        CalibrationRefusedError: If it does not fit the frames, or ignores nothing, everything, or more than ``max_ignored`` of the inspected part.
    """
    ignored_px = read_ignore_mask(path)
    if sizes.any_size or len(sizes.seen_hw) > 1:
        raise CalibrationRefusedError(f"--ignore-mask {path} lies at fixed pixels and needs frames of one size; these have {sizes}")
    if ignored_px.shape != tuple(sizes.seen_hw[0]):
        raise CalibrationRefusedError(
            f"--ignore-mask {path} has {size_text((ignored_px.shape[0], ignored_px.shape[1]))} pixels, the frames have {sizes}; draw it on a frame"
        )
    left, top, right, bottom = roi_xyxy or (0, 0, ignored_px.shape[1], ignored_px.shape[0])
    ignored = ignored_cells(ignored_px[top:bottom, left:right], map_hw)
    share = float(ignored.mean())
    if share in (0.0, 1.0):
        what = "everything" if share else "no whole cell of the map"
        raise CalibrationRefusedError(f"--ignore-mask {path} ignores {what} of the inspected part; white is ignored, black is judged")
    if share > max_ignored:
        raise CalibrationRefusedError(
            f"--ignore-mask {path} ignores {100 * share:.3g} % of the inspected part, more than --max-ignored {max_ignored:g}; white is ignored: "
            "if it is not inverted, use --roi for the background, or allow it with --max-ignored"
        )
    return ignore_mask_of(ignored)
