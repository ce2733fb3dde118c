"""Normalization maps and ignore masks in files beside the model, each checked by the hash that the decision records."""

import io
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ManifestError, NormalizationError
from snl_runtime.files import atomic_write_bytes, sha256_bytes
from snl_runtime.model.ignore_mask import IgnoreMask, ignore_mask_of
from snl_runtime.model.manifest import Decision, IgnoreMaskFile, NormalizationFile
from snl_runtime.model.map_factors import MapFactors, multiply_factors
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.npz import FOREIGN_ERRORS, read_arrays

_LONGEST_NAME = 60

Normalizations: TypeAlias = Mapping[str, MapFactors]
"""sha256 of a file -> the normalization map or ignore mask in it."""
MapFile: TypeAlias = NormalizationFile | IgnoreMaskFile
"""What a decision says about such a file."""


def encode_normalization(model_path: str | os.PathLike[str], product: str, normalization: NormalizationMap) -> tuple[NormalizationFile, bytes]:
    """Return what a decision says about a normalization map's file, and the content; equal maps give equal bytes."""
    name, sha256, data = _encoded(model_path, product, "normalization", normalization.values)
    return NormalizationFile(file=name, sha256=sha256, highest=float(normalization.values.max())), data


def encode_ignore_mask(model_path: str | os.PathLike[str], product: str, mask: IgnoreMask) -> tuple[IgnoreMaskFile, bytes]:
    """Return what a decision says about an ignore mask's file, and the content; equal masks give equal bytes."""
    name, sha256, data = _encoded(model_path, product, "ignored", mask.values == 0)
    return IgnoreMaskFile(file=name, sha256=sha256, ignored_share=mask.ignored_share), data


def write_map_file(model_path: str | os.PathLike[str], file: MapFile, data: bytes) -> None:
    """Write a normalization map or ignore mask beside the model, atomically; to be done before the manifest that names it.

    Raises:
        SinkError: If the file cannot be written.
    """
    atomic_write_bytes(Path(model_path).with_name(file.file), data)


def open_normalizations(model_path: str | os.PathLike[str], decisions: Iterable[Decision], size_hw: tuple[int, int]) -> dict[str, MapFactors]:
    """Return the normalization maps and ignore masks that decisions name, by hash.

    Args:
        model_path: ``x.onnx`` or ``x.trt``; the files lie beside it. Where the files of a model were renamed together they have its name.
        decisions: Decisions that apply to the model.
        size_hw: Size of its maps; a decision on tiles says the size of its merged maps itself.

    Raises:
        ManifestError: If a file is missing, altered, truncated or not what the decision says of it.
    """
    opened: dict[str, MapFactors] = {}
    for decision in decisions:
        map_hw = size_hw if decision.tiles is None else (decision.tiles.map_hw[0], decision.tiles.map_hw[1])
        for file in decision.map_files:  # what two decisions share must be what each of them says of it
            factors = _open(Path(model_path), decision.product, file, map_hw)
            opened.setdefault(file.sha256, factors)
    return opened


def normalization_of(decision: Decision, normalizations: Normalizations) -> MapFactors | None:
    """Return what the raw map is multiplied with as when the decision was fitted, None if it was fitted on raw maps.

    Raises:
        ManifestError: If the decision names a file that was not opened: it must not be judged without.
    """
    factors: MapFactors | None = None
    for file in decision.map_files:
        if file.sha256 not in normalizations:
            raise ManifestError(f"the {kind_of(file)} {file.file} of product {decision.product!r} was not opened; open the model again")
        factors = multiply_factors(factors, normalizations[file.sha256])
    return factors


def _encoded(model_path: str | os.PathLike[str], product: str, kind: str, values: npt.NDArray[Any]) -> tuple[str, str, bytes]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{kind: values})
    data = buffer.getvalue()
    sha256 = sha256_bytes(data)
    return f"{Path(model_path).stem}.{kind}.{_plain(product)}.{sha256[:12]}.npz", sha256, data


def _open(model_path: Path, product: str, file: MapFile, size_hw: tuple[int, int]) -> MapFactors:
    path, what = _find(model_path, file), kind_of(file)
    flag = "--fixed-pose" if isinstance(file, NormalizationFile) else "--ignore-mask FILE"
    remedy = f"copy it again from where it was calibrated, or calibrate again: snl-calibrate --engine {model_path.name} {flag}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read {path}, the {what} of product {product!r}: {error.strerror or error}; {remedy}") from error
    if (actual := sha256_bytes(data)) != file.sha256:
        raise ManifestError(f"{path} has sha256 {actual[:12]}, the decision for {product!r} records {file.sha256[:12]}: it is altered; {remedy}")
    try:
        factors = _decoded(data, file)
    except (NormalizationError, *FOREIGN_ERRORS) as error:
        raise ManifestError(f"{path} holds no usable {what} ({error}); {remedy}") from error
    if factors.size_hw != size_hw:
        raise ManifestError(f"{path} is a {what} for maps of {factors.size_hw} cells, the model's have {size_hw}; {remedy}")
    if isinstance(file, NormalizationFile):
        figure, found, recorded = "largest normalization", float(factors.values.max()), file.highest
    else:
        figure, found, recorded = "ignored share", factors.ignored_share, file.ignored_share
    if found != recorded:
        raise ManifestError(f"{path} has a {figure} of {found:.6g}, the decision for {product!r} records {recorded:.6g}; {remedy}")
    return factors


def _decoded(data: bytes, file: MapFile) -> MapFactors:
    if isinstance(file, NormalizationFile):
        return NormalizationMap(read_arrays(data, ["normalization"])["normalization"])
    return ignore_mask_of(read_arrays(data, ["ignored"])["ignored"])


def kind_of(file: MapFile) -> str:
    """Return what people call such a file."""
    return "normalization map" if isinstance(file, NormalizationFile) else "ignore mask"


def _find(model_path: Path, file: MapFile) -> Path:
    path = model_path.with_name(file.file)
    own_part = ".".join(file.file.split(".")[-4:])  # kind, product, hash, npz: none of them holds a dot
    return path if path.exists() else model_path.with_name(f"{model_path.stem}.{own_part}")


def _plain(product: str) -> str:
    """Return a product's name as every file system takes it; the hash keeps two of one such name apart."""
    letters = unicodedata.normalize("NFKD", product).encode("ascii", "ignore").decode("ascii")
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in letters)[:_LONGEST_NAME] or "product"
