"""What of a product's test images is not judged: the ignore mask of a file, or of a decision that was fitted under one."""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.errors import DataError
from snl_runtime.model.frame_range import FrameSizes, size_text
from snl_runtime.model.ignore_mask import IgnoreMask, ignore_mask_of, ignored_cells, read_ignore_mask
from snl_runtime.model.manifest import Decision
from snl_runtime.model.normalization_files import normalization_of, open_normalizations
from snl_runtime.types import Mask
from snl_train.data.samples import Sample


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IgnoredPart:
    """Where nothing is judged, over whole images.

    Attributes:
        ignored: (H, W) bool, True where nothing is judged: pixels of the image, or cells of a map over it.
        image_sizes: Sizes of the images that it was made for.
        source: Where it comes from, for messages.
    """

    ignored: Mask
    image_sizes: FrameSizes
    source: str

    def misfit(self, samples: Iterable[Sample], class_name: str) -> str | None:
        """Return which image of a class has another size than those that the mask was made for, None if every one fits."""
        for sample in samples:
            if sample.class_name == class_name and sample.size_hw is not None and not self.image_sizes.fits(sample.size_hw):
                return f"{sample.path} has {size_text(sample.size_hw)}, the mask is for {self.image_sizes}"
        return None

    def on(self, map_hw: tuple[int, int]) -> IgnoreMask:
        """Return the mask for maps of a size; a cell with any part that is judged is judged."""
        return _on(self, map_hw)


def ignored_part_of_file(path: Path) -> IgnoredPart:
    """Return the ignore mask in a black and white image of the size of the test images, white where nothing is judged.

    Raises:
        DataError: If the file is no ignore mask, or ignores everything.
    """
    ignored = read_ignore_mask(path)
    if ignored.all():
        raise DataError(f"{path} ignores everything; white is ignored, black is judged: invert it")
    sizes = FrameSizes(seen_hw=[(ignored.shape[0], ignored.shape[1])], any_size=False)
    return IgnoredPart(ignored=ignored, image_sizes=sizes, source=f"ignore mask {path}")


def ignored_part_of_decision(model_path: Path, decision: Decision, map_hw: tuple[int, int]) -> IgnoredPart | None:
    """Return the ignore mask that a decision was fitted under, None if it judges everything.

    Args:
        model_path: ``x.onnx`` or ``x.trt``; the mask's file lies beside it.
        decision: One that applies to the model.
        map_hw: Size of the model's maps.

    Raises:
        ManifestError: If the file is missing or altered.
    """
    if decision.ignore_mask is None:
        return None
    only_mask = dataclasses.replace(decision, normalization=None)
    factors = normalization_of(only_mask, open_normalizations(model_path, [only_mask], map_hw))
    if factors is None or factors.ignored is None:
        return None
    source = f"ignore mask {decision.ignore_mask.file} of the decision of {decision.fitted_at}"
    return IgnoredPart(ignored=factors.ignored, image_sizes=decision.frame_sizes, source=source)


@functools.lru_cache(maxsize=64)
def _on(part: IgnoredPart, map_hw: tuple[int, int]) -> IgnoreMask:
    return ignore_mask_of(ignored_cells(part.ignored, map_hw))
