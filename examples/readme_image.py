"""Draws the image of the README: parts of the demo, each beside its verdict.

make demo
python examples/readme_image.py --demo demo --out docs/images/verdicts.png
"""

import argparse
from pathlib import Path

import numpy as np

from snl_runtime import SnlDetector, read_image, render_overlay, write_image

PARTS = (("board", "good"), ("board", "foreign_body"), ("washer", "good"), ("washer", "chip"), ("tile", "scratch"))
"""Product and kind of part, left to right."""
GAP_PX = 6
LEVEL_STEP = 16
"""Gray levels are rounded to multiples of this: noise does not compress, and the file is part of the repository."""


def draw(demo: Path) -> np.ndarray:
    """Return two rows of images, (H, W, 3) uint8 RGB: the parts, and below them heat map, regions and verdict."""
    columns = []
    with SnlDetector(demo / "line.onnx") as detector:
        for product, kind in PARTS:
            image_rgb = read_image(min((demo / "data" / "images" / product / "test" / kind).iterdir()))
            shown = render_overlay(image_rgb, detector.detect(image_rgb, color="rgb", product=product))
            columns.append(np.concatenate([image_rgb, np.full((GAP_PX, image_rgb.shape[1], 3), 255, np.uint8), shown]))
    height = max(len(column) for column in columns)
    padded = [np.pad(column, ((0, height - len(column)), (0, GAP_PX), (0, 0)), constant_values=255) for column in columns]
    columns = np.concatenate(padded, axis=1)[:, :-GAP_PX].astype(np.uint16)
    return np.minimum((columns + LEVEL_STEP // 2) // LEVEL_STEP * LEVEL_STEP, 255).astype(np.uint8)


def main() -> None:
    """Draw and write the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder that make demo wrote (default: demo)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/verdicts.png"), help="PNG to write")
    arguments = parser.parse_args()
    write_image(arguments.out, draw(arguments.demo))


if __name__ == "__main__":
    main()
