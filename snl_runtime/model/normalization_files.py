"""Normalization maps in files beside the model, one for each decision of a fixed-pose product, checked by the hash that the decision records."""

import io
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from snl_runtime.errors import ManifestError, NormalizationError
from snl_runtime.files import atomic_write_bytes, sha256_bytes
from snl_runtime.model.manifest import Decision, NormalizationFile
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.npz import FOREIGN_ERRORS, read_arrays

_LONGEST_NAME = 60

Normalizations: TypeAlias = Mapping[str, NormalizationMap]
"""sha256 of a file -> the normalization map in it."""


def encode_normalization(model_path: str | os.PathLike[str], product: str, normalization: NormalizationMap) -> tuple[NormalizationFile, bytes]:
    """Return what a decision says about a normalization map's file, and the content; equal maps give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, normalization=normalization.values)
    data = buffer.getvalue()
    sha256 = sha256_bytes(data)
    name = f"{Path(model_path).stem}.normalization.{_plain(product)}.{sha256[:12]}.npz"
    return NormalizationFile(file=name, sha256=sha256, highest=float(normalization.values.max())), data


def write_normalization(model_path: str | os.PathLike[str], file: NormalizationFile, data: bytes) -> None:
    """Write a normalization map beside the model, atomically; to be done before the manifest that names it.

    Raises:
        SinkError: If the file cannot be written.
    """
    atomic_write_bytes(Path(model_path).with_name(file.file), data)


def open_normalizations(model_path: str | os.PathLike[str], decisions: Iterable[Decision], size_hw: tuple[int, int]) -> dict[str, NormalizationMap]:
    """Return the normalization maps that decisions name, by hash.

    Args:
        model_path: ``x.onnx`` or ``x.trt``; the files lie beside it. Where the files of a model were renamed together they have its name.
        decisions: Decisions that apply to the model.
        size_hw: Size of its maps.

    Raises:
        ManifestError: If a file is missing, altered, truncated or not a normalization map of that size.
    """
    opened: dict[str, NormalizationMap] = {}
    for decision in decisions:
        if decision.normalization is not None and decision.normalization.sha256 not in opened:
            opened[decision.normalization.sha256] = _open_normalization(Path(model_path), decision.product, decision.normalization, size_hw)
    return opened


def normalization_of(decision: Decision, normalizations: Normalizations) -> NormalizationMap | None:
    """Return the normalization map that a decision was fitted with, None if it was fitted on raw maps.

    Raises:
        ManifestError: If the decision has one that was not opened: it must not be judged without.
    """
    if decision.normalization is None:
        return None
    if decision.normalization.sha256 not in normalizations:
        raise ManifestError(
            f"the normalization map {decision.normalization.file} of product {decision.product!r} was not opened; open the model again"
        )
    return normalizations[decision.normalization.sha256]


def _open_normalization(model_path: Path, product: str, file: NormalizationFile, size_hw: tuple[int, int]) -> NormalizationMap:
    path = _find(model_path, file)
    remedy = f"copy it again from where it was calibrated, or calibrate again: snl-calibrate --engine {model_path.name} --fixed-pose"
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ManifestError(f"cannot read {path}, the normalization map of product {product!r}: {reason}; {remedy}") from error
    if (actual := sha256_bytes(data)) != file.sha256:
        raise ManifestError(f"{path} has sha256 {actual[:12]}, the decision for {product!r} records {file.sha256[:12]}: it is altered; {remedy}")
    try:
        normalization = NormalizationMap(read_arrays(data, ["normalization"])["normalization"])
    except (NormalizationError, *FOREIGN_ERRORS) as error:
        raise ManifestError(f"{path} holds no usable normalization map ({error}); {remedy}") from error
    if normalization.size_hw != size_hw:
        raise ManifestError(f"{path} is a normalization map for maps of {normalization.size_hw} cells, the model's have {size_hw}; {remedy}")
    if (highest := float(normalization.values.max())) != file.highest:
        raise ManifestError(f"{path} has a largest normalization of {highest:.6g}, the decision for {product!r} records {file.highest:.6g}; {remedy}")
    return normalization


def _find(model_path: Path, file: NormalizationFile) -> Path:
    path = model_path.with_name(file.file)
    own_part = ".".join(file.file.split(".")[-3:])  # product, hash, npz: none of them holds a dot
    return path if path.exists() else model_path.with_name(f"{model_path.stem}.normalization.{own_part}")


def _plain(product: str) -> str:
    """Return a product's name as every file system takes it; the hash keeps two of one such name apart."""
    letters = unicodedata.normalize("NFKD", product).encode("ascii", "ignore").decode("ascii")
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in letters)[:_LONGEST_NAME] or "product"
