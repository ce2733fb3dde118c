"""What a manifest is made of: files of decisions, evidence, reference samples, engines, and comparisons of a file with what it must score like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snl_runtime.config import ADDED_LATER
from snl_runtime.errors import ConfigError, ManifestError
from snl_runtime.images.views import Tiles, Views, tile_views
from snl_runtime.text import printable

NOT_VERIFIED = "not verified on a device"
"""What is said of an engine that has not run where it is meant to run."""

_INPUT_KEYS = frozenset({"name", "dtype", "layout", "color", "size_hw", "batch", "max_batch"})
_HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Proof that the model sees defects at the fitted threshold; a false-reject bound alone is met by a blind model.

    Attributes:
        source: ``bad images`` or ``synthetic defects``.
        counts: Defect kind -> (detected, total).
        detection_rate: Detected over total, all kinds.
        min_detection: Rate below which nothing would have been written.
    """

    source: str
    counts: dict[str, tuple[int, int]]
    detection_rate: float
    min_detection: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationFile:
    """The normalization map of a fixed-pose product, in a file beside the manifest.

    Attributes:
        file: Its name; it holds part of the hash, so that a later fit leaves the files of earlier decisions alone.
        sha256: Its hash.
        highest: Its largest normalization, which bounds how far a difference of the map moves the normalized score.
    """

    file: str
    sha256: str
    highest: float

    def __post_init__(self) -> None:
        check_listed_file(self.file, self.sha256)
        if not self.highest > 0:
            raise ManifestError(f"must give the largest normalization of '{self.file}', above 0, got {self.highest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoreMaskFile:
    """The ignore mask of a product, in a file beside the manifest.

    Attributes:
        file: Its name; it holds part of the hash, as that of a normalization map does.
        sha256: Its hash.
        ignored_share: Share of the cells of the map that are not judged, above 0 and below 1.
    """

    file: str
    sha256: str
    ignored_share: float

    def __post_init__(self) -> None:
        check_listed_file(self.file, self.sha256)
        if not 0 < self.ignored_share < 1:
            raise ManifestError(f"must give the share of the map that '{self.file}' ignores, above 0 and below 1, got {self.ignored_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """The grid of tiles in which a product is inspected, over the inspected part of its frames, and whether the whole part is seen beside them.

    Attributes:
        tile_px: Side of a tile in frame pixels.
        overlap_px: Least overlap of neighboring tiles in frame pixels.
        map_hw: Height and width that the part is resized to before it is cut, and of the merged map.
        count: How often the network runs for a frame: its tiles, and one more for the whole of it.
        with_whole_frame: Whether the whole part, reduced to the network's input, is seen beside its tiles; false in a decision from before that was
            possible.
    """

    tile_px: int
    overlap_px: int
    map_hw: tuple[int, int]
    count: int
    with_whole_frame: bool = field(default=False, metadata=ADDED_LATER)

    def __str__(self) -> str:
        return f"{self.count - self.with_whole_frame} tiles of {self.tile_px} px{' and as a whole' if self.with_whole_frame else ''}"

    def views(self, network_hw: tuple[int, int]) -> Views:
        """Return the views that it stands for.

        Args:
            network_hw: Height and width of the network's input.

        Raises:
            ManifestError: If the grid is none for this network.
        """
        try:
            # The part that fills the map exactly: resizing it again changes nothing.
            part_hw = [length * self.tile_px / network_hw[0] for length in self.map_hw]
            views = tile_views((part_hw[0], part_hw[1]), network_hw, Tiles(self.tile_px, self.overlap_px, self.with_whole_frame))
        except ConfigError as error:
            raise ManifestError(f"lists a grid of tiles that the network cannot have: {error}") from error
        if (views.map_hw, views.count) != (tuple(self.map_hw), self.count):
            expected = f"expected {views.count} views over {views.map_hw}"
            raise ManifestError(f"lists frames of {tuple(self.map_hw)} pixels seen in {self}, which are {self.count} views, {expected}")
        return views


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSample:
    """What good parts measured at calibration; drift on the line is judged against it. Each list is sorted by itself.

    Attributes:
        scores: Anomaly scores as they are compared with the thresholds; empty on an engine, whose scores are not those of the file that was fitted.
        brightness: Mean of the green channel of the inspected part, gray levels.
        sharpness: Mean step between neighboring pixels relative to the brightness.
    """

    scores: list[float]
    brightness: list[float]
    sharpness: list[float]

    def __post_init__(self) -> None:
        for name in ("scores", "brightness", "sharpness"):
            values = getattr(self, name)
            if values != sorted(values):
                raise ManifestError(f"the {name} of a reference sample must be sorted")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionChange:
    """How a decision came into force: who wrote it, when, and against which objections.

    Attributes:
        written_at: When, ISO 8601 with offset; of a decision that was taken up again later than its ``fitted_at``.
        written_by: Name of the person.
        reverted_to: Number in the history of the decision that this one repeats, counted from 1; None for a new fit.
        accepted_lenient: Why it may be more lenient than the decision before, in the words of that person; None if it is not.
        accepted_passes: Names of images that must not pass and that it passes all the same, for the same reason.
        kept_from: Hash of the file that it was fitted on, where a product was added to the model since and the scores of this one were found to be
            the same; None otherwise.
    """

    written_at: str
    written_by: str
    reverted_to: int | None = None
    accepted_lenient: str | None = None
    accepted_passes: list[str] = field(default_factory=list)
    kept_from: str | None = field(default=None, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """How far one file's scores lie from its reference.

    Attributes:
        subject_file: Name of the file that was tested.
        subject_sha256: Its hash.
        reference: What it was compared with.
        frames_source: ``--frames DIR`` or ``golden crops, flips and noise``.
        frame_count: Frames compared.
        score_max_abs: Largest difference of a score.
        score_p99_abs: 99th percentile of the same.
        map_max_abs: Largest difference of a map value.
        map_p99_abs: 99th percentile of the same.
        map_scale: Largest map value of the reference.
        map_correlation_min: Lowest Pearson correlation of a frame's map with the reference's; None in a report from before it was measured.
        map_correlation_median: Median of the same over the frames.
        tolerance: Allowed difference relative to the largest map value of the frame.
        auroc_drift: Difference of image AUROC, None without labels.
        flips: Frames whose verdict changes between PASS and REJECT at the shipped thresholds.
        guard_band: Largest difference of a score as the line compares it, by which an engine's inherited thresholds are tightened; None for an ONNX
            file, which inherits none.
        more_lenient: Verdicts under the tightened thresholds that are more lenient than the reference's; they must be none.
        passed_by_reference: PASS verdicts of the reference, one per frame and decision.
        refused_by_guard_band: How many of them are not PASS under the tightened thresholds: what the guard band costs.
        passed: Whether the gate let the file through.
        failures: Why not, one sentence each.
        verified_on: Device, backends and versions, or ``not verified on a device``.
        created_at: When, ISO 8601 with offset.
    """

    subject_file: str
    subject_sha256: str
    reference: str
    frames_source: str
    frame_count: int
    score_max_abs: float
    score_p99_abs: float
    map_max_abs: float
    map_p99_abs: float
    map_scale: float
    map_correlation_min: float | None = field(default=None, metadata=ADDED_LATER)
    map_correlation_median: float | None = field(default=None, metadata=ADDED_LATER)
    tolerance: float
    auroc_drift: float | None
    flips: int
    guard_band: float | None
    more_lenient: int
    passed_by_reference: int
    refused_by_guard_band: int
    passed: bool
    failures: list[str]
    verified_on: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """One engine that was built from the ONNX of this manifest.

    Attributes:
        file: Name of the engine file.
        sha256: Its hash.
        library: ``tensorrt`` or ``tensorrt-rtx``.
        library_version: Version that built it and alone can load it.
        compute_capability: GPUs it was built for, e.g. ``["8.9"]``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        built_at: When, ISO 8601 with offset.
        parity: Comparison with the ONNX, None if not made yet: then the engine has no threshold.
        options: Builder options, plain values.
        onnx_sha256: Hash of the ONNX it was built from; ``Manifest.with_engine`` fills it in.
    """

    file: str
    sha256: str
    library: str
    library_version: str
    compute_capability: list[str]
    precision: str
    built_at: str
    parity: ParityReport | None
    options: dict[str, Any] = field(default_factory=dict)
    onnx_sha256: str = ""


def check_listed_file(name: str, sha256: str) -> None:
    """Raise ManifestError unless the name is one of a file beside the manifest and the hash looks like one."""
    if not name or name != Path(name).name or "\\" in name or not printable(name).isprintable():
        raise ManifestError(f"lists '{name}', which is not a plain file name")
    if len(sha256) != 64 or not _HEX_DIGITS.issuperset(sha256):
        raise ManifestError(f"must give 64 lower-case hexadecimal digits for '{name}', got '{sha256}'")


def check_input(spec: dict[str, Any]) -> None:
    """Raise ManifestError unless this is the input of a network that this version runs."""
    if set(spec) != _INPUT_KEYS:
        odd = sorted(set(spec) ^ _INPUT_KEYS)
        raise ManifestError(f"'input' must have exactly the keys {', '.join(sorted(_INPUT_KEYS))}; wrong or missing: {', '.join(odd)}")
    fixed = {"dtype": "uint8", "layout": "NHWC", "color": "rgb"}
    for key, value in fixed.items():
        if spec[key] != value:
            raise ManifestError(f"'input.{key}' must be {value}, got {spec[key]!r}")
    size_hw = spec["size_hw"]
    if not isinstance(size_hw, (list, tuple)) or len(size_hw) != 2 or not all(_is_positive(value) for value in size_hw):
        raise ManifestError(f"'input.size_hw' must be [height, width], got {size_hw!r}")
    if spec["batch"] != "dynamic" and not _is_positive(spec["batch"]):
        raise ManifestError(f"'input.batch' must be \"dynamic\" or a positive number, got {spec['batch']!r}")
    if not _is_positive(spec["max_batch"]):
        raise ManifestError(f"'input.max_batch' must be a positive number, got {spec['max_batch']!r}")


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0
