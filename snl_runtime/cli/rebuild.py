"""``--rebuild``: a detector whose engine is built and verified here, where it runs, if that is needed."""

import logging
from collections.abc import Callable
from pathlib import Path

from snl_runtime.backends.tensorrt.builder import rebuild_engine
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendUnavailableError, EngineMismatchError, GoldenSampleError, ManifestError, SignatureError
from snl_runtime.model.manifest import EngineEntry
from snl_runtime.model.signing import PublicKey
from snl_runtime.parity.engine import verify_engine
from snl_runtime.progress import Progress
from snl_runtime.scorer import Scorer
from snl_runtime.types import OutputRequest

logger = logging.getLogger(__name__)

_MISFITS = (EngineMismatchError, ManifestError)
"""How a model file that is missing, altered or made for another device is refused."""


def open_or_rebuild(  # noqa: PLR0913  # the options of SnlDetector, handed through
    model: str | Path,
    *,
    backend: str | None = None,
    device: str | None = None,
    timeout_ms: float = 10_000,
    threads: int | None = None,
    public_key: PublicKey | None = None,
    keep_maps: bool = True,
    outputs: OutputRequest | None = None,
    cuda_graphs: bool = True,
) -> SnlDetector:
    """Return the opened detector; first build ``x.trt`` again from ``x.onnx`` if it is missing, altered or made for another GPU or library version.

    An engine without a parity report, new or copied from the export, is compared with its ONNX file here; it passes nothing before it passed that
    gate. With a public key neither is done, because both would change the signed manifest. The options are those of :class:`SnlDetector`.

    Raises:
        SignatureError: If the engine had to be built again and a public key was given.
        EngineBuildError: If TensorRT refuses.
        SnlError: Whatever else :class:`SnlDetector` raises.
    """
    path = Path(model)

    def open_detector() -> SnlDetector:
        return SnlDetector(
            path,
            backend=backend,
            device=device,
            timeout_ms=timeout_ms,
            threads=threads,
            public_key=public_key,
            keep_maps=keep_maps,
            outputs=outputs,
            cuda_graphs=cuda_graphs,
        )

    def open_scorer() -> Scorer:
        return Scorer(path, backend=backend, device=device, threads=threads, public_key=public_key, golden_check=False, cuda_graphs=cuda_graphs)

    try:
        detector = open_detector()
    except (*_MISFITS, GoldenSampleError):
        engine = _engine_that_opens(path, open_scorer, is_signed=public_key is not None)
    else:
        engine = None if detector.manifest is None else detector.manifest.engine_for(detector.model_sha256)
        if engine is None or engine.parity is not None:
            return detector
        detector.close()
    if engine is not None and engine.parity is None:
        _verify(path, is_signed=public_key is not None)
    return open_detector()


def _engine_that_opens(model: Path, open_scorer: Callable[[], Scorer], *, is_signed: bool) -> EngineEntry | None:
    """Return the entry of the engine, built again unless the one that is there opens: then something else is wrong, and building would not help."""
    try:
        with open_scorer() as scorer:
            return scorer.bundle.engine
    except _MISFITS as misfit:
        if model.suffix.lower() != ".trt" or isinstance(misfit, SignatureError):
            raise
        if is_signed:
            raise SignatureError(f"{misfit}; rebuilding changes the signed manifest, so rebuild and snl-sign it where the private key is") from misfit
        logger.info("rebuilding %s: %s", model.name, misfit)
        rebuild_engine(model, progress=Progress)  # on the caller's thread, so that Ctrl-C stops it
    with open_scorer() as scorer:  # what does not run here cannot be verified here
        return scorer.bundle.engine


def _verify(model: Path, *, is_signed: bool) -> None:
    """Compare an engine that has no parity report yet with its ONNX file; without a passed report it has no threshold."""
    if is_signed:
        logger.warning("%s is not verified: the report would change the signed manifest; verify and snl-sign it where the private key is", model.name)
        return
    logger.info("verifying %s against its ONNX file", model.name)
    try:
        report = verify_engine(model, progress=Progress)
    except BackendUnavailableError as failure:  # no ONNX Runtime on this station: frames are scored, and every verdict is ERROR
        logger.warning("%s cannot be verified here: %s", model.name, failure)
        return
    if not report.passed:
        logger.warning("%s does not score like its ONNX file: %s", model.name, "; ".join(report.failures[:3]))
