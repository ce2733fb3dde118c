"""What a manifest records of engines, and of comparisons of a file with what it must score like."""

from dataclasses import dataclass, field
from typing import Any

from snl_runtime.manifest_codec import ADDED_LATER

NOT_VERIFIED = "not verified on a device"
"""What is said of an engine that has not run where it is meant to run."""


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
