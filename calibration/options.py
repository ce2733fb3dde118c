"""What a calibration promises, and on what evidence."""

import math
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.errors import ConfigError
from snl_runtime.types import BIT_DEPTHS

_FLAGS = {"roi_xyxy": "roi", "tile_px": "tile", "overlap_px": "overlap"}
"""Fields whose option has another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What is promised, and on what evidence."""

    max_frr: float = 0.01
    """Largest share of good parts that may score above the pass threshold, above 0 and below 1."""
    confidence: float = 0.95
    """Probability that the promise holds, over repeated samples of good parts; above 0 and below 1."""
    product: str | None = None
    """Fit this product only; None fits every product found."""
    held_out: bool = False
    """Take the good images from the manifest's held-out list; the folder is then the training data's root."""
    bad: Path | None = None
    """Folder of bad images, one sub-folder per kind, below a folder per product where several are fitted; None draws synthetic defects."""
    min_detection: float = 0.5
    """Share of the bad images or synthetic defects that must score above the pass threshold, above 0 and at most 1."""
    review_band: float = 0.0
    """Scores up to (1 + review_band) times the pass threshold are REVIEW instead of REJECT."""
    valid_days: float | None = None
    """Days until the decision expires; None never."""
    accept_outliers: tuple[str, ...] = ()
    """Names of good images that may score beyond median + 6 MAD because a person looked at them."""
    fixed_pose: bool = False
    """The part always lies in the same pose: fit a normalization map, which lowers the anomaly map where good parts score high."""
    roi_xyxy: tuple[int, int, int, int] | None = None
    """Part of the frame that is inspected: left, top, right, bottom in pixels, right and bottom exclusive."""
    ignore_mask: Path | None = None
    """Image of the size of the frames, white where nothing is judged; for one product. None judges all of the inspected part."""
    max_ignored: float = 0.25
    """Largest share of the inspected part that the ignore mask may hide, from 0 to below 1."""
    tile_px: int | None = None
    """Side in frame pixels of the tiles in which frames are inspected; 0 to inspect them as a whole, None as the model was trained."""
    overlap_px: int | None = None
    """Least overlap of neighboring tiles in frame pixels; None as the model was trained, 32 if that was on whole frames."""
    with_whole_frame: bool | None = None
    """Inspect the whole frame, reduced to the network's input, beside its tiles; None as the model was trained."""
    mm_per_px: float | None = None
    """Millimeters per pixel of the frame, for areas in mm2; None for areas in pixels only."""
    any_size: bool = False
    """Allow every frame whose height, width and aspect each lie within what the good images have; else only their very sizes."""
    bit_depth: int | None = None
    """Bits that a value of the images uses: 8, or of 16-bit files 10, 12, 14 or 16; None for 8 or 16, whichever the files have."""
    backend: str | None = None
    """Backend that scores; None chooses by the file's suffix."""
    device: str | None = None
    """Device as the backend names it, which should be the line's; None for its default."""
    must_reject: Path | None = None
    """Folder of images that must not pass under the new decision, e.g. archived rejects; None for none."""
    max_loosening: float = 0.1
    """How far the pass threshold may rise above the current one, as a share of it, before a person must accept it; at least 0."""
    accept_lenient: str | None = None
    """Why the new decision may be more lenient than that, or pass images that must not; kept in the manifest. None accepts nothing."""
    written_by: str = ""
    """Who calibrates, kept in the manifest; empty for the name of the account."""
    defects_per_kind: int = 60
    """How many synthetic defects of each kind are scored, at most one per good image."""
    seed: int = 0
    """Fixes the synthetic defects."""

    def __post_init__(self) -> None:
        for name, is_valid, expected in (
            ("max_frr", 0 < self.max_frr < 1, "above 0 and below 1"),
            ("confidence", 0 < self.confidence < 1, "above 0 and below 1"),
            ("min_detection", 0 < self.min_detection <= 1, "above 0 and at most 1"),
            ("review_band", 0 <= self.review_band <= 10, "from 0 to 10"),
            ("valid_days", self.valid_days is None or 0 < self.valid_days <= 36500, "above 0 and at most 36500"),
            ("defects_per_kind", self.defects_per_kind >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("max_loosening", 0 <= self.max_loosening < math.inf, "at least 0"),
            ("accept_lenient", self.accept_lenient is None or self.accept_lenient.strip() != "", "a reason in words"),
            ("bit_depth", self.bit_depth in (None, *BIT_DEPTHS), f"one of {', '.join(map(str, BIT_DEPTHS))}"),
            ("max_ignored", 0 <= self.max_ignored < 1, "from 0 to below 1"),
            ("tile_px", self.tile_px in (None, 0) or self.tile_px >= 16, "at least 16, or 0 for whole frames"),
            ("overlap_px", self.overlap_px is None or self.overlap_px >= 0, "at least 0"),
            ("mm_per_px", self.mm_per_px is None or 0 < self.mm_per_px < math.inf, "above 0"),
            ("roi_xyxy", _is_box(self.roi_xyxy), "left,top,right,bottom with 0 <= left < right and 0 <= top < bottom"),
        ):
            if not is_valid:
                flag, value = _FLAGS.get(name, name), getattr(self, name)
                raise ConfigError(f"--{flag.replace('_', '-')} must be {expected}, got {value}")


def _is_box(roi_xyxy: tuple[int, int, int, int] | None) -> bool:
    if roi_xyxy is None:
        return True
    left, top, right, bottom = roi_xyxy
    return 0 <= left < right and 0 <= top < bottom
