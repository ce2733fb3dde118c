"""What is known about a model file: hashes, inputs, parity reports, engines and decisions. ``x.json`` is read and written here only."""

import dataclasses
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snl_runtime.config import ADDED_LATER, canonical_json, from_plain, parse_json, to_plain
from snl_runtime.errors import ManifestError
from snl_runtime.files import atomic_write_text, exclusive_lock, sha256_bytes
from snl_runtime.images.views import Tiles
from snl_runtime.model.frame_range import FrameRange, FrameSizes
from snl_runtime.model.guard_band import NotInherited, inherited
from snl_runtime.model.manifest_records import (
    NOT_VERIFIED,
    DecisionChange,
    EngineEntry,
    Evidence,
    IgnoreMaskFile,
    NormalizationFile,
    ParityReport,
    ReferenceSample,
    TileGrid,
    check_input,
    check_listed_file,
)
from snl_runtime.types import BIT_DEPTHS

SCHEMA = 1
"""Schema number that this version reads and writes."""

__all__ = [
    "NOT_VERIFIED",
    "SCHEMA",
    "Decision",
    "DecisionChange",
    "EngineEntry",
    "Evidence",
    "FrameRange",
    "FrameSizes",
    "IgnoreMaskFile",
    "Manifest",
    "NormalizationFile",
    "ParityReport",
    "ReferenceSample",
    "TileGrid",
    "canonical_text",
    "manifest_path",
    "read_manifest",
    "replace_manifest",
    "update_manifest",
    "write_manifest",
]

logger = logging.getLogger(__name__)

_UNHASHED_KEYS = ("self_sha256", "signature")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The thresholds of one product, fitted on one file.

    Attributes:
        product: Name of the product.
        model_sha256: Hash of the file that scored the sample; the decision applies to no other file but engines that passed parity with it.
        pass_threshold: Highest score that passes; with ``normalization``, of the normalized map.
        reject_threshold: Highest score that is reviewed; equal to ``pass_threshold`` without a review band.
        floor: Score below which a frame is ERROR, half of the lowest score of the sample.
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
        normalization: Where the normalization map is that raw maps are multiplied with before they are judged; None for a product that is judged by
            its raw maps.
        ignore_mask: Where the mask is of what is not judged; None for a product whose whole map is judged.
        tiles: Grid of tiles in which a frame is inspected, alone or beside the whole of it; None where it is only seen as a whole, at the network's
            size.
        mm_per_px: Millimeters per pixel of the frame, for areas in mm2; None if nobody said.
        reference: What the good parts measured, for the detection of drift; None in a decision from before that was kept: calibrate again.
        change: Who put the decision into force; None in a decision from before that was kept.
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
    normalization: NormalizationFile | None = field(default=None, metadata=ADDED_LATER)
    ignore_mask: IgnoreMaskFile | None = field(default=None, metadata=ADDED_LATER)
    tiles: TileGrid | None = field(default=None, metadata=ADDED_LATER)
    mm_per_px: float | None = field(default=None, metadata=ADDED_LATER)
    reference: ReferenceSample | None = field(default=None, metadata=ADDED_LATER)
    change: DecisionChange | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if not (0 <= self.floor <= self.pass_threshold <= self.reject_threshold):
            raise ManifestError(
                f"the decision for '{self.product}' must satisfy 0 <= floor <= pass_threshold <= reject_threshold, "
                f"got {self.floor}, {self.pass_threshold}, {self.reject_threshold}"
            )
        if self.bit_depth not in BIT_DEPTHS:
            raise ManifestError(f"the bit depth of '{self.product}' must be one of {', '.join(map(str, BIT_DEPTHS))}, got {self.bit_depth}")
        if self.mm_per_px is not None and not 0 < self.mm_per_px < math.inf:
            raise ManifestError(f"the millimeters per pixel of '{self.product}' must be positive, got {self.mm_per_px}")

    @property
    def map_files(self) -> tuple[NormalizationFile | IgnoreMaskFile, ...]:
        """Files that its map is multiplied with before it is judged: the score is then the peak of that product, not the graph's."""
        return tuple(file for file in (self.normalization, self.ignore_mask) if file is not None)


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
        check_input(self.input)
        if self.files.get(self.model_file, self.model_sha256) != self.model_sha256:
            raise ManifestError(f"gives two hashes for '{self.model_file}': {self.model_sha256[:12]} and {self.files[self.model_file][:12]}")
        for name, sha256 in [(self.model_file, self.model_sha256), *self.files.items()]:
            check_listed_file(name, sha256)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        height, width = self.input["size_hw"]
        return height, width

    @property
    def training_tiles(self) -> Tiles | None:
        """The tiles that were trained on; None for whole frames."""
        data = self.training.get("config", {}).get("data", {})
        tile_px, overlap_px = data.get("tile_px"), data.get("tile_overlap_px")
        whole = data.get("with_whole_frame") is True  # models from before that was possible do not say
        return Tiles(tile_px, overlap_px, whole) if isinstance(tile_px, int) and isinstance(overlap_px, int) else None

    @property
    def training_bit_depth(self) -> int | None:
        """Bits that a value of the training images' files used; None for 8 or 16, whichever they had."""
        depth = self.training.get("config", {}).get("data", {}).get("bit_depth")
        return depth if isinstance(depth, int) else None

    def decisions_for(self, sha256: str) -> dict[str, Decision]:
        """Return product -> newest decision that applies to the file with this hash, as it holds there.

        A decision applies to the file it was fitted on. An engine whose parity report passed inherits those of its ONNX file, tightened by the guard
        band (:func:`snl_runtime.model.guard_band.tightened`) and with its own hash in place of the ONNX file's; but none on tiles, which no parity
        report looks at.
        """
        return {product: decision for product, decision in self._applying(sha256).items() if isinstance(decision, Decision)}

    def products_without_room(self, sha256: str) -> list[str]:
        """Return the products whose decision an engine would inherit if its thresholds left room for the guard band; such a product never passes."""
        return [product for product, decision in self._applying(sha256).items() if decision is NotInherited.NO_ROOM]

    def products_on_tiles(self, sha256: str) -> list[str]:
        """Return the products whose decision an engine would inherit if it were not on tiles; such a product never passes."""
        return [product for product, decision in self._applying(sha256).items() if decision is NotInherited.ON_TILES]

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

    def with_engine_parity(self, sha256: str, report: ParityReport) -> "Manifest":
        """Return the manifest with a parity report in the entry of the engine with this hash; unsigned.

        Raises:
            ManifestError: If the engine is not listed any more, or the manifest names another ONNX file than the one that it was built from.
        """
        entry = self.engine_for(sha256)
        if entry is None or entry.onnx_sha256 != self.model_sha256:
            raise ManifestError(
                f"{report.subject_file} or {self.model_file} was replaced while they were compared; compare them again: "
                f"snl-run --engine {report.subject_file} --rebuild"
            )
        return self.with_engine(dataclasses.replace(entry, parity=report, options={**entry.options, "verified_on": report.verified_on}))

    def with_parity(self, report: ParityReport) -> "Manifest":
        """Return the manifest with one more parity report; unsigned."""
        return self._changed(parity=[*self.parity, report])

    def _changed(self, **changes: Any) -> "Manifest":
        return dataclasses.replace(self, **changes, self_sha256="", signature=None)

    def _applying(self, sha256: str) -> dict[str, Decision | NotInherited]:
        report = self._inherits_by(sha256)
        applying: dict[str, Decision | NotInherited] = {}
        for decision in self.decisions:
            if decision.model_sha256 == sha256:
                applying[decision.product] = decision
            elif decision.model_sha256 == self.model_sha256 and report is not None and report.guard_band is not None:
                applying[decision.product] = inherited(decision, guard_band=report.guard_band, map_max_abs=report.map_max_abs, engine_sha256=sha256)
        return applying

    def _inherits_by(self, sha256: str) -> ParityReport | None:
        """Return the report that lets an engine inherit, None if there is none."""
        engine = self.engine_for(sha256)
        if engine is None or engine.parity is None or engine.onnx_sha256 != self.model_sha256:
            return None
        return engine.parity if engine.parity.passed and engine.parity.more_lenient == 0 and engine.parity.subject_sha256 == sha256 else None


def manifest_path(model_path: str | os.PathLike[str]) -> Path:
    """Return where the manifest of ``x.onnx`` or ``x.trt`` lies: ``x.json`` beside it."""
    return Path(model_path).with_suffix(".json")


def canonical_text(manifest: Manifest) -> str:
    """Return the text that ``self_sha256`` and the signature are taken of.

    Raises:
        ManifestError: If a value cannot be written as strict JSON.
    """
    return _canonical_text(to_plain(manifest, error=ManifestError))


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a file after every check that needs no other file.

    Raises:
        ManifestError: If the file is missing, is no strict JSON, has another schema, an unknown, missing or mistyped key, or was altered.
    """
    source = Path(path)
    try:
        document = parse_json(source.read_text(encoding="utf-8"), error=ManifestError)
        schema = document.get("schema")
        if type(schema) is int and schema != SCHEMA:
            raise ManifestError(f"has schema {schema}, this snl-edge reads schema {SCHEMA}; export the model again with this version")
        manifest = _decoded(document)
        _check_self_hash(document)
    except OSError as error:
        raise ManifestError(f"cannot read {source}: {error.strerror or error}; copy it beside the model from the folder of the export") from error
    except ValueError as error:  # not UTF-8, a lone surrogate, a NUL in the path
        raise ManifestError(f"{source} is not a UTF-8 text file ({error}); copy it again from the export") from error
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}") from error
    return manifest


def update_manifest(path: str | os.PathLike[str], change: Callable[[Manifest], Manifest]) -> Manifest:
    """Change a manifest that lies on the disk and return it as written; the one way to do so, because nothing that others add gets lost.

    The file is locked against every other writer, read again, handed to ``change`` and written atomically. A signature that does not cover the
    new text is dropped, and one warning says so.

    Args:
        path: The manifest.
        change: Returns the new manifest for the one it is given. It runs under the lock: let it be quick, and update no manifest in it.

    Raises:
        ManifestError: If the manifest is missing or altered, or a reader would refuse the new one; nothing is written then.
        SinkError: If the file cannot be written or its folder cannot be locked.
    """
    return replace_manifest(path, lambda current: change(read_manifest(path) if current is None else current))


def replace_manifest(path: str | os.PathLike[str], change: Callable[[Manifest | None], Manifest]) -> Manifest:
    """Do what :func:`update_manifest` does where there may be no manifest yet; ``change`` is given None then.

    Raises:
        ManifestError: If an existing manifest is altered, or a reader would refuse the new one; nothing is written then.
        SinkError: If the file cannot be written or its folder cannot be locked.
    """
    target = Path(path)
    with exclusive_lock(target, what="change of the manifest", blocking=True):
        current = read_manifest(target) if target.exists() else None
        changed = change(current)
        if changed == current:
            return changed
        signature = None if current is None else current.signature
        if changed.signature == signature:
            changed = dataclasses.replace(changed, signature=None)
        written = write_manifest(target, changed)
    if signature is not None and written.signature is None:
        remedy = f"sign it again: snl-sign --engine {written.model_file} --key key.pem"
        logger.warning("%s loses its signature, which does not cover the change; %s", target.name, remedy)
    return written


def write_manifest(path: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Write a new manifest atomically with its own hash filled in and return it as written; to change one is :func:`update_manifest`'s.

    Raises:
        ManifestError: If a reader would refuse it; nothing is written then.
        SinkError: If the file cannot be written.
    """
    target = Path(path)
    try:
        document = to_plain(manifest, error=ManifestError)
        document["self_sha256"] = sha256_bytes(_canonical_text(document).encode("utf-8"))
        text = _readable_text(document)
        written = _decoded(parse_json(text, error=ManifestError))
    except ManifestError as error:
        raise ManifestError(f"{target} was not written: {error}") from error
    atomic_write_text(target, text)
    return written


def _decoded(document: dict[str, Any]) -> Manifest:
    return from_plain(Manifest, document, error=ManifestError, strict=True)


def _canonical_text(document: dict[str, Any]) -> str:
    return canonical_json({key: value for key, value in document.items() if key not in _UNHASHED_KEYS}, error=ManifestError)


def _readable_text(document: dict[str, Any]) -> str:
    """One key per line at the top level: people read manifests and compare them."""
    lines = [f"  {canonical_json({key: value}, error=ManifestError)[1:-1]}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _check_self_hash(document: dict[str, Any]) -> None:
    expected, actual = str(document.get("self_sha256", "")), sha256_bytes(_canonical_text(document).encode("utf-8"))
    if expected != actual:
        raise ManifestError(f"was altered: its text has sha256 {actual[:12]}, it records '{expected[:12]}'; copy it again from the export")
