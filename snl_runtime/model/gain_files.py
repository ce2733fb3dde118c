"""Gain maps in files beside the model, one for each decision of a fixtured product, checked by the hash that the decision records."""

import io
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from snl_runtime.errors import GainError, ManifestError
from snl_runtime.files import atomic_write_bytes, sha256_bytes
from snl_runtime.model.gain import GainMap
from snl_runtime.model.manifest import Decision, GainFile
from snl_runtime.model.npz import FOREIGN_ERRORS, read_arrays

_LONGEST_NAME = 60

Gains: TypeAlias = Mapping[str, GainMap]
"""sha256 of a file -> the gain map in it."""


def encode_gain(model_path: str | os.PathLike[str], product: str, gain: GainMap) -> tuple[GainFile, bytes]:
    """Return what a decision says about a gain map's file, and the content; equal maps give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, gain=gain.values)
    data = buffer.getvalue()
    sha256 = sha256_bytes(data)
    name = f"{Path(model_path).stem}.gain.{_plain(product)}.{sha256[:12]}.npz"
    return GainFile(file=name, sha256=sha256, highest=float(gain.values.max())), data


def write_gain(model_path: str | os.PathLike[str], file: GainFile, data: bytes) -> None:
    """Write a gain map beside the model, atomically; to be done before the manifest that names it.

    Raises:
        SinkError: If the file cannot be written.
    """
    atomic_write_bytes(Path(model_path).with_name(file.file), data)


def open_gains(model_path: str | os.PathLike[str], decisions: Iterable[Decision], size_hw: tuple[int, int]) -> dict[str, GainMap]:
    """Return the gain maps that decisions name, by hash.

    Args:
        model_path: ``x.onnx`` or ``x.trt``; the files lie beside it. Where the files of a model were renamed together they have its name.
        decisions: Decisions that apply to the model.
        size_hw: Size of its maps.

    Raises:
        ManifestError: If a file is missing, altered, truncated or not a gain map of that size.
    """
    opened: dict[str, GainMap] = {}
    for decision in decisions:
        if decision.gain is not None and decision.gain.sha256 not in opened:
            opened[decision.gain.sha256] = _open_gain(Path(model_path), decision.product, decision.gain, size_hw)
    return opened


def gain_of(decision: Decision, gains: Gains) -> GainMap | None:
    """Return the gain map that a decision was fitted with, None if it was fitted on raw maps.

    Raises:
        ManifestError: If the decision has one that was not opened: it must not be judged without.
    """
    if decision.gain is None:
        return None
    if decision.gain.sha256 not in gains:
        raise ManifestError(f"the gain map {decision.gain.file} of product {decision.product!r} was not opened; open the model again")
    return gains[decision.gain.sha256]


def _open_gain(model_path: Path, product: str, file: GainFile, size_hw: tuple[int, int]) -> GainMap:
    path = _find(model_path, file)
    remedy = f"copy it again from where it was calibrated, or calibrate again: snl-calibrate --engine {model_path.name} --fixtured"
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ManifestError(f"cannot read {path}, the gain map of product {product!r}: {reason}; {remedy}") from error
    if (actual := sha256_bytes(data)) != file.sha256:
        raise ManifestError(f"{path} has sha256 {actual[:12]}, the decision for {product!r} records {file.sha256[:12]}: it is altered; {remedy}")
    try:
        gain = GainMap(read_arrays(data, ["gain"])["gain"])
    except (GainError, *FOREIGN_ERRORS) as error:
        raise ManifestError(f"{path} holds no usable gain map ({error}); {remedy}") from error
    if gain.size_hw != size_hw:
        raise ManifestError(f"{path} is a gain map for maps of {gain.size_hw} cells, the model's have {size_hw}; {remedy}")
    if (highest := float(gain.values.max())) != file.highest:
        raise ManifestError(f"{path} has a largest gain of {highest:.6g}, the decision for {product!r} records {file.highest:.6g}; {remedy}")
    return gain


def _find(model_path: Path, file: GainFile) -> Path:
    path = model_path.with_name(file.file)
    own_part = ".".join(file.file.split(".")[-3:])  # product, hash, npz: none of them holds a dot
    return path if path.exists() else model_path.with_name(f"{model_path.stem}.gain.{own_part}")


def _plain(product: str) -> str:
    """Return a product's name as every file system takes it; the hash keeps two of one such name apart."""
    letters = unicodedata.normalize("NFKD", product).encode("ascii", "ignore").decode("ascii")
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in letters)[:_LONGEST_NAME] or "product"
