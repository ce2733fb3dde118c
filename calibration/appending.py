"""Writing fitted decisions: into the manifest of their model, with the files that they name beside it."""

import functools
from collections.abc import Sequence
from pathlib import Path

from snl_runtime.model.manifest import Decision, Manifest, manifest_path, update_manifest
from snl_runtime.model.normalization_files import MapFile, write_map_file


def append_decisions(model_path: Path, fitted: Sequence[tuple[Decision, Sequence[tuple[MapFile, bytes]]]]) -> None:
    """Add decisions to the model's manifest, all or none, the files that they name beside it first; what others added since it was opened is kept.

    Args:
        model_path: ``x.onnx`` or ``x.trt``.
        fitted: Each decision with its normalization map and ignore mask, as they are encoded.

    Raises:
        ManifestError: If the manifest was altered meanwhile.
        SinkError: If a file cannot be written; then all are as they were.
    """
    if not fitted:
        return
    files = [each for _, own in fitted for each in own]
    new = [path for path in (model_path.with_name(file.file) for file, _ in files) if not path.exists()]
    try:
        for file, data in files:
            write_map_file(model_path, file, data)
        update_manifest(manifest_path(model_path), lambda manifest: functools.reduce(Manifest.with_decision, [one for one, _ in fitted], manifest))
    except BaseException:  # Ctrl-C included
        for path in new:
            path.unlink(missing_ok=True)
        raise
