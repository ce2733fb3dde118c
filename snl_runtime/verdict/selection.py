"""Which decisions of a manifest apply to a frame."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from snl_runtime.images.views import Views
from snl_runtime.model.manifest import Decision, Manifest
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.model.normalization_files import Normalizations, normalization_of
from snl_runtime.verdict.decision import MapSummary, decide, strictest
from snl_runtime.verdict.ruling import NAME_THE_PRODUCT, Ruling, error
from snl_runtime.verdict.scored_frame import ScoredFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The decisions under which one frame is judged.

    Attributes:
        decisions: By product; several where no product was named.
        accepted_sha256: Hash of the file that scores, for which each decision must be made.
        product: What the record names; None where several decisions apply.
        roi_xyxy: Part of the frame to look at; None for all of it.
        tiles: The views of that part, tiles alone or with the whole of it; None where it is only seen as a whole.
        fault: Why there is no usable decision, None if there is one.
        factors: What the raw map is multiplied with under each decision, by product; None where it is judged as it is.
        normalization: What makes the result's map of the raw one, so that ``threshold`` holds for it: the decision's normalization map and ignore
            mask, or those of :func:`merge_normalizations` where several decisions apply; None where no decision has any.
    """

    decisions: Mapping[str, Decision] = field(default_factory=dict)
    accepted_sha256: frozenset[str] = frozenset()
    product: str | None = None
    roi_xyxy: tuple[int, int, int, int] | None = None
    tiles: Views | None = None
    fault: Ruling | None = None
    factors: Mapping[str, MapFactors | None] = field(default_factory=dict)
    normalization: MapFactors | None = None

    @property
    def threshold(self) -> float:
        """Lowest pass threshold; NaN without a decision."""
        return min((d.pass_threshold for d in self.decisions.values()), default=math.nan)

    @property
    def reject_threshold(self) -> float:
        """Lowest reject threshold; NaN without a decision. On the scale of ``threshold`` where normalization maps were merged."""
        if self.needs_map:
            return min(self.threshold / d.pass_threshold * d.reject_threshold for d in self.decisions.values())
        return min((d.reject_threshold for d in self.decisions.values()), default=math.nan)

    @property
    def bit_depth(self) -> int | None:
        """Bits that a value of a frame must use; None without a decision."""
        return next((d.bit_depth for d in self.decisions.values()), None)

    @property
    def mm_per_px(self) -> float | None:
        """Millimeters per pixel of the frame; None if a decision does not say, or two say different ones."""
        scales = {d.mm_per_px for d in self.decisions.values()}
        return next(iter(scales)) if len(scales) == 1 else None

    @property
    def needs_map(self) -> bool:
        """Whether the verdict needs the raw map itself: several decisions, each with its own normalization."""
        return self.normalization is not None and len(self.decisions) > 1

    def rule(self, scored: ScoredFrame, *, golden_checked: bool, now: datetime) -> Ruling:
        """Return the verdict on a scored frame, each decision with its own normalization map, see :func:`snl_runtime.verdict.decision.decide`.

        Args:
            scored: With the peak under ``normalization`` where there is one, and the raw map where :attr:`needs_map`.
            golden_checked: Whether the golden samples agreed.
            now: Current time.
        """
        if self.fault is not None:
            missing = error("no_golden_check", "no golden sample was scored in this process; export the model again with snl-export")
            return self.fault if golden_checked or self.fault.reason_code == "no_manifest" else missing
        rulings = {
            product: decide(
                scored.map.score,
                self._summary_under(decision, scored),
                decision,
                frame=scored.frame,
                statistics=scored.statistics,
                golden_checked=golden_checked,
                accepted_sha256=self.accepted_sha256,
                now=now,
            )
            for product, decision in self.decisions.items()
        }
        return strictest(rulings)

    def _summary_under(self, decision: Decision, scored: ScoredFrame) -> MapSummary:
        if len(self.decisions) == 1:
            return scored.map.summary
        factors, anomaly_map = self.factors[decision.product], scored.map.anomaly_map
        peak = None if factors is None or anomaly_map is None else factors.peak(anomaly_map)
        return dataclasses.replace(scored.map.summary, normalized_peak=peak)  # that of a merged normalization was fitted with no decision


class DecisionBook:
    """The decisions of one opened file.

    Args:
        manifest: None for a lone ``.onnx``.
        sha256: Hash of the opened file.
        normalizations: The normalization maps and ignore masks that its decisions name, by hash.

    Raises:
        ManifestError: If a file of a decision that holds for this file is not among them, or its grid of tiles is none for this network.
    """

    def __init__(self, manifest: Manifest | None, sha256: str, normalizations: Normalizations | None = None) -> None:
        self._manifest = manifest
        self._accepted = frozenset({sha256})
        self._without_room = [] if manifest is None else manifest.products_without_room(sha256)
        self.decisions: dict[str, Decision] = {} if manifest is None else dict(manifest.decisions_for(sha256))
        """Newest decision per product that holds for this file."""
        self._factors = {product: normalization_of(decision, normalizations or {}) for product, decision in self.decisions.items()}
        self._tiles = {product: decision.tiles.views(manifest.size_hw) for product, decision in self.decisions.items() if manifest and decision.tiles}

    @functools.cached_property
    def _merged_factors(self) -> MapFactors | None:  # one object, which a GPU uploads once; of maps of one size, as :meth:`select` has found
        return merge_normalizations(self.decisions, self._factors)

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator must know of the decisions, one sentence each."""
        notes = []
        for product, decision in sorted(self.decisions.items()):
            if (mask := decision.ignore_mask) is not None:
                share = f"{100 * mask.ignored_share:.3g} % of the inspected part is not judged (ignore mask {mask.file})"
                notes.append(f"product {product!r}: {share}; a defect there passes")
            if (tiles := decision.tiles) is not None:
                notes.append(f"product {product!r}: a frame is seen in {tiles}")
        return tuple(notes)

    def moved_from(self, runs_on: str) -> tuple[str, ...]:
        """Return a sentence for each decision on this file that another backend or device scored the sample of, see ``scored_by`` of the backends."""
        return tuple(
            f"product {product!r}: calibrated on {decision.backend}, and the model runs on {runs_on}; give --backend and --device as then, or run "
            "snl-calibrate here: until then only the golden samples bound what differs"
            for product, decision in sorted(self.decisions.items())
            if decision.model_sha256 in self._accepted and decision.backend != runs_on
        )

    @property
    def products(self) -> tuple[str, ...]:
        """Products with a decision for this file, sorted; one whose thresholds leave no room for the guard band is among them and never passes."""
        return tuple(sorted({*self.decisions, *self._without_room}))

    def select(self, product: object = None) -> Selection:
        """Return what applies to a frame of a product; None names none. Any object is accepted, an unknown one selects a fault."""
        named = product if isinstance(product, str) else None
        fault = self._fault(product)
        if fault is not None:
            return Selection(product=named, fault=fault)
        chosen = self.decisions if named is None else {named: self.decisions[named]}
        names = ", ".join(sorted(chosen))
        if len({None if d.roi_xyxy is None else tuple(d.roi_xyxy) for d in chosen.values()}) > 1:
            return Selection(fault=error("ambiguous_product", f"products {names} look at different parts of the frame; {NAME_THE_PRODUCT}"))
        if len({self._tiles.get(name) for name in chosen}) > 1:
            return Selection(fault=error("ambiguous_product", f"products {names} are seen in different views; {NAME_THE_PRODUCT}"))
        if len({d.bit_depth for d in chosen.values()}) > 1:
            return Selection(fault=error("ambiguous_product", f"products {names} take frames of different bit depths; {NAME_THE_PRODUCT}"))
        return Selection(
            decisions=chosen,
            accepted_sha256=self._accepted,
            product=next(iter(chosen)) if len(chosen) == 1 else None,
            roi_xyxy=next(iter(chosen.values())).roi_xyxy,
            tiles=self._tiles.get(next(iter(chosen))),
            factors=self._factors,
            normalization=self._merged_factors if len(chosen) > 1 else self._factors[next(iter(chosen))],
        )

    def _fault(self, product: object) -> Ruling | None:
        if self._manifest is None:
            return error("no_manifest", "no manifest beside the model: it scores, but cannot pass a part; export it with snl-export")
        fitted = {d.product for d in self._manifest.decisions}
        if self._without_room and (product is None or product in self._without_room):
            name = self._without_room[0] if product is None else product
            reason = f"the thresholds of product {name!r} leave no room for the guard band of this engine; run snl-calibrate on the engine"
            return error("guard_band_too_wide", reason)
        if product is None:
            missing = sorted(fitted - set(self.decisions))
            if missing and self.decisions:  # the strictest of the others is no rule for it
                reason = f"product {missing[0]!r} was calibrated on another file and not on this one"
                return error("no_threshold_for_engine", f"{reason}; {NAME_THE_PRODUCT}, or run snl-calibrate on this file")
            if self.decisions:
                return None
            if fitted:
                return error("no_threshold_for_engine", "no threshold for this engine: the decisions belong to another file; run snl-calibrate")
            return error("no_decision", "the model was never calibrated; run snl-calibrate on this file")
        if not isinstance(product, str):
            return error("unknown_product", f"a product is named by a string, got {type(product).__name__}")
        if product in self.decisions:
            return None
        if product in fitted:
            return error("no_threshold_for_engine", f"no threshold for this engine and product {product!r}; run snl-calibrate on this file")
        known = ", ".join(sorted(self.decisions)) or "none"
        return error("unknown_product", f"no decision for product {product!r}; calibrated: {known}")


def merge_normalizations(decisions: Mapping[str, Decision], normalizations: Mapping[str, MapFactors | None]) -> MapFactors | None:
    """Return the factors under which a part is above the lowest pass threshold where any of the decisions finds it above its own.

    Each product's factors are scaled by lowest threshold / own threshold, and the largest counts in each cell: only what every product ignores is
    ignored. They serve regions, maps and images;
    verdicts come from each decision's own normalization, so that no rounding of the scale decides one.

    Args:
        decisions: By product.
        normalizations: What the map of each is multiplied with; None for a decision on raw maps.

    Returns:
        None if no decision has any, or a threshold is not positive, which :func:`snl_runtime.verdict.decision.decide` refuses.
    """
    thresholds = {product: decision.pass_threshold for product, decision in decisions.items()}
    if not any(normalizations.values()) or not all(0 < threshold < math.inf for threshold in thresholds.values()):
        return None
    lowest = min(thresholds.values())
    shape = next(normalization.values.shape for normalization in normalizations.values() if normalization is not None)
    merged = np.zeros(shape, np.float32)
    for product, normalization in normalizations.items():
        own = np.float32(1) if normalization is None else normalization.values
        merged = np.maximum(merged, np.float32(lowest / thresholds[product]) * own)
    return MapFactors(merged)
