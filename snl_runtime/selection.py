"""Which decisions of a manifest apply to a frame."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from snl_runtime.decision import FrameStatistics, MapSummary, Ruling, decide, error, strictest
from snl_runtime.manifest import Decision, Manifest
from snl_runtime.types import AnomalyMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The decisions under which one frame is judged.

    Attributes:
        decisions: By product; several where no product was named.
        accepted_sha256: Hashes of the files whose decisions hold for the file that scores.
        product: What the record names; None where several decisions apply.
        roi_xyxy: Part of the frame to look at; None for all of it.
        fault: Why there is no usable decision, None if there is one.
    """

    decisions: Mapping[str, Decision] = field(default_factory=dict)
    accepted_sha256: frozenset[str] = frozenset()
    product: str | None = None
    roi_xyxy: tuple[int, int, int, int] | None = None
    fault: Ruling | None = None

    @property
    def threshold(self) -> float:
        """Lowest pass threshold; NaN without a decision."""
        return min((d.pass_threshold for d in self.decisions.values()), default=math.nan)

    @property
    def reject_threshold(self) -> float:
        """Lowest reject threshold; NaN without a decision."""
        return min((d.reject_threshold for d in self.decisions.values()), default=math.nan)

    def rule(
        self, score: float, anomaly_map: AnomalyMap | MapSummary | None, statistics: FrameStatistics, *, golden_checked: bool, now: datetime
    ) -> Ruling:
        """Return the verdict on a scored frame, see :func:`snl_runtime.decision.decide`."""
        if self.fault is not None:
            missing = error("no_golden_check", "no golden sample was scored in this process; export the model again with snl-export")
            return self.fault if golden_checked or self.fault.reason_code == "no_manifest" else missing
        rulings = {
            product: decide(
                score,
                anomaly_map,
                decision,
                statistics=statistics,
                golden_checked=golden_checked,
                accepted_sha256=self.accepted_sha256,
                now=now,
            )
            for product, decision in self.decisions.items()
        }
        return strictest(rulings)


class DecisionBook:
    """The decisions of one opened file.

    Args:
        manifest: None for a lone ``.onnx``.
        sha256: Hash of the opened file.
    """

    def __init__(self, manifest: Manifest | None, sha256: str) -> None:
        self._manifest = manifest
        self._accepted = frozenset() if manifest is None else accepted_hashes(manifest, sha256)
        self.decisions: dict[str, Decision] = {} if manifest is None else dict(manifest.decisions_for(sha256))
        """Newest decision per product that holds for this file."""

    def select(self, product: object = None) -> Selection:
        """Return what applies to a frame of a product; None names none. Any object is accepted, an unknown one selects a fault."""
        named = product if isinstance(product, str) else None
        fault = self._fault(product)
        if fault is not None:
            return Selection(product=named, fault=fault)
        chosen = self.decisions if named is None else {named: self.decisions[named]}
        rois = {None if d.roi_xyxy is None else tuple(d.roi_xyxy) for d in chosen.values()}
        if len(rois) > 1:
            names = ", ".join(sorted(chosen))
            return Selection(fault=error("ambiguous_roi", f"products {names} look at different parts of the frame; name the product"))
        return Selection(
            decisions=chosen,
            accepted_sha256=self._accepted,
            product=next(iter(chosen)) if len(chosen) == 1 else None,
            roi_xyxy=next(iter(chosen.values())).roi_xyxy,
        )

    def _fault(self, product: object) -> Ruling | None:
        if self._manifest is None:
            return error("no_manifest", "no manifest beside the model: it scores, but cannot pass a part; export it with snl-export")
        fitted = {d.product for d in self._manifest.decisions}
        if product is None:
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


def accepted_hashes(manifest: Manifest, sha256: str) -> frozenset[str]:
    """Return the hashes of the files whose decisions hold for a file: itself, and the ONNX if this engine passed the parity gate without a flip."""
    engine = manifest.engine_for(sha256)
    if engine is not None and engine.parity is not None and engine.parity.passed and engine.parity.flips == 0:
        return frozenset({sha256, manifest.model_sha256})
    return frozenset({sha256})
