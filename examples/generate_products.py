"""Draw three made-up products, good and defective, with natural variation and pixel-exact masks.

Writes the MVTec AD folder layout (train, test, ground_truth), a separate folder of good parts for calibration, and one lossless video per
product that passes test parts by a camera. Nothing is downloaded; the same seed gives the same pixels.

    python examples/generate_products.py --out demo/data --seed 7
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
"""(SIZE_PX, SIZE_PX, 3) float32 RGB, 0 to 255."""
Mask = npt.NDArray[np.bool_]
"""(SIZE_PX, SIZE_PX), true where the part is defective."""

SIZE_PX = 160


def _smooth_noise(rng: np.random.Generator, cells: int) -> npt.NDArray[np.float32]:
    """Return (SIZE_PX, SIZE_PX) float32 noise of unit scale whose blobs are about SIZE_PX / cells wide."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)  # (SIZE_PX, SIZE_PX)


def _place(rng: np.random.Generator, image: FloatImage, shift_px: float, turn_deg: float) -> FloatImage:
    """Shift and turn the part a little, as a conveyor does; the border continues the background."""
    center = (SIZE_PX / 2, SIZE_PX / 2)
    matrix = cv2.getRotationMatrix2D(center, float(rng.uniform(-turn_deg, turn_deg)), 1.0)
    matrix[:, 2] += rng.uniform(-shift_px, shift_px, 2)
    moved = cv2.warpAffine(image, matrix, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.float32)


def _expose(rng: np.random.Generator, image: FloatImage) -> FloatImage:
    """Vary light (6 %), its gradient across the field and sensor noise (2 gray levels)."""
    slope = np.linspace(-1, 1, SIZE_PX, dtype=np.float32) * rng.uniform(-4, 4)
    noise = rng.normal(0, 2.0, image.shape).astype(np.float32)
    return np.clip(image * rng.uniform(0.97, 1.03) + slope[None, :, None] + noise, 0, 255)


def draw_washer(rng: np.random.Generator) -> FloatImage:
    """Draw a brushed metal ring on a dark belt; the brushing turns freely, hole and rim stay."""
    yy, xx = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32) - SIZE_PX / 2
    radius, angle = np.hypot(xx, yy), np.arctan2(yy, xx)
    sheen = 18 * np.cos(2 * (angle - rng.uniform(0, np.pi))) + 5 * np.sin(radius * 1.9 + rng.uniform(0, 6))
    ring = (radius < 64) & (radius > 24)
    gray = np.where(ring, 165 + sheen, 42 + 4 * _smooth_noise(rng, 20))
    gray = np.where((np.abs(radius - 62) < 2.5) | (np.abs(radius - 26) < 2.5), gray * 0.75, gray)
    tint = np.array([1.0, 1.0, 1.02], np.float32)
    return _place(rng, (gray[..., None] * tint).astype(np.float32), 2.5, 0.0)


def draw_tile(rng: np.random.Generator) -> FloatImage:
    """Draw a glazed tile with a printed diamond grid; the glaze color and cloudiness vary."""
    yy, xx = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32)
    pitch = 26.0
    wave = np.abs(((xx + yy) / pitch) % 2 - 1) + np.abs(((xx - yy) / pitch) % 2 - 1)
    lines = np.exp(-((wave - 1.0) ** 2) / 0.02)
    base = np.array([205, 190, 165], np.float32) + rng.uniform(-5, 5, 3).astype(np.float32)
    ink = np.array([60, 85, 130], np.float32)
    image = base + 5 * _smooth_noise(rng, 6)[..., None] + lines[..., None] * (ink - base) * 0.8
    return _place(rng, image.astype(np.float32), 2.0, 1.0)


def draw_board(rng: np.random.Generator) -> FloatImage:
    """Draw a small green circuit board: traces, pads, a chip and a capacitor, each with its own tolerance."""
    image = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)
    image[:] = np.array([28, 96, 58], np.float32) + rng.uniform(-4, 4, 3)
    image += 2.5 * _smooth_noise(rng, 16)[..., None]
    for k in range(6):
        x = 24 + 22 * k
        cv2.line(image, (x, 12), (x, 60), (58, 140, 88), 3)
        cv2.line(image, (x, 60), (24 + 22 * ((k + 2) % 6), 100), (58, 140, 88), 3)
        cv2.circle(image, (x, 14), 6, (205, 190, 120), -1)
        cv2.circle(image, (x, 14), 2, (40, 40, 40), -1)
    dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
    cv2.rectangle(image, (40 + dx, 98 + dy), (104 + dx, 146 + dy), (38, 38, 42), -1)
    for k in range(6):
        cv2.rectangle(image, (44 + 10 * k + dx, 92 + dy), (48 + 10 * k + dx, 98 + dy), (190, 190, 195), -1)
    cv2.circle(image, (52 + dx, 110 + dy), 3, (80, 80, 84), -1)
    cv2.circle(image, (130, 122), 16, (185, 188, 192), -1)
    cv2.ellipse(image, (130, 122), (16, 16), 0, 200, 340, (70, 72, 90), -1)
    return _place(rng, image, 1.0, 0.5)


PRODUCTS: dict[str, Callable[[np.random.Generator], FloatImage]] = {"washer": draw_washer, "tile": draw_tile, "board": draw_board}


def _spot(rng: np.random.Generator) -> tuple[int, int]:
    """Return a point (x, y) that lies on every product, never in the washer's hole."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(36, 50)
    return int(SIZE_PX / 2 + radius * np.cos(angle)), int(SIZE_PX / 2 + radius * np.sin(angle))


def _blob(rng: np.random.Generator, center_xy: tuple[int, int], radius_px: float) -> Mask:
    """Return an irregular round area."""
    yy, xx = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32)
    distance = np.hypot(xx - center_xy[0], yy - center_xy[1])
    return (distance + 2.5 * _smooth_noise(rng, 24)) < radius_px


def add_scratch(rng: np.random.Generator, image: FloatImage) -> tuple[FloatImage, Mask]:
    """Draw a bright, slightly bent scratch with a dark edge."""
    x, y = _spot(rng)
    angle = rng.uniform(0, np.pi)
    reach = rng.uniform(18, 26)
    offset = np.array([np.cos(angle), np.sin(angle)]) * reach
    bend = np.array([-offset[1], offset[0]]) * rng.uniform(-0.25, 0.25)
    points = np.array([(x, y) - offset, (x, y) + bend, (x, y) + offset]).round().astype(np.int32)
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    cv2.polylines(mask, [points], False, 1, 4)
    core = np.zeros_like(mask)
    cv2.polylines(core, [points], False, 1, 2)
    scratched = np.where(mask[..., None] > 0, image * 0.35, image)
    return np.where(core[..., None] > 0, np.float32(248), scratched), mask > 0


def _is_bright(image: FloatImage, mask: Mask) -> bool:
    """Tell whether the part is bright below a defect, so that the defect can stand out as real ones do."""
    return bool(image[mask].mean() > 110)


def add_stain(rng: np.random.Generator, image: FloatImage) -> tuple[FloatImage, Mask]:
    """Spill a dark brown liquid on a bright place, milky flux on a dark one."""
    mask = _blob(rng, _spot(rng), rng.uniform(11, 15))
    color = np.array([52, 26, 10] if _is_bright(image, mask) else [175, 165, 140], np.float32)
    return np.where(mask[..., None], image * 0.25 + color, image), mask


def add_chip(rng: np.random.Generator, image: FloatImage) -> tuple[FloatImage, Mask]:
    """Break a piece out, so that the rough core shows, dark below a bright surface and bright below a dark one."""
    mask = _blob(rng, _spot(rng), rng.uniform(11, 15))
    grain = 26 * np.abs(rng.standard_normal((SIZE_PX, SIZE_PX, 1)).astype(np.float32))
    rough = 30 + grain if _is_bright(image, mask) else 225 - grain
    return np.where(mask[..., None], rough, image).astype(np.float32), mask


def add_foreign_body(rng: np.random.Generator, image: FloatImage) -> tuple[FloatImage, Mask]:
    """Drop a piece of red plastic on the part."""
    x, y = _spot(rng)
    box = cv2.boxPoints(((float(x), float(y)), (float(rng.uniform(12, 18)), float(rng.uniform(12, 18))), float(rng.uniform(0, 90))))
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    cv2.fillPoly(mask, [box.round().astype(np.int32)], 1)
    plastic = np.array([205, 40, 48], np.float32) + 6 * _smooth_noise(rng, 40)[..., None]
    return np.where(mask[..., None] > 0, plastic, image).astype(np.float32), mask > 0


def add_swapped_patch(rng: np.random.Generator, image: FloatImage) -> tuple[FloatImage, Mask]:
    """Cut a square out and put it back mirrored in brightness, as a wrongly printed label does."""
    x, y = _spot(rng)
    half = int(rng.integers(11, 15))
    mask = np.zeros((SIZE_PX, SIZE_PX), bool)
    mask[y - half : y + half, x - half : x + half] = True
    return np.where(mask[..., None], 255 - image[::-1, ::-1], image), mask


DEFECTS: dict[str, Callable[[np.random.Generator, FloatImage], tuple[FloatImage, Mask]]] = {
    "scratch": add_scratch,
    "stain": add_stain,
    "chip": add_chip,
    "foreign_body": add_foreign_body,
    "swapped_patch": add_swapped_patch,
}


def draw_part(product: str, defect: str | None, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], Mask]:
    """Draw one part.

    Args:
        product: A key of ``PRODUCTS``.
        defect: A key of ``DEFECTS``, or None for a good part.
        rng: Source of the variation.

    Returns:
        The image, (SIZE_PX, SIZE_PX, 3) uint8 RGB, and its defect mask, empty for a good part.
    """
    image = PRODUCTS[product](rng)
    mask: Mask = np.zeros((SIZE_PX, SIZE_PX), bool)
    if defect is not None:
        image, mask = DEFECTS[defect](rng, image)
    return _expose(rng, image).round().astype(np.uint8), mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How many parts of each product are drawn."""

    train: int = 120
    """Good parts to train on."""
    calibration: int = 320
    """Good parts to fit the threshold on, never trained on."""
    bad_per_defect: int = 6
    """Bad parts, of each kind, that show at calibration that the model sees them."""
    test_good: int = 60
    """Good parts to judge by."""
    per_defect: int = 10
    """Bad parts to judge by, of each kind."""
    line_good: int = 45
    """Good parts in the video."""
    line_per_defect: int = 3
    """Bad parts in the video, of each kind."""


def write_products(out: Path, amounts: Amounts, seed: int) -> None:
    """Write every image, mask and video below ``out``.

    ``out/images/<product>/...`` is the MVTec AD layout, ``out/calibration/<product>/`` holds the good parts for the threshold,
    ``out/bad/<product>/<kind>/`` the bad ones that prove detection, and ``out/line/<product>.avi`` the videos, with
    ``out/line/<product>.json`` telling the truth about each frame.
    """
    for number, product in enumerate(PRODUCTS):
        rng = np.random.default_rng([seed, number])
        images = out / "images" / product
        _write_good(images / "train" / "good", product, amounts.train, rng)
        _write_good(out / "calibration" / product, product, amounts.calibration, rng)
        _write_good(images / "test" / "good", product, amounts.test_good, rng)
        for defect in DEFECTS:
            for i in range(amounts.bad_per_defect):
                _save(out / "bad" / product / defect / f"{i:03d}.png", draw_part(product, defect, rng)[0])
            _write_bad(images, product, defect, amounts.per_defect, rng)
        _write_line(out / "line", product, amounts, rng)
        print(f"{product}: drawn", file=sys.stderr)


def _save(path: Path, image: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image):
        raise OSError(f"cannot write {path}")


def _write_good(folder: Path, product: str, count: int, rng: np.random.Generator) -> None:
    for i in range(count):
        _save(folder / f"{i:03d}.png", draw_part(product, None, rng)[0])


def _write_bad(images: Path, product: str, defect: str, count: int, rng: np.random.Generator) -> None:
    for i in range(count):
        image, mask = draw_part(product, defect, rng)
        _save(images / "test" / defect / f"{i:03d}.png", image)
        _save(images / "ground_truth" / defect / f"{i:03d}_mask.png", mask.astype(np.uint8) * 255)


def _write_line(folder: Path, product: str, amounts: Amounts, rng: np.random.Generator) -> None:
    parts: list[str | None] = [None] * amounts.line_good + [kind for kind in DEFECTS for _ in range(amounts.line_per_defect)]
    order = [parts[int(i)] for i in rng.permutation(len(parts))]
    folder.mkdir(parents=True, exist_ok=True)
    # FFV1 is lossless: frames of the line score as the calibration images do.
    writer = cv2.VideoWriter(str(folder / f"{product}.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 10.0, (SIZE_PX, SIZE_PX))
    if not writer.isOpened():
        raise OSError(f"cannot write {folder / product}.avi: this OpenCV has no FFV1 encoder")
    for defect in order:
        writer.write(np.ascontiguousarray(draw_part(product, defect, rng)[0][..., ::-1]))
    writer.release()
    (folder / f"{product}.json").write_text(json.dumps([kind or "good" for kind in order]), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=7, help="same seed, same pixels (default: 7)")
    parser.add_argument("--train", type=int, default=Amounts().train, help="good parts to train on, of each product (default: 120)")
    parser.add_argument("--calibration", type=int, default=Amounts().calibration, help="good parts for the threshold, of each product (default: 320)")
    arguments = parser.parse_args(argv)
    write_products(arguments.out, Amounts(train=arguments.train, calibration=arguments.calibration), arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
