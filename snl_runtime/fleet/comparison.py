"""Two inspections of one archive compared: which verdicts changed, and whether calibration allows for as many."""

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import DataError
from snl_runtime.fleet.packages import load_package
from snl_runtime.fleet.results import read_results, read_run
from snl_runtime.parity.replay import NOT_OF_THE_FRAME

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_COLUMNS = ("row_id", "file", "row", "verdict", "reason_code", "score", "threshold")
_REFUSED = ("REVIEW", "REJECT")
_MOMENT = "MOMENT"
"""In place of ERROR where the cause was the moment, not the frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What calibration said of one product: at most a share ``max_frr`` of good parts scores above the threshold, with this confidence."""

    max_frr: float
    confidence: float
    ignored_share: float = 0.0
    """Share of the inspected part that it says nothing about, under an ignore mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """A count of changed verdicts against what a promise allows.

    Attributes:
        changed: Parts with the change.
        of: Parts that could have had it.
        share: Largest share that the promise allows; None without a promise.
        probability: Chance of as many changes or more if the share is that; None without a promise.
        is_within: Whether the count does not contradict the promise.
    """

    changed: int
    of: int
    share: float | None
    probability: float | None
    is_within: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductComparison:
    """One product, before and now.

    Attributes:
        product: Its name; None where the strictest of several rules judged.
        rows: Parts that both inspections judged.
        verdicts: How many parts went from the first verdict to the second, unchanged ones included.
        refused: Parts that passed before and are refused now, against the promise of both calibrations.
        passed: Parts that were refused before and pass now, against the promise of the earlier one.
        new_errors: Parts with a verdict before and an ERROR now.
        lost_errors: Parts that were an ERROR of the frame before and pass now.
        not_compared: Parts whose earlier ERROR came from the moment (a timeout), not from the frame.
        ignored: Share of the inspected part that an ignore mask hid before, and now; without a product the least of all, as no more is hidden to all.
        score_changes: Percentiles of the change of the score in units of the threshold, by percentile; empty if nothing was scored twice.
        histogram: Counts of these changes, and the edges of their bins.
    """

    product: str | None
    rows: int
    verdicts: Mapping[tuple[str, str], int]
    refused: Allowance
    passed: Allowance
    new_errors: int
    lost_errors: int
    not_compared: int
    ignored: tuple[float, float]
    score_changes: Mapping[int, float]
    histogram: tuple[tuple[int, ...], tuple[float, ...]]

    @property
    def is_within(self) -> bool:
        """Whether nothing here is beyond what calibration allows; ERRORs that come or go, and more that is not judged, are covered by no promise."""
        is_promised = self.refused.is_within and self.passed.is_within and self.ignored[1] <= self.ignored[0]
        return is_promised and not self.new_errors and not self.lost_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One of the most changed parts; ids are those of the two plans, scores in units of their threshold, NaN without one."""

    file: str
    row: int | None
    product: str | None
    old_id: int
    new_id: int
    old_verdict: str
    new_verdict: str
    old_reason: str
    new_reason: str
    old_relative: float
    new_relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is said about two inspections.

    Attributes:
        products: One entry each, sorted by name.
        only_old: Parts that the later inspection does not have.
        only_new: Parts that the earlier inspection does not have.
        most_changed: The parts to look at first: those that pass now and did not, other verdict changes, then the largest changes of the score.
    """

    products: tuple[ProductComparison, ...]
    only_old: int
    only_new: int
    most_changed: tuple[Changed, ...]

    @property
    def is_within(self) -> bool:
        """Whether both hold the same parts, and no product changed more than calibration allows."""
        return not self.only_old and not self.only_new and all(product.is_within for product in self.products)


def compare_results(old: Path, new: Path, *, most: int = 24) -> Comparison:
    """Compare two finished inspections part by part; a part is a file, or a row of a table.

    Args:
        old: Results of the model that is in use.
        new: Results of the one that is to replace it.
        most: Parts in ``most_changed``.

    Raises:
        DataError: If one of them is not finished, or they share no part.
    """
    tables = [_table_of(folder) for folder in (old, new)]
    joined = tables[0].join(tables[1], keys=["file", "row"], left_suffix="_old", right_suffix="_new", join_type="inner").sort_by("row_id_new")
    if joined.num_rows == 0:
        raise DataError(f"{old} and {new} have no file in common; inspect the same archive under the same name twice")
    products = np.array(joined["product_new"].to_pylist(), object)
    columns = _Columns(joined)
    promises = [_promises(folder) for folder in (old, new)]
    names = sorted({*products.tolist()}, key=lambda name: (name is None, name or ""))
    return Comparison(
        products=tuple(_compare_product(name, columns, products == name, promises) for name in names),
        only_old=tables[0].num_rows - joined.num_rows,
        only_new=tables[1].num_rows - joined.num_rows,
        most_changed=tuple(columns.changed(joined, int(at)) for at in columns.ranked()[:most]),
    )


def allow_refused(changed: int, of: int, old: Promise | None, new: Promise | None) -> Allowance:
    """Judge how many parts that passed are refused now.

    Were all of them good, the new threshold refuses at most a share ``new.max_frr`` of all good parts; those that the old one passed are at least
    ``1 - old.max_frr`` of these, so among them the share is at most ``new.max_frr / (1 - old.max_frr)``.
    """
    if old is None or new is None:
        return _without_promise(changed, of)
    return _allowance(changed, of, new.max_frr / (1 - old.max_frr) if old.max_frr < 1 else 1.0, 1 - new.confidence)


def allow_passed(changed: int, passed_before: int, old: Promise | None) -> Allowance:
    """Judge how many parts that were refused pass now.

    Were all of them good, they are false rejects of the old threshold, which are at most a share ``old.max_frr`` of the good parts: of these and the
    parts that passed. More of them means bad parts that pass now. Fewer does not mean that they are good.
    """
    if old is None:
        return _without_promise(changed, passed_before + changed)
    return _allowance(changed, passed_before + changed, old.max_frr, 1 - old.confidence)


def binomial_tail(count: int, trials: int, share: float) -> float:
    """Return the probability of ``count`` or more successes in ``trials``.

    Example:
        >>> round(binomial_tail(2, 3, 0.5), 6), binomial_tail(0, 9, 0.1)
        (0.5, 1.0)
    """
    if count <= 0:
        return 1.0
    if count > trials or share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    if count <= trials * share:  # the other side has the shorter sum
        return max(0.0, 1.0 - _mass(range(count - 1, -1, -1), trials, share))
    return min(1.0, _mass(range(count, trials + 1), trials, share))


def _mass(counts: range, trials: int, share: float) -> float:
    total = 0.0
    for count in counts:  # from the mode outwards, so that the terms fall
        log = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        term = math.exp(log + count * math.log(share) + (trials - count) * math.log1p(-share))
        total += term
        if term < total * 1e-16 or (total == 0.0 and term == 0.0):
            break
    return total


def _allowance(changed: int, of: int, share: float, level: float) -> Allowance:
    probability = binomial_tail(changed, of, share)
    return Allowance(changed=changed, of=of, share=share, probability=probability, is_within=probability >= level)


def _without_promise(changed: int, of: int) -> Allowance:
    return Allowance(changed=changed, of=of, share=None, probability=None, is_within=changed == 0)


def _table_of(folder: Path) -> Any:
    compute = load_package("pyarrow.compute")
    table = read_results(folder, _COLUMNS)
    row = compute.fill_null(table["row"], -1)  # null is equal to nothing, also not in a join
    return table.set_column(table.schema.get_field_index("row"), "row", row)


def _promises(folder: Path) -> dict[str | None, Promise]:
    """Return the promise of each product; under None that of the strictest of all rules, which refuses at most as many as all of them together."""
    run = read_run(folder) or {}
    found: dict[str | None, Promise] = {
        name: Promise(max_frr=float(entry["max_frr"]), confidence=float(entry["confidence"]), ignored_share=float(entry.get("ignored_share", 0.0)))
        for name, entry in run.get("decisions", {}).items()
    }
    if found:
        shares, doubts = [each.max_frr for each in found.values()], [1 - each.confidence for each in found.values()]
        ignored = min(each.ignored_share for each in found.values())
        found[None] = Promise(max_frr=min(1.0, sum(shares)), confidence=max(0.0, 1 - sum(doubts)), ignored_share=ignored)
    return found


class _Columns:
    """What is compared, as arrays."""

    def __init__(self, joined: Any) -> None:
        self.old, self.new = _verdicts(joined, "old"), _verdicts(joined, "new")
        self.old_relative, self.new_relative = _relative(joined, "old"), _relative(joined, "new")
        self.change = self.new_relative - self.old_relative

    def ranked(self) -> npt.NDArray[np.intp]:
        """Return the positions of the most changed parts, most first; unchanged ones are left out."""
        is_changed = self.old != self.new
        passes_now = is_changed & (self.new == "PASS")
        size = np.nan_to_num(np.abs(self.change), nan=0.0)
        order: npt.NDArray[np.intp] = np.lexsort((-size, ~is_changed, ~passes_now))
        return np.asarray(order[(is_changed | (size > 0))[order]])

    def changed(self, joined: Any, at: int) -> Changed:
        row = {name: joined[name][at].as_py() for name in joined.schema.names}
        return Changed(
            file=row["file"],
            row=None if row["row"] < 0 else row["row"],
            product=row["product_new"],
            old_id=row["row_id_old"],
            new_id=row["row_id_new"],
            old_verdict=row["verdict_old"],
            new_verdict=row["verdict_new"],
            old_reason=row["reason_code_old"],
            new_reason=row["reason_code_new"],
            old_relative=float(self.old_relative[at]),
            new_relative=float(self.new_relative[at]),
        )


def _verdicts(joined: Any, side: str) -> npt.NDArray[Any]:
    verdicts = np.array(joined[f"verdict_{side}"].to_pylist(), object)
    verdicts[np.isin(np.array(joined[f"reason_code_{side}"].to_pylist(), object), [*NOT_OF_THE_FRAME - {"frame_fault"}])] = _MOMENT
    return verdicts


def _relative(joined: Any, side: str) -> npt.NDArray[np.float64]:
    score, threshold = (np.asarray(joined[f"{name}_{side}"].to_numpy(), np.float64) for name in ("score", "threshold"))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = score / threshold
    return np.where(np.isfinite(relative), relative, np.nan)


def _compare_product(
    name: str | None, columns: _Columns, chosen: npt.NDArray[np.bool_], promises: Sequence[Mapping[str | None, Promise]]
) -> ProductComparison:
    old, new = columns.old[chosen], columns.new[chosen]
    counts = collections.Counter(zip(old.tolist(), new.tolist()))
    refused = sum(counts["PASS", verdict] for verdict in _REFUSED)
    passed = sum(counts[verdict, "PASS"] for verdict in _REFUSED)
    both = refused + counts["PASS", "PASS"]
    change = columns.change[chosen]
    change = change[np.isfinite(change)]
    scored = ("PASS", *_REFUSED)
    before, now = (promise.get(name) for promise in promises)
    bins, edges = np.histogram(change, 40) if change.size else (np.zeros(0, int), np.zeros(0))
    return ProductComparison(
        product=name,
        rows=int(chosen.sum()),
        verdicts=dict(sorted(counts.items())),
        refused=allow_refused(refused, both, before, now),
        passed=allow_passed(passed, both, before),
        new_errors=sum(counts[verdict, fault] for verdict in scored for fault in ("ERROR", _MOMENT)),
        lost_errors=counts["ERROR", "PASS"],
        not_compared=sum(count for (was, _), count in counts.items() if was == _MOMENT),
        ignored=(0.0 if before is None else before.ignored_share, 0.0 if now is None else now.ignored_share),
        score_changes=dict(zip(PERCENTILES, np.percentile(change, PERCENTILES).tolist())) if change.size else {},
        histogram=(tuple(bins.tolist()), tuple(edges.tolist())),
    )
