"""The decisions of a model one after the other, and the way back to an earlier one; nothing in a history is ever removed."""

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from snl_runtime.errors import CalibrationRefusedError, ConfigError, ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import Decision, DecisionChange, Manifest, manifest_path, read_manifest, update_manifest
from snl_runtime.model.normalization_files import kind_of
from snl_runtime.verdict.decision import parse_time

from .leniency import decision_before, require_not_lenient
from .options import CalibrationOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One decision of a manifest.

    Attributes:
        number: Its place, counted from 1, oldest first; it never changes.
        decision: The decision.
        belongs: Whether it was fitted on the file that was asked about.
        is_current: Whether it is the one that holds for that file and its product now; none is where an engine inherits its model's, or lacks one.
    """

    number: int
    decision: Decision
    belongs: bool
    is_current: bool


def read_history(model_path: Path, product: str | None = None) -> list[HistoryEntry]:
    """Return the decisions beside a model, oldest first.

    Args:
        model_path: ``x.onnx`` or ``x.trt``.
        product: Only those of this product; None for all.

    Raises:
        ManifestError: If model or manifest cannot be read.
        ConfigError: If the product has no decision.
    """
    sha256 = _hash_of(model_path)
    entries = _entries(read_manifest(manifest_path(model_path)), sha256)
    chosen = [entry for entry in entries if product in (None, entry.decision.product)]
    if product is not None and not chosen:
        known = ", ".join(sorted({entry.decision.product for entry in entries})) or "none"
        raise ConfigError(f"--product {product}: no decision in the history; there are decisions for {known}")
    return chosen


def describe_history(entries: list[HistoryEntry]) -> str:
    """Return the history as a table; the newest entry that holds is marked with ``*``."""
    if not entries:
        return "no decision yet; run snl-calibrate with --good"
    head = ("", "number", "product", "written", "by", "pass", "reject", "parts", "what")
    rows: list[tuple[str, ...]] = [head, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def plain_history(entries: list[HistoryEntry]) -> list[dict[str, Any]]:
    """Return the history as plain values, without the reference samples."""
    return [
        {
            "number": entry.number,
            "belongs": entry.belongs,
            "current": entry.is_current,
            **{key: value for key, value in dataclasses.asdict(entry.decision).items() if key != "reference"},
        }
        for entry in entries
    ]


def revert(model_path: Path, options: CalibrationOptions, number: int | None = None) -> HistoryEntry:
    """Put an earlier decision into force again, as a new entry of the history, and return it.

    Args:
        model_path: The file for which it holds: a decision is good for the file that it was fitted on.
        options: Product, author, and the acceptance of a more lenient decision.
        number: Which one; None for the decision before the current one.

    Raises:
        ConfigError: If there is no such decision, or the product cannot be told.
        CalibrationRefusedError: If it has expired, or is more lenient than the current one and nobody accepts that.
        ManifestError: If its normalization map or ignore mask is missing or another one.
        SinkError: If the manifest cannot be written; then all is as it was.
    """
    sha256 = _hash_of(model_path)
    written: list[HistoryEntry] = []

    def change(manifest: Manifest) -> Manifest:
        entries = _entries(manifest, sha256)
        chosen = _chosen(entries, model_path, options.product, number)
        renewed = _renewed(chosen, decision_before(manifest, sha256, chosen.decision.product), model_path, options)
        written.append(HistoryEntry(number=len(entries) + 1, decision=renewed, belongs=True, is_current=True))
        return manifest.with_decision(renewed)

    update_manifest(manifest_path(model_path), change)
    return written[0]


def _renewed(chosen: HistoryEntry, current: Decision | None, model_path: Path, options: CalibrationOptions) -> Decision:
    decision = chosen.decision
    if decision.expires_at is not None and parse_time(decision.expires_at) <= datetime.now(timezone.utc):
        raise CalibrationRefusedError(f"decision {chosen.number} expired on {decision.expires_at}; calibrate again")
    for file in decision.map_files:
        path = model_path.with_name(file.file)
        if not path.is_file() or sha256_file(path) != file.sha256:
            raise ManifestError(f"{path} is missing or is not the {kind_of(file)} of decision {chosen.number}; copy it back beside the model")
    renewed = require_not_lenient(decision, current, [], options)
    change = renewed.change or DecisionChange(written_at="", written_by="")
    kept_from = None if decision.change is None else decision.change.kept_from
    return dataclasses.replace(renewed, change=dataclasses.replace(change, reverted_to=chosen.number, kept_from=kept_from))


def _chosen(entries: list[HistoryEntry], model_path: Path, product: str | None, number: int | None) -> HistoryEntry:
    if number is not None:
        found = next((entry for entry in entries if entry.number == number), None)
        if found is None:
            raise ConfigError(f"--revert {number}: the history has the numbers 1 to {len(entries)}; see --list-history")
        if not found.belongs:
            raise ConfigError(f"--revert {number}: that decision was fitted on another file than {model_path.name}; give that file as --engine")
        if product not in (None, found.decision.product):
            raise ConfigError(f"--revert {number}: that decision is for product {found.decision.product!r}, --product names {product!r}")
        if found.is_current:
            raise ConfigError(f"--revert {number}: that decision holds already")
        return found
    own = [entry for entry in entries if entry.belongs and product in (None, entry.decision.product)]
    products = sorted({entry.decision.product for entry in own})
    if len(products) > 1:
        raise ConfigError(f"--revert: which product? {model_path.name} has decisions for {', '.join(products)}; say --product NAME")
    earlier = [entry for entry in own if not entry.is_current]
    if not earlier:
        raise ConfigError(f"--revert: {model_path.name} has no earlier decision{'' if product is None else f' for {product!r}'}; see --list-history")
    return earlier[-1]


def _entries(manifest: Manifest, sha256: str) -> list[HistoryEntry]:
    holding = manifest.decisions_for(sha256)
    return [
        HistoryEntry(
            number=index + 1,
            decision=decision,
            belongs=decision.model_sha256 == sha256,
            is_current=holding.get(decision.product) is decision,
        )
        for index, decision in enumerate(manifest.decisions)
    ]


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    decision, change = entry.decision, entry.decision.change
    return (
        "*" if entry.is_current else "",
        str(entry.number),
        decision.product,
        decision.fitted_at if change is None else change.written_at,
        "?" if change is None else change.written_by,
        f"{decision.pass_threshold:.6g}",
        f"{decision.reject_threshold:.6g}",
        str(decision.sample_count),
        _what(entry),
    )


def _what(entry: HistoryEntry) -> str:
    change, mask = entry.decision.change, entry.decision.ignore_mask
    parts = ["fitted" if change is None or change.reverted_to is None else f"back to {change.reverted_to}"]
    if not entry.belongs:
        parts.append("on another file")
    if change is not None and change.kept_from is not None:
        parts.append(f"kept from file {change.kept_from[:12]}")
    if mask is not None:
        parts.append(f"{100 * mask.ignored_share:.3g} % not judged")
    if change is not None and change.accepted_lenient is not None:
        parts.append(f"more lenient: {change.accepted_lenient}")
    if change is not None and change.accepted_passes:
        parts.append(f"passes {len(change.accepted_passes)} that must not pass")
    return "; ".join(parts)


def _hash_of(model_path: Path) -> str:
    try:
        return sha256_file(model_path)
    except OSError as error:
        raise ManifestError(f"cannot read {model_path}: {error.strerror or error}; --engine names x.onnx or x.trt") from error
