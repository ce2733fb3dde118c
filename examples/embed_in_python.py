"""A host program with its own camera loop that asks SnlDetector for a verdict per part.

    python examples/embed_in_python.py demo/line.onnx washer parts/*.png

Everything but PASS stops the part: REVIEW and REJECT because of what was seen, ERROR because nothing reliable was.
"""

import sys
from pathlib import Path

import cv2

from snl_runtime import SnlDetector, Verdict


def inspect(model: str, product: str, paths: list[str]) -> int:
    """Print one line per image and return how many parts were stopped."""
    stopped = 0
    with SnlDetector(model) as detector:  # opens the model, checks its golden samples, refuses what was altered
        for path in paths:
            frame = cv2.imread(path)  # any BGR frame of your camera; None if it could not be read: that becomes ERROR
            result = detector.detect(frame, color="bgr", product=product)
            stopped += result.verdict is not Verdict.PASS
            print(f"{Path(path).name}: {result.verdict.value} score {result.score:.3f} threshold {result.threshold:.3f} ({result.reason})")
            for region in result.regions:
                print(f"    region {region.box_xyxy}, {region.area_px} px, score {region.score:.3f}")
    return stopped


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/embed_in_python.py MODEL PRODUCT IMAGE [IMAGE ...]")
    sys.exit(0 if inspect(sys.argv[1], sys.argv[2], sys.argv[3:]) == 0 else 4)
