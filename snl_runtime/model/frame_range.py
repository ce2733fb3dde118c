"""What frames of good parts were like when a product was calibrated: their sizes and their look."""

from dataclasses import dataclass

from snl_runtime.errors import ManifestError


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSizes:
    """The sizes of whole frames, before the ROI, that a product was calibrated on.

    Attributes:
        seen_hw: Height and width in pixels, sorted, each once.
        any_size: Whether every frame fits whose height, width and aspect each lie within what was seen; else only the sizes that were seen.
    """

    seen_hw: list[tuple[int, int]]
    any_size: bool

    def __post_init__(self) -> None:
        if not self.seen_hw or min(min(size) for size in self.seen_hw) < 1 or self.seen_hw != sorted(set(self.seen_hw)):
            raise ManifestError(f"frame sizes must be pairs of positive numbers (height, width), sorted and each once, got {self.seen_hw}")

    def fits(self, frame_hw: tuple[int, int]) -> bool:
        """Return whether a frame of this height and width may be judged."""
        if not self.any_size:
            return tuple(frame_hw) in self.seen_hw
        seen, given = [(height, width, width / height) for height, width in self.seen_hw], (*frame_hw, frame_hw[1] / frame_hw[0])
        return all(min(values) <= value <= max(values) for value, values in zip(given, zip(*seen)))

    def __str__(self) -> str:
        """Return the sizes as people write them, width first."""
        if self.any_size and len(self.seen_hw) > 1:
            smallest, largest = (bound(height for height, _ in self.seen_hw) for bound in (min, max))
            narrowest, widest = (bound(width for _, width in self.seen_hw) for bound in (min, max))
            aspects = [width / height for height, width in self.seen_hw]
            return f"width {narrowest} to {widest}, height {smallest} to {largest}, width / height {min(aspects):.4g} to {max(aspects):.4g}"
        shown = ", ".join(size_text(size) for size in self.seen_hw[:4])
        return f"{shown} and {len(self.seen_hw) - 4} more" if len(self.seen_hw) > 4 else shown


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRange:
    """What frames of good parts looked like when the product was calibrated, already widened; a frame outside is not judged.

    Attributes:
        mean: Lowest and highest mean, gray levels.
        deviation: Lowest and highest standard deviation, gray levels.
        white_share: Lowest and highest share of saturated pixels, 0 to 1.
        black_share: Lowest and highest share of black pixels, 0 to 1.
        red_blue: Lowest and highest mean of red less blue, gray levels, negative where blue prevails.
        green: Lowest and highest mean of green less the mean of red and blue, gray levels.
        reddish_share: Lowest and highest share of pixels whose red is at least 4 levels above their blue, 0 to 1.
        bluish_share: The same the other way round.
        red_share: Lowest and highest share of pixels whose red is at least 16 levels above their blue, 0 to 1.
        blue_share: The same the other way round.
    """

    mean: tuple[float, float]
    deviation: tuple[float, float]
    white_share: tuple[float, float]
    black_share: tuple[float, float]
    red_blue: tuple[float, float]
    green: tuple[float, float]
    reddish_share: tuple[float, float]
    bluish_share: tuple[float, float]
    red_share: tuple[float, float]
    blue_share: tuple[float, float]


def size_text(size_hw: tuple[int, int]) -> str:
    """Return a height and width as people write it, ``640x480``: width first."""
    return f"{size_hw[1]}x{size_hw[0]}"
