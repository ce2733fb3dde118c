"""Evidence that a threshold finds defects: without it, a model that sees nothing keeps every false-reject promise."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snl_runtime.errors import CalibrationRefusedError, DataError
from snl_runtime.images.files import pixel_sha256, read_image
from snl_runtime.images.labels import is_good_name
from snl_runtime.images.listing import Listing, list_images
from snl_runtime.images.preprocess import resize
from snl_runtime.model.manifest import Evidence, Manifest
from snl_runtime.progress import ProgressReporter, Steps, no_progress
from snl_runtime.types import Image

from .options import CalibrationOptions
from .sample import GoodPart, ProductSample
from .synthetic_defects import DEFECT_KINDS, add_defect
from .thresholds import ThresholdFit, binomial_upper_tail

BAD_IMAGES = "bad images"
SYNTHETIC_DEFECTS = "synthetic defects"
CHANCE_LEVEL = 0.05
"""A detection rate that a blind model reaches with at least this probability is no evidence."""

THUMBNAIL_PX = 192

Score = Callable[[Image, Path], float]
"""Scores one frame; the path is for error messages."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Hardest:
    """The lowest-scoring defect of a kind: what the model sees worst.

    Attributes:
        name: File it lies on.
        score: Its score.
        thumbnail: (h, w, 3) uint8 RGB, at most 192 px.
    """

    name: str
    score: float
    thumbnail: Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """Evidence with an image per kind for people who look at it."""

    evidence: Evidence
    hardest: dict[str, Hardest]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPart:
    """One image of a bad part; ``kind`` is the name of its sub-folder, ``bad`` if it lies in none."""

    kind: str
    path: Path


def find_bad_parts(bad: Path, product: str, on_listed: Callable[[Listing], None] = lambda _: None) -> list[BadPart]:
    """Return the bad parts of a product: ``bad/<product>`` if there is such a folder, else ``bad`` itself; one sub-folder per kind.

    A sub-folder ``good`` (or ``ok``, ``normal``, ...) is left out, so that the ``test`` folder of a data set can be given as it is.

    Raises:
        DataError: If there is no folder or no image in it, or one cannot be taken.
    """
    folder = bad / product if (bad / product).is_dir() else bad
    if not folder.is_dir():
        raise DataError(f"{bad} is not a folder; --bad needs a folder of bad images, one sub-folder per kind")
    listing = list_images(folder)
    on_listed(listing)
    parts = [BadPart(kind=_kind(path.relative_to(folder)), path=path) for path in listing.require_all().taken]
    splits = sorted({part.kind for part in parts if part.kind.lower() in ("train", "test", "ground_truth")})
    if splits:
        raise DataError(f"{folder} holds {' and '.join(splits)} of a dataset; name the folder of its bad images, e.g. {folder / 'test'}")
    parts = [part for part in parts if not is_good_name(part.kind)]
    if not parts:
        raise DataError(f"{folder} holds no image of a bad part, neither directly nor in a sub-folder per kind")
    return sorted(parts, key=lambda part: part.path.parent != folder)  # those without a kind first


def _kind(relative: Path) -> str:
    return relative.parts[0] if len(relative.parts) > 1 else "bad"


def collect_from_bad_images(
    score: Score,
    parts: Sequence[BadPart],
    sample: ProductSample,
    manifest: Manifest,
    fit: ThresholdFit,
    min_detection: float,
    *,
    progress: ProgressReporter = no_progress,
) -> Detection:
    """Return how many bad parts score above the pass threshold, per kind.

    Raises:
        CalibrationRefusedError: If a bad image has the pixels of a good or a training image.
        DataError: If a file cannot be read.
    """
    good = {part.sha256: part.name for part in sample.parts} | dict.fromkeys(manifest.training_image_sha256, "a training image")

    def frames() -> Iterator[tuple[str, Image, Path]]:
        for part in parts:
            image = read_image(part.path, sample.bit_depth)
            reference = good.get(pixel_sha256(image))
            if reference is not None:
                raise CalibrationRefusedError(f"bad image {part.path} has the pixels of {reference}, which counts as good; remove one of them")
            yield part.kind, image, part.path

    with progress(len(parts), unit="images", label=_label(sample)) as steps:
        counts, hardest = _count(score, frames(), fit.pass_threshold, steps)
    return Detection(evidence=_summarize(BAD_IMAGES, counts, min_detection), hardest=hardest)


def collect_from_synthetic_defects(
    score: Score,
    sample: ProductSample,
    fit: ThresholdFit,
    options: CalibrationOptions,
    *,
    progress: ProgressReporter = no_progress,
) -> Detection:
    """Return how many synthetic defects score above the pass threshold, per kind.

    They are put on the calibration images themselves, evenly spread over the sample. That flatters the model a little, because these are the frames
    the threshold was fitted on, and it says nothing about real defects of other looks: evidence against blindness, not a detection rate to quote.

    Args:
        score: Scores one frame.
        sample: Good parts with pixel hashes.
        fit: The threshold in question.
        options: How many defects of each kind (at most one per good image), in which part of the frame, and the seed, which fixes every defect
            together with the frame's pixels and the kind. ``min_detection`` is stored with the evidence.
        progress: Told how many defects are scored.
    """
    chosen = _evenly(sample.parts, options.defects_per_kind)

    def frames() -> Iterator[tuple[str, Image, Path]]:
        for part in chosen:
            image = read_image(part.path, sample.bit_depth)
            for kind in DEFECT_KINDS:
                rng = np.random.default_rng([options.seed, zlib.crc32(kind.encode()), int(part.sha256[:8], 16)])
                yield kind, add_defect(image, kind, rng, options.roi_xyxy).image, part.path

    with progress(len(chosen) * len(DEFECT_KINDS), unit="images", label=_label(sample)) as steps:
        counts, hardest = _count(score, frames(), fit.pass_threshold, steps)
    return Detection(evidence=_summarize(SYNTHETIC_DEFECTS, counts, options.min_detection), hardest=hardest)


def require_detection(evidence: Evidence, fit: ThresholdFit) -> None:
    """Refuse a threshold that finds too few defects, or no more than a model that scores at random.

    A blind model whose scores are noise exceeds the threshold with a share of ``max_frr`` of anything, so a loose promise makes it look able to see
    defects.

    Raises:
        CalibrationRefusedError: With the counts per kind.
    """
    per_kind = ", ".join(f"{kind} {detected}/{total}" for kind, (detected, total) in evidence.counts.items())
    if evidence.detection_rate < evidence.min_detection:
        raise CalibrationRefusedError(
            f"only {_percent(evidence.detection_rate)} of the {evidence.source} score above the pass threshold {fit.pass_threshold:.6g}, "
            f"expected {_percent(evidence.min_detection)} ({per_kind}); the model does not see them: train it longer or on larger images"
        )
    detected, total = (sum(count[i] for count in evidence.counts.values()) for i in (0, 1))
    if binomial_upper_tail(detected, total, fit.max_frr) > CHANCE_LEVEL:
        raise CalibrationRefusedError(
            f"{detected} of {total} {evidence.source} above the pass threshold is what a blind model may reach at "
            f"--max-frr {fit.max_frr:g} ({per_kind}); give more bad images or lower --max-frr"
        )


def thumbnail(image_rgb: Image, side_px: int = THUMBNAIL_PX) -> Image:
    """Return the image shrunk to at most ``side_px``, its proportions kept."""
    height, width = image_rgb.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    return resize(image_rgb, (max(1, round(height * scale)), max(1, round(width * scale))))


def _count(
    score: Score, frames: Iterable[tuple[str, Image, Path]], pass_threshold: float, steps: Steps
) -> tuple[dict[str, tuple[int, int]], dict[str, Hardest]]:
    counts: dict[str, tuple[int, int]] = {}
    hardest: dict[str, Hardest] = {}
    for kind, image, path in frames:
        value = score(image, path)
        detected, seen = counts.get(kind, (0, 0))
        counts[kind] = (detected + (value > pass_threshold), seen + 1)
        if kind not in hardest or value < hardest[kind].score:
            hardest[kind] = Hardest(name=path.name, score=value, thumbnail=thumbnail(image))
        steps.advance()
    return counts, hardest


def _label(sample: ProductSample) -> str:
    return f"{sample.product}: score defects"


def _summarize(source: str, counts: dict[str, tuple[int, int]], min_detection: float) -> Evidence:
    detected, total = (sum(count[i] for count in counts.values()) for i in (0, 1))
    return Evidence(source=source, counts=counts, detection_rate=detected / total, min_detection=min_detection)


def _evenly(parts: Sequence[GoodPart], count: int) -> list[GoodPart]:
    if len(parts) <= count:
        return list(parts)
    return [parts[position * len(parts) // count] for position in range(count)]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
