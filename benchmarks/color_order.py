"""How often a frame with red and blue swapped is seen, and how often a frame in order is taken for one: the checks of the qualified input range
alone.

    python benchmarks/color_order.py --data demo/data/images --data ../shared/data/realmix --data ../shared/data/mvtec

The range of each product is fitted on ``train/good``; no model is needed. The last columns count ERROR of any kind.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snl_runtime.images.files import read_image
from snl_runtime.images.listing import list_images
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.model.frame_range import FrameRange
from snl_runtime.types import Image
from snl_runtime.verdict.frame_checks import check_frame, fit_frame_range, frame_statistics

HEADER = "| product | fitted on | good parts | swapped: ERROR color order | good: ERROR color order | bad: ERROR color order | good: any | bad: any |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, one row per product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, metavar="DIR", help="folder of products in MVTec AD layout; repeatable")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of the network's input (default: 128)")
    arguments = parser.parse_args(argv)
    print(HEADER)
    print("|---" * 8 + "|")
    for root in arguments.data:
        for product in sorted(path for path in root.iterdir() if (path / "train" / "good").is_dir()):
            print(_row(f"{root.name}/{product.name}", product, InputSpec(size_hw=(arguments.size, arguments.size))), flush=True)
    return 0


def _row(name: str, product: Path, spec: InputSpec) -> str:
    fitted = [frame_statistics(image) for image in _inputs(product / "train" / "good", spec)]
    frame_range = fit_frame_range(fitted)
    good = list(_inputs(product / "test" / "good", spec))
    kinds = [path for path in sorted((product / "test").iterdir()) if path.is_dir() and path.name != "good"]
    in_order = _codes(good, frame_range)
    bad = _codes([image for kind in kinds for image in _inputs(kind, spec)], frame_range)
    swapped = _codes([np.ascontiguousarray(image[:, :, ::-1]) for image in good], frame_range)
    counts = [_share(codes, "frame_color_order") for codes in (swapped, in_order, bad)] + [_share(codes, None) for codes in (in_order, bad)]
    return f"| {name} | {len(fitted)} | {len(good)} | {' | '.join(counts)} |"


def _inputs(folder: Path, spec: InputSpec) -> Iterator[Image]:
    for path in list_images(folder).taken:
        yield prepare(read_image(path), "rgb", spec)


def _codes(images: Sequence[Image], frame_range: FrameRange) -> list[str | None]:
    rulings = [check_frame(frame_statistics(image), frame_range) for image in images]
    return [None if ruling is None else ruling.reason_code for ruling in rulings]


def _share(codes: Sequence[str | None], code: str | None) -> str:
    """Return how many are of a code, or of any where it is None."""
    return f"{sum(found is not None if code is None else found == code for found in codes)} of {len(codes)}"


if __name__ == "__main__":
    raise SystemExit(main())
