"""The gate between an engine and the ONNX file it was built from, run where the engine runs.

A passed report in the manifest is what lets an engine use the decisions of its ONNX file. Without a GPU there is no report, and the manifest says
``not verified on a device``.
"""

import contextlib
import dataclasses
from pathlib import Path

from snl_runtime.backends.base import Backend
from snl_runtime.errors import BackendUnavailableError, ConfigError, EngineMismatchError, GoldenSampleError, InferenceError, ManifestError
from snl_runtime.model.golden import TOLERANCES, GoldenSamples
from snl_runtime.model.manifest import EngineEntry, Manifest, ParityReport, manifest_path, read_manifest, update_manifest
from snl_runtime.model.normalization_files import open_normalizations
from snl_runtime.parity.frames import FrameSet, derived_frames, folder_frames
from snl_runtime.parity.meter import LIMITS, ParityLimits, ParityMeter, compare
from snl_runtime.progress import ProgressReporter, no_progress
from snl_runtime.scorer import Scorer

ENGINE_LIMITS: dict[str, ParityLimits] = {
    precision: dataclasses.replace(LIMITS[precision], relative=tolerance, flips=None) for precision, tolerance in TOLERANCES.items()
}
"""Limits of an engine against its ONNX file on ONNX Runtime's CPU, by precision: those of an export, with the tolerance that golden samples have, and
with the guard band in place of flips.

TF32 is off, so both sides of fp32 sum in fp32, but other convolution algorithms (Winograd) cost up to a few 1e-4 over a deep network; of fp16, ONNX
Runtime on a CPU computes nodes in fp32 and the device rounds every layer to 11 bits; in int8, values near the edge of a step fall to either side."""


def verify_engine(
    engine_path: Path, frames: FrameSet | Path | None = None, *, backend: Backend | None = None, progress: ProgressReporter = no_progress
) -> ParityReport:
    """Compare an engine on this device with its ONNX file on the CPU and record the report in the manifest, passed or not.

    Args:
        engine_path: ``x.trt`` with ``x.onnx``, ``x.json`` and ``x.golden.npz`` beside it.
        frames: Images besides the golden samples, or a folder of them; None for crops, flips and noise of the golden samples.
        backend: An opened backend of this engine, which is closed at the end; None opens one.
        progress: Told how many frames are compared.

    Raises:
        ManifestError: If a file, the normalization map of a decision included, is missing or not the one that the manifest lists.
        BackendError: If the engine, or ONNX Runtime for the comparison, does not run here.
        ConfigError: If there is nothing to compare on, or no limits for the engine's precision.
        DataError: If an image cannot be read.
    """
    with contextlib.ExitStack() as opened:
        if backend is not None:
            opened.callback(backend.close)
        manifest, entry = _listed_engine(engine_path)
        reference = opened.enter_context(_open_reference(engine_path.with_name(manifest.model_file)))
        # Its own golden check would stop at the first difference and hide the figures; it follows below.
        subject = opened.enter_context(Scorer(engine_path, backend=backend, golden_check=False))
        golden = _golden_of(reference, subject)
        chosen = _choose_frames(frames, manifest.training_bit_depth, golden, engine_path)
        decisions = list(manifest.decisions_for(manifest.model_sha256).values())
        meter = ParityMeter(_limits(entry), decisions, open_normalizations(engine_path, decisions, manifest.size_hw))
        _self_test(subject, meter)
        total = chosen.count + (0 if golden is None else len(golden.images))
        with progress(total, unit="frames", label="engine parity") as steps:
            compare(reference, subject, golden, chosen, meter=meter, on_frame=steps.advance)
        report = meter.report(
            subject_file=entry.file,
            subject_sha256=entry.sha256,
            reference=f"{manifest.model_file} on {reference.backend.name} {reference.backend.device}",
            frames_source=chosen.source,
            verified_on=f"{entry.library} {entry.library_version} on {subject.backend.device}",
        )
    update_manifest(manifest_path(engine_path), lambda listed: listed.with_engine_parity(entry.sha256, report))
    return report


def verify_if_possible(
    engine_path: Path, frames: FrameSet | Path | None = None, *, progress: ProgressReporter = no_progress
) -> tuple[ParityReport | None, str | None]:
    """Verify an engine if it runs on this machine.

    Returns:
        The report and None, or None and why the engine could not run here, one sentence.

    Raises:
        As :func:`verify_engine`, but for an engine that this machine cannot run.
    """
    try:
        return verify_engine(engine_path, frames, progress=progress), None
    except (BackendUnavailableError, EngineMismatchError) as failure:
        return None, str(failure)


def _listed_engine(engine_path: Path) -> tuple[Manifest, EngineEntry]:
    from snl_runtime.backends.tensorrt.backend import read_engine

    _, entry = read_engine(engine_path)
    manifest = read_manifest(manifest_path(engine_path))
    if entry.onnx_sha256 != manifest.model_sha256:
        raise ManifestError(
            f"{engine_path} was built from another {manifest.model_file} than the one its manifest names; "
            f"rebuild it: snl-run --engine {engine_path.name} --rebuild"
        )
    return manifest, entry


def _open_reference(onnx_path: Path) -> Scorer:
    return Scorer(onnx_path, backend="onnxruntime", golden_check=False)


def _golden_of(reference: Scorer, subject: Scorer) -> GoldenSamples | None:
    """Return the golden inputs with what the ONNX file gives for them here."""
    stored = subject.bundle.golden
    if stored is None:
        return None
    scores, maps = reference.score_inputs(stored.images)
    return GoldenSamples(images=stored.images, scores=scores, maps=maps)


def _self_test(subject: Scorer, meter: ParityMeter) -> None:
    """Ask what every later start asks, so that no engine passes here and is refused there; it compares with the checkpoint, not the ONNX file."""
    try:
        subject.check_golden_samples()
    except (GoldenSampleError, InferenceError) as fault:  # an engine that does not run at all fails again in the comparison
        meter.fail(f"the self-test at load would refuse it: {fault}")


def _choose_frames(frames: FrameSet | Path | None, bit_depth: int | None, golden: GoldenSamples | None, engine_path: Path) -> FrameSet:
    if isinstance(frames, Path):
        return folder_frames(frames, bit_depth)
    if frames is not None:
        return frames
    if golden is None:
        raise ConfigError(f"{engine_path} has no golden samples beside it to be compared on; copy {engine_path.stem}.golden.npz from the export")
    return derived_frames(golden.images)


def _limits(entry: EngineEntry) -> ParityLimits:
    if entry.precision not in ENGINE_LIMITS:
        raise ConfigError(f"{entry.file} has precision '{entry.precision}', limits are known for {', '.join(ENGINE_LIMITS)}")
    return ENGINE_LIMITS[entry.precision]
