"""What is known about a model file: hashes, inputs, parity reports, engines and decisions. ``x.json`` is read and written here only."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snl_runtime.errors import ManifestError
from snl_runtime.files import atomic_write_text, sha256_bytes
from snl_runtime.frame_range import FrameRange, FrameSizes
from snl_runtime.manifest_codec import ADDED_LATER, canonical_json, from_plain, parse_json, to_plain
from snl_runtime.types import BIT_DEPTHS

SCHEMA = 1
"""Schema number that this version reads and writes."""

NOT_VERIFIED = "not verified on a device"
"""What is said of an engine that has not run where it is meant to run."""

_INPUT_KEYS = frozenset({"name", "dtype", "layout", "color", "size_hw", "batch", "max_batch"})
_UNHASHED_KEYS = ("self_sha256", "signature")
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
class GainFile:
    """The gain map of a fixtured product, in a file beside the manifest.

    Attributes:
        file: Its name; it holds part of the hash, so that a later fit leaves the files of earlier decisions alone.
        sha256: Its hash.
    """

    file: str
    sha256: str

    def __post_init__(self) -> None:
        _check_listed_file(self.file, self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The thresholds of one product, fitted on one file.

    Attributes:
        product: Name of the product.
        model_sha256: Hash of the file that scored the sample; the decision applies to no other file but engines that passed parity with it.
        pass_threshold: Highest score that passes; with ``gain``, of the gained map.
        reject_threshold: Highest score that is reviewed; equal to ``pass_threshold`` without a review band.
        floor: Score below which nothing passes, half of the lowest score of the sample.
        frame_sizes: Sizes that whole frames may have.
        bit_depth: Bits that a value of a frame uses: 8, or of 16-bit frames 10, 12, 14 or 16.
        frame_range: What frames may look like.
        roi_xyxy: Inspected part in frame pixels, None for the whole frame.
        sample_count: Good frames in the fit.
        sample_sha256: Hash over the pixel hashes of the sample.
        max_frr: Promised bound on the share of good parts that do not pass.
        confidence: Confidence of that promise.
        bound: The promise in one sentence.
        evidence: Evidence of detection.
        accepted_outliers: Names of outlying frames that a person accepted.
        backend: Backend that scored the sample, with its device where that also prepared the frames.
        fitted_at: When, ISO 8601 with offset.
        expires_at: When the decision ends, None for never.
        tool_version: snl-edge version that fitted.
        gain: Where the gain map is that raw maps are multiplied with before they are judged; None for a product that is judged by its raw maps.
    """

    product: str
    model_sha256: str
    pass_threshold: float
    reject_threshold: float
    floor: float
    frame_sizes: FrameSizes
    bit_depth: int
    frame_range: FrameRange
    roi_xyxy: tuple[int, int, int, int] | None
    sample_count: int
    sample_sha256: str
    max_frr: float
    confidence: float
    bound: str
    evidence: Evidence
    accepted_outliers: list[str]
    backend: str
    fitted_at: str
    expires_at: str | None
    tool_version: str
    gain: GainFile | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if not (0 <= self.floor <= self.pass_threshold <= self.reject_threshold):
            raise ManifestError(
                f"the decision for '{self.product}' must satisfy 0 <= floor <= pass_threshold <= reject_threshold, "
                f"got {self.floor}, {self.pass_threshold}, {self.reject_threshold}"
            )
        if self.bit_depth not in BIT_DEPTHS:
            raise ManifestError(f"the bit depth of '{self.product}' must be one of {', '.join(map(str, BIT_DEPTHS))}, got {self.bit_depth}")


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
        flips: Verdicts that differ at the shipped thresholds.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that ``x.json`` says about ``x.onnx`` and the files beside it.

    Attributes:
        schema: Schema number.
        model_file: Name of the ONNX file.
        model_sha256: Its hash.
        files: Name -> sha256 of every file beside the manifest that is not an engine.
        input: ``name``, ``dtype``, ``layout``, ``color``, ``size_hw`` [height, width], ``batch`` ("dynamic" or a number), ``max_batch``.
        outputs: Name -> ``{"dtype": ..., "shape": [...]}``.
        graph: Opset, precision, method, teacher, kind and layout of the affinity, and other plain values.
        classes: Names of the classes trained on.
        training: Where the weights come from: resolved configuration, seed, versions, checkpoint hash.
        training_image_sha256: Pixel hashes of the training images.
        held_out: Good images kept out of training: ``path``, ``sha256``, ``class_name``.
        parity: Parity reports of the ONNX.
        engines: Engines built from it.
        decisions: Every fit, newest last; never edited, only appended.
        created_at: When, ISO 8601 with offset.
        self_sha256: Hash of the canonical text without this key and ``signature``; ``write_manifest`` fills it in.
        signature: None, or ``algorithm`` ("ed25519"), ``public_key`` and ``value`` in hexadecimal digits.
    """

    schema: int = SCHEMA
    model_file: str
    model_sha256: str
    files: dict[str, str]
    input: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    graph: dict[str, Any]
    classes: list[str]
    training: dict[str, Any]
    training_image_sha256: list[str]
    held_out: list[dict[str, str]]
    parity: list[ParityReport] = field(default_factory=list)
    engines: list[EngineEntry] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    created_at: str
    self_sha256: str = ""
    signature: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ManifestError(f"has schema {self.schema}, this snl-edge reads schema {SCHEMA}; export the model again with this version")
        _check_input(self.input)
        if self.files.get(self.model_file, self.model_sha256) != self.model_sha256:
            raise ManifestError(f"gives two hashes for '{self.model_file}': {self.model_sha256[:12]} and {self.files[self.model_file][:12]}")
        for name, sha256 in [(self.model_file, self.model_sha256), *self.files.items()]:
            _check_listed_file(name, sha256)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        height, width = self.input["size_hw"]
        return height, width

    def decisions_for(self, sha256: str) -> dict[str, Decision]:
        """Return product -> newest decision that applies to the file with this hash.

        A decision applies to the file it was fitted on, and to an engine of that file whose parity report passed with no flipped verdict.
        """
        accepted = {sha256}
        if self._engine_matches_onnx(sha256):
            accepted.add(self.model_sha256)
        return {decision.product: decision for decision in self.decisions if decision.model_sha256 in accepted}

    def engine_for(self, sha256: str) -> EngineEntry | None:
        """Return the newest entry of the engine with this hash, None if it is not listed."""
        return next((engine for engine in reversed(self.engines) if engine.sha256 == sha256), None)

    def with_decision(self, decision: Decision) -> "Manifest":
        """Return the manifest with one more decision; unsigned, because its text changed."""
        return self._changed(decisions=[*self.decisions, decision])

    def with_engine(self, engine: EngineEntry) -> "Manifest":
        """Return the manifest with this engine in place of an older one of the same file name; unsigned."""
        others = [other for other in self.engines if other.file != engine.file]
        return self._changed(engines=[*others, dataclasses.replace(engine, onnx_sha256=engine.onnx_sha256 or self.model_sha256)])

    def with_parity(self, report: ParityReport) -> "Manifest":
        """Return the manifest with one more parity report; unsigned."""
        return self._changed(parity=[*self.parity, report])

    def _changed(self, **changes: Any) -> "Manifest":
        return dataclasses.replace(self, **changes, self_sha256="", signature=None)

    def _engine_matches_onnx(self, sha256: str) -> bool:
        engine = self.engine_for(sha256)
        if engine is None or engine.parity is None or engine.onnx_sha256 != self.model_sha256:
            return False
        return engine.parity.passed and engine.parity.flips == 0 and engine.parity.subject_sha256 == sha256


def manifest_path(model_path: str | os.PathLike[str]) -> Path:
    """Return where the manifest of ``x.onnx`` or ``x.trt`` lies: ``x.json`` beside it."""
    return Path(model_path).with_suffix(".json")


def canonical_text(manifest: Manifest) -> str:
    """Return the text that ``self_sha256`` and the signature are taken of.

    Raises:
        ManifestError: If a value cannot be written as strict JSON.
    """
    return _canonical_text(to_plain(manifest))


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a file after every check that needs no other file.

    Raises:
        ManifestError: If the file is missing, is no strict JSON, has another schema, an unknown, missing or mistyped key, or was altered.
    """
    source = Path(path)
    try:
        document = parse_json(source.read_text(encoding="utf-8"))
        schema = document.get("schema")
        if type(schema) is int and schema != SCHEMA:
            raise ManifestError(f"has schema {schema}, this snl-edge reads schema {SCHEMA}; export the model again with this version")
        manifest = from_plain(Manifest, document)
        _check_self_hash(document)
    except OSError as error:
        raise ManifestError(f"cannot read {source}: {error.strerror or error}; copy it beside the model from the folder of the export") from error
    except ValueError as error:  # not UTF-8, a lone surrogate, a NUL in the path
        raise ManifestError(f"{source} is not a UTF-8 text file ({error}); copy it again from the export") from error
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}") from error
    return manifest


def write_manifest(path: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Write the manifest atomically with its own hash filled in and return it as written.

    Raises:
        ManifestError: If a reader would refuse it; nothing is written then.
        SinkError: If the file cannot be written.
    """
    target = Path(path)
    try:
        document = to_plain(manifest)
        document["self_sha256"] = sha256_bytes(_canonical_text(document).encode("utf-8"))
        text = _readable_text(document)
        written = from_plain(Manifest, parse_json(text))
    except ManifestError as error:
        raise ManifestError(f"{target} was not written: {error}") from error
    atomic_write_text(target, text)
    return written


def _canonical_text(document: dict[str, Any]) -> str:
    return canonical_json({key: value for key, value in document.items() if key not in _UNHASHED_KEYS})


def _readable_text(document: dict[str, Any]) -> str:
    """One key per line at the top level: people read manifests and compare them."""
    lines = [f"  {canonical_json({key: value})[1:-1]}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _check_self_hash(document: dict[str, Any]) -> None:
    expected, actual = str(document.get("self_sha256", "")), sha256_bytes(_canonical_text(document).encode("utf-8"))
    if expected != actual:
        raise ManifestError(f"was altered: its text has sha256 {actual[:12]}, it records '{expected[:12]}'; copy it again from the export")


def _check_listed_file(name: str, sha256: str) -> None:
    if not name or name != Path(name).name or "\\" in name or not name.isprintable():
        raise ManifestError(f"lists '{name}', which is not a plain file name")
    if len(sha256) != 64 or not _HEX_DIGITS.issuperset(sha256):
        raise ManifestError(f"must give 64 lower-case hexadecimal digits for '{name}', got '{sha256}'")


def _check_input(spec: dict[str, Any]) -> None:
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
