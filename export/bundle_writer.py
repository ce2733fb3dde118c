"""Checkpoint in, verified bundle out: x.onnx, x.golden.npz and x.json, all or nothing."""

import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from snl_runtime.config import canonical_json
from snl_runtime.errors import CheckpointError, ConfigError, GoldenSampleError, ManifestError, ParityRefusedError
from snl_runtime.files import sha256_file
from snl_runtime.model.golden import GoldenSamples, golden_path, write_golden
from snl_runtime.model.manifest import Decision, Manifest, ParityReport, manifest_path, read_manifest, write_manifest
from snl_runtime.model.normalization_files import open_normalizations
from snl_runtime.parity.frames import FrameSet, derived_frames, folder_frames
from snl_runtime.parity.meter import LIMITS, ParityMeter
from snl_runtime.progress import ProgressReporter, no_progress
from snl_runtime.scorer import Scorer
from snl_train.checkpoint import Checkpoint, load_checkpoint
from snl_train.evaluation import CheckpointScorer

from . import gate, onnx_export
from .cost import memory_cost
from .graph import DEFAULT_TILE_ROWS, AffinityLayout, Precision, SnlGraph
from .int8 import Int8Options, quantize_file
from .kept_decisions import KeptDecisions, keep_decisions
from .onnx_export import BatchSize
from .provenance import ExportPrecision, portable_part
from .publishing import check_targets, keeping_history, publish, restore_interrupted, staging_folder

logger = logging.getLogger(__name__)

SMALL_SIZE_PX = 32
"""Input size of the export that the slow reference evaluator runs; the smallest that every method takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported.

    Attributes:
        precision: fp32, fp16 for half-precision convolutions, or int8 for 8-bit ones.
        batch: Images per call.
        tile_rows: Rows of the affinity matrix that exist at a time.
        layout: Which tiles of it are computed.
        frames: Folder of images for the parity gate; None derives them from the golden samples.
        device: Where the checkpoint runs for reference: cpu, cuda, cuda:N or auto.
        int8: What int8 means here; needed for that precision only.
        keep_decisions: Keep the decisions of the file that is replaced for products whose anomaly maps are the same, see
            :func:`snl_export.kept_decisions.keep_decisions`.
    """

    precision: ExportPrecision = "fp32"
    batch: BatchSize = field(default_factory=BatchSize)
    tile_rows: int = DEFAULT_TILE_ROWS
    layout: AffinityLayout = "rows"
    frames: Path | None = None
    device: str = "cpu"
    int8: Int8Options | None = None
    keep_decisions: bool = False

    def __post_init__(self) -> None:
        if (self.precision == "int8") != (self.int8 is not None):
            raise ConfigError("--int8 and --calib-data DIR (good images) go together; give both or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedBundle:
    """What an export wrote.

    Attributes:
        model_path: The ONNX file; manifest and golden samples lie beside it.
        manifest: The manifest as written.
        files: Hash of every file, by path.
        notes: What a person should know, one sentence each.
    """

    model_path: Path
    manifest: Manifest
    files: Mapping[Path, str]
    notes: Sequence[str]


def export_bundle(
    checkpoint_path: Path,
    model_path: Path,
    options: ExportOptions,
    *,
    on_stage: Callable[[str], None] = logger.info,
    progress: ProgressReporter = no_progress,
) -> ExportedBundle:
    """Export a checkpoint, compare the file with it, and only then put the bundle in place.

    Decisions in the manifest that is replaced are kept as history; they apply only if the new file has the hash they were fitted on, which it has
    when the same checkpoint is exported again with the same options and versions.

    Args:
        checkpoint_path: ``x.pt``.
        model_path: ``x.onnx`` to write; ``x.json`` and ``x.golden.npz`` appear beside it.
        options: Precision, batch, tiles and frames of the gate.
        on_stage: Called with what is done next.
        progress: Told how far the stages are that look at images.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded or its parts do not fit each other.
        ConfigError: If an option does not fit the checkpoint or what is replaced.
        DataError: If a frame of the gate cannot be read.
        ManifestError: If the manifest that would be replaced cannot be read, so that its decisions would be lost, or the normalization map of one is
            missing.
        ParityRefusedError: If the exported file does not score like the checkpoint; nothing is written then.
        SinkError: If a file cannot be written.
    """
    if model_path.suffix != ".onnx":
        raise ConfigError(f"--out must end in .onnx, got {model_path.name}")
    check_targets([model_path, golden_path(model_path), manifest_path(model_path), model_path.with_suffix(".trt")])
    if options.frames is not None:
        folder_frames(options.frames)  # a wrong folder shows before the checkpoint is loaded
    on_stage("load the checkpoint")
    checkpoint = load_checkpoint(checkpoint_path)
    frames = None if options.frames is None else folder_frames(options.frames, checkpoint.config.data.bit_depth)
    notes = [f"{checkpoint_path}: {checkpoint.unfinished}"] if checkpoint.unfinished else []
    with staging_folder(model_path) as staging:
        if restore_interrupted(model_path.parent, stem=model_path.stem):
            notes.append(f"an earlier export to {model_path} was killed half-way; the files from before it were put back first")
        earlier = _earlier_manifest(model_path)
        export = _prepare(checkpoint, checkpoint_path, options, staging / model_path.name, progress)
        on_stage("write the ONNX graph")
        _write_graph(export)
        _quantize(export)
        on_stage("score the golden samples with the checkpoint")
        golden = _write_golden(export)
        draft = _write_draft(export, earlier)
        on_stage("compare the file with the checkpoint")
        decisions = _comparable_decisions(export, earlier)
        meter = ParityMeter(LIMITS[options.precision], decisions, open_normalizations(model_path, decisions, draft.size_hw))
        reports = _pass_gate(export, golden, frames or derived_frames(golden.images), meter)
        _open_as_users_do(export.path)
        kept = KeptDecisions()
        if options.keep_decisions:
            on_stage("compare the file with the one that it replaces")
            kept = keep_decisions(checkpoint, earlier, model_path, export.path, precision=options.precision)
            draft = replace(draft, decisions=[*draft.decisions, *kept.decisions])
        on_stage("put the files in place")
        staged = [export.path, golden_path(export.path)]
        written = publish(staged, replace(draft, parity=reports), model_path.parent, stem=model_path.stem)
    files = {path: sha256_file(path) for path in (model_path, golden_path(model_path), manifest_path(model_path))}
    return ExportedBundle(
        model_path=model_path,
        manifest=written,
        files=files,
        notes=[*notes, *kept.notes, *_decision_notes(written), *_engine_notes(model_path, written)],
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Export:
    """What every step of one export is given.

    Attributes:
        checkpoint: What is exported.
        checkpoint_sha256: Its hash.
        reference: The checkpoint's model, which the file must score like.
        reference_name: Its name for messages.
        graph: The same model as it ships.
        options: How it is exported.
        path: The ONNX file in the staging folder.
        portable: The part of the manifest that depends on no hash of a file; quantization adds to it.
        progress: Told how far the long steps are.
    """

    checkpoint: Checkpoint
    checkpoint_sha256: str
    reference: CheckpointScorer
    reference_name: str
    graph: SnlGraph
    options: ExportOptions
    path: Path
    portable: dict[str, Any]
    progress: ProgressReporter

    @property
    def metadata(self) -> str:
        """What the ONNX file says about itself."""
        return canonical_json(self.portable, error=ManifestError)


def _prepare(checkpoint: Checkpoint, checkpoint_path: Path, options: ExportOptions, path: Path, progress: ProgressReporter) -> _Export:
    """Build the model and the graph, once, after every check that needs only the checkpoint."""
    if len(checkpoint.golden_images) == 0:
        raise ConfigError(f"{checkpoint_path} holds no golden samples to prove an export with; train again with golden_samples 1 or more")
    if tuple(checkpoint.golden_images.shape[1:3]) != tuple(checkpoint.config.image_size):
        raise CheckpointError(
            f"{checkpoint_path} holds golden samples of {checkpoint.golden_images.shape[1:3]} pixels for a network of "
            f"{tuple(checkpoint.config.image_size)}; train again"
        )
    if options.int8 is not None and checkpoint.config.model.package_of_teacher is not None:
        raise ConfigError(f"--int8 knows which convolutions of a ResNet it may quantize, and not of {checkpoint.config.model.teacher}; leave it out")
    sha256 = sha256_file(checkpoint_path)
    reference = CheckpointScorer(checkpoint, options.device)
    portable = portable_part(
        checkpoint,
        checkpoint_sha256=sha256,
        precision=options.precision,
        batch=options.batch,
        tile_rows=options.tile_rows,
        layout=options.layout,
    )
    portable["graph"].update(memory_cost(reference.model, reference.size_hw))
    return _Export(
        checkpoint=checkpoint,
        checkpoint_sha256=sha256,
        reference=reference,
        reference_name=f"checkpoint {checkpoint_path.name}",
        graph=_graph(reference, checkpoint, options, reference.size_hw, "fp16" if options.precision == "fp16" else "fp32"),
        options=options,
        path=path,
        portable=portable,
        progress=progress,
    )


def _graph(reference: CheckpointScorer, checkpoint: Checkpoint, options: ExportOptions, size_hw: tuple[int, int], precision: Precision) -> SnlGraph:
    return SnlGraph(
        reference.model, checkpoint.config.score, size_hw=size_hw, precision=precision, tile_rows=options.tile_rows, layout=options.layout
    )


def _write_graph(export: _Export) -> None:
    onnx_export.export_onnx(export.graph, export.path, size_hw=export.reference.size_hw, batch=export.options.batch, metadata=export.metadata)


def _quantize(export: _Export) -> None:
    """Replace the fp32 file by its 8-bit version where that was asked for."""
    if export.options.int8 is None:
        return
    model, described = quantize_file(export.path, export.options.int8, export.checkpoint.config.data.bit_depth, progress=export.progress)
    export.portable["graph"].update(described)
    onnx_export.write_model(model, export.path, size_hw=export.reference.size_hw, batch=export.options.batch, metadata=export.metadata)


def _write_golden(export: _Export) -> GoldenSamples:
    images = np.ascontiguousarray(export.checkpoint.golden_images)
    answers = [export.reference.score_inputs(image[None]) for image in images]
    scores, maps = (np.concatenate([answer[i] for answer in answers]).astype(np.float32) for i in range(2))
    try:
        golden = GoldenSamples(images=images, scores=scores, maps=maps)
    except GoldenSampleError as error:
        raise ParityRefusedError(f"{export.reference_name} gives no usable scores: {error}; nothing was written; train again") from error
    write_golden(golden_path(export.path), golden)
    return golden


def _write_draft(export: _Export, earlier: Manifest | None) -> Manifest:
    """Write the manifest without parity reports beside the staged file, which the gate opens with it."""
    sha256, golden = sha256_file(export.path), golden_path(export.path)
    manifest = Manifest(
        **export.portable,
        model_file=export.path.name,
        model_sha256=sha256,
        files={export.path.name: sha256, golden.name: sha256_file(golden)},
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    draft = manifest if earlier is None else keeping_history(manifest, earlier)
    write_manifest(manifest_path(export.path), draft)
    return draft


def _comparable_decisions(export: _Export, earlier: Manifest | None) -> list[Decision]:
    """Return the newest decision of each product that an export of this same checkpoint was given: its verdicts must not flip."""
    if earlier is None or earlier.training.get("checkpoint_sha256") != export.checkpoint_sha256:
        return []
    return list(earlier.decisions_for(earlier.model_sha256).values())


def _pass_gate(export: _Export, golden: GoldenSamples, frames: FrameSet, meter: ParityMeter) -> list[ParityReport]:
    reference, name, precision = export.reference, export.reference_name, export.options.precision
    reports = [
        gate.check_export(export.path, reference, golden, frames, reference_name=name, precision=precision, meter=meter, progress=export.progress)
    ]
    if precision == "fp16":
        reports.append(gate.check_half(export.graph, export.path, reference, golden, frames, reference_name=name, progress=export.progress))
        size_hw = (SMALL_SIZE_PX, SMALL_SIZE_PX)
        small = _graph(reference, export.checkpoint, export.options, size_hw, "fp16")
        small_full = _graph(reference, export.checkpoint, export.options, size_hw, "fp32")
        reports.append(gate.check_half_by_reference(small, small_full, export.path, golden, reference_name=name))
    return reports


def _open_as_users_do(path: Path) -> None:
    try:
        with Scorer(path):
            return
    except (GoldenSampleError, ManifestError) as error:
        raise ParityRefusedError(f"the exported bundle does not open: {error}") from error


def _earlier_manifest(model_path: Path) -> Manifest | None:
    path = manifest_path(model_path)
    if not path.exists():
        return None
    try:
        return read_manifest(path)
    except ManifestError as error:
        raise ManifestError(f"{error}; its decisions would be lost: move {path.name} away or choose another --out") from error


def _decision_notes(manifest: Manifest) -> list[str]:
    applying = manifest.decisions_for(manifest.model_sha256)
    missing = sorted({decision.product for decision in manifest.decisions} - set(applying))
    if not missing:
        return []
    return [f"decisions of an earlier file are kept as history and do not apply to this one: calibrate again for {', '.join(missing)}"]


def _engine_notes(model_path: Path, manifest: Manifest) -> list[str]:
    engine = model_path.with_suffix(".trt")
    if not engine.exists() or manifest.engine_for(sha256_file(engine)) is not None:
        return []
    return [f"{engine} was built from an earlier file and no longer opens: snl-run --engine {engine} --rebuild"]
