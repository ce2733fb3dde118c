"""Decisions of a model that products were added to: kept for the products whose scores are found to be the same, refused by name for the others."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from snl_calibration.leniency import default_author
from snl_calibration.synthetic_defects import DEFECT_KINDS, add_defect
from snl_runtime.errors import ConfigError
from snl_runtime.images.views import Tiles
from snl_runtime.model.golden import TOLERANCES
from snl_runtime.model.guard_band import tightened
from snl_runtime.model.manifest import Decision, DecisionChange, Manifest
from snl_runtime.scorer import Scorer
from snl_runtime.types import AnomalyMap, Image
from snl_train.checkpoint import Checkpoint

_SEEDS = 4
"""Synthetic defects of each kind on each golden sample."""
_SAME = TOLERANCES["fp32"]
"""Largest difference of judged maps that are the same, as a share of the pass threshold."""
_TINY = sys.float_info.min


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDecisions:
    """What became of the decisions of the file that an export replaces.

    Attributes:
        decisions: Those that hold for the new file too, with its hash.
        refused: Product to why its decision does not hold, one clause.
    """

    decisions: list[Decision] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One sentence for each product, and one on parts whose product nobody names where some are kept and some are not."""
        kept = [f"{decision.product}: the decision holds, its anomaly maps are the same" for decision in self.decisions]
        refused = [f"{product}: the decision does not hold, {why}: calibrate again" for product, why in sorted(self.refused.items())]
        unnamed = "until then name the product of each part: one without is ERROR"
        return [*kept, *refused, *([unnamed] if kept and refused else [])]


def keep_decisions(checkpoint: Checkpoint, earlier: Manifest | None, earlier_path: Path, new_path: Path, *, precision: str) -> KeptDecisions:
    """Compare the anomaly maps of the replaced file and the new one, product by product, and keep the decisions of those whose maps are the same.

    Looked at are the golden samples of the product and synthetic defects on them: with more centers a defect may score lower where good parts score
    as before. Evidence, and no proof for every defect: that is why decisions are kept only where a person asks for it.

    Same means: as near as two machines come in fp32, whatever the precision, because one backend here computes both files; in units of the pass
    threshold, under the largest value of a normalization map. What difference is left is a guard band of the thresholds, as for an engine, so that
    nothing that was looked at passes and did not.

    Args:
        checkpoint: What is exported.
        earlier: Manifest of the file that is replaced.
        earlier_path: That file.
        new_path: The new file with its manifest beside it.
        precision: Of the new file.

    Raises:
        ConfigError: If there is nothing to keep, or the new file is not the earlier one with products added, in the same precision.
    """
    current = _current_decisions(checkpoint, earlier, earlier_path, precision)
    trained = checkpoint.config.data.tiles
    kept = KeptDecisions()
    with Scorer(earlier_path) as before, Scorer(new_path, backend=before.backend.name) as after:
        for product, decision in current.items():
            images = [image for image, name in zip(checkpoint.golden_images, checkpoint.golden_classes, strict=True) if name == product]
            why = _unlike_golden(decision, trained) or ("" if images else "there is no golden sample of it to compare")
            largest = 0.0 if why else max(_difference(before, after, image) for golden in images for image in _probes(golden))
            judged = largest * (1.0 if decision.normalization is None else decision.normalization.highest)
            if not why and not judged <= _SAME * decision.pass_threshold:
                why = f"its anomaly maps differ by up to {100 * judged / max(decision.pass_threshold, _TINY):.2g} % of the pass threshold"
            own = None if why else tightened(decision, guard_band=largest, map_max_abs=largest)
            if own is None:
                kept.refused[product] = why or "its thresholds leave no room for the difference of the anomaly maps"
            else:  # nearer than the parts of the sample are to each other, so the drift of the line is still measured against them
                kept.decisions.append(_renewed(dataclasses.replace(own, reference=decision.reference), after.bundle.sha256))
    return kept


def _unlike_golden(decision: Decision, trained: Tiles | None) -> str:
    """Return why a product is not inspected as its golden samples show it; empty if it is."""
    if decision.roi_xyxy is not None:
        return "it looks at a region of interest, and the golden samples show whole frames"
    if any(tiles is not None and tiles.with_whole_frame for tiles in (decision.tiles, trained)):
        return "it or the model looks at tiles and at whole frames, and the golden samples may show one of them only"
    own_px, trained_px = (None if tiles is None else tiles.tile_px for tiles in (decision.tiles, trained))
    if own_px != trained_px:
        seen, shown = (f"tiles of {side} px" if side else "whole frames" for side in (own_px, trained_px))
        return f"it looks at {seen}, and the golden samples show {shown}"
    return ""


def _current_decisions(checkpoint: Checkpoint, earlier: Manifest | None, earlier_path: Path, precision: str) -> Mapping[str, Decision]:
    current = {} if earlier is None else earlier.decisions_for(earlier.model_sha256)
    if earlier is None or not current:
        raise ConfigError(f"--keep-decisions: {earlier_path} has no decision to keep; leave it out")
    added = checkpoint.provenance.get("added", [])
    if not added or earlier.training.get("checkpoint_sha256") not in [one["to_sha256"] for one in added]:
        raise ConfigError(f"--keep-decisions: the checkpoint is not that of {earlier_path} with products added; leave it out and calibrate again")
    if earlier.graph.get("precision") != precision:
        raise ConfigError(
            f"--keep-decisions: {earlier_path} is {earlier.graph.get('precision')} and the new file {precision}; export in the same one"
        )
    return current


def _probes(golden: Image) -> Iterator[Image]:
    yield golden
    for number, kind in enumerate(DEFECT_KINDS):
        for seed in range(_SEEDS):
            yield add_defect(golden, kind, np.random.default_rng([number, seed])).image


def _difference(before: Scorer, after: Scorer, image: Image) -> float:
    """Return the largest difference of score or map."""
    (score, anomaly_map), (new_score, new_map) = (_scored(scorer, image) for scorer in (before, after))
    return max(abs(score - new_score), float(np.abs(anomaly_map - new_map).max()))


def _scored(scorer: Scorer, image: Image) -> tuple[float, AnomalyMap]:
    scores, maps = scorer.score_inputs(image[None])  # finite, or it raises
    return float(scores[0]), maps[0]


def _renewed(decision: Decision, sha256: str) -> Decision:
    written_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fitted_on = (None if decision.change is None else decision.change.kept_from) or decision.model_sha256
    change = DecisionChange(written_at=written_at, written_by=default_author(), kept_from=fitted_on)
    return dataclasses.replace(decision, model_sha256=sha256, change=change)
