"""The four distillation losses of the SNL paper, Eq. 2 to 7.

Called with teacher and student only, each is the paper's sum, averaged over the batch; keywords select other readings. All are computed in
float32, or in float64 if an input is, also under autocast.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snl_train.affinity import DEFAULT_TILE_ROWS, inter_affinity_error, intra_affinity_error
from snl_train.config import LossConfig, Pairing, Reduction
from snl_train.features import full_precision, paired_scales, unit_vectors

Scales: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""(teacher, student) of each scale, both (B, D_k, H_k, W_k)."""


def channel_distillation(teacher: Sequence[Tensor], student: Sequence[Tensor], *, focus: float = 0.0) -> Tensor:
    """Return L_cd, Eq. 2: cosine distance per position, averaged over positions and batch, summed over scales.

    With a focus g > 0 the average of each scale is weighted by d^g, d being the distance itself: sum(d^g d) / sum(d^g). Weights take no gradient.

    Args:
        teacher: One tensor per scale, (B, D_k, H_k, W_k).
        student: Same shapes.
        focus: g; 0 is Eq. 2.

    Returns:
        A scalar in [0, 2 * number of scales].

    Raises:
        ValueError: If the two lists differ in length or in any shape.
    """
    return _channel(_unit_scales(teacher, student), focus)


def _channel(units: Scales, focus: float) -> Tensor:
    distances = [1 - (t * s).sum(1) for t, s in units]  # (B, D, H, W) -> (B, H, W) per scale
    return _add([_focused_mean(distance, focus) for distance in distances])


def _focused_mean(distance: Tensor, focus: float) -> Tensor:
    if focus == 0:
        return distance.mean()
    weights = distance.detach().clamp_min(0).pow(focus)
    return (weights * distance).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def spatial_distillation(teacher: Sequence[Tensor], student: Sequence[Tensor], *, temperature: float = 1.0, reduction: Reduction = "sum") -> Tensor:
    """Return L_sd, Eq. 3 and 4: KL divergence from student to teacher of each channel's softmax over positions.

    Args:
        teacher: One tensor per scale, (B, D_k, H_k, W_k).
        student: Same shapes.
        temperature: Divides the features before the softmax; 1 is the paper's.
        reduction: Over channels, per scale: ``sum`` is the paper's, ``mean`` divides by D_k.

    Returns:
        A scalar >= 0: averaged over the batch, summed over scales.

    Raises:
        ValueError: If the two lists differ in length or in any shape.
    """
    scales = paired_scales(teacher, student)
    with full_precision(scales[0][0].device):
        terms = []
        for of_teacher, of_student in scales:
            # (B, P, D), as features in channels last lie in memory; none is copied
            log_teacher, log_student = ((features.flatten(2).mT / temperature).log_softmax(1) for features in (of_teacher, of_student))
            divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)  # (B, D)
            terms.append((divergence.sum(1) if reduction == "sum" else divergence.mean(1)).mean())
        return _add(terms)


def intra_affinity(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    *,
    reduction: Reduction = "sum",
    tile_rows: int = DEFAULT_TILE_ROWS,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return L_intra, Eq. 5: L1 distance of the affinity matrices A = F^T F of features with unit length at each position.

    The matrices are walked in row tiles and never held; the norm of Eq. 5, of one number, is its absolute value.

    Args:
        teacher: One tensor per scale, (B, D_k, H_k, W_k).
        student: Same shapes.
        reduction: Over pairs of positions, per scale: ``sum`` is the paper's, ``mean`` divides by (H_k W_k)^2.
        tile_rows: Rows held at a time.
        product_dtype: Type of the factors of the matrix products; None for the features'.

    Returns:
        A scalar >= 0: averaged over the batch, summed over scales.

    Raises:
        ValueError: If the two lists differ in length or in any shape.
    """
    return _intra(_unit_scales(teacher, student), reduction, tile_rows, product_dtype)


def _intra(units: Scales, reduction: Reduction, tile_rows: int, product_dtype: torch.dtype | None) -> Tensor:
    terms = []
    for t, s in ((t.flatten(2), s.flatten(2)) for t, s in units):  # (B, D, P)
        error = intra_affinity_error(s, t, tile_rows, product_dtype=product_dtype).mean()
        terms.append(error if reduction == "sum" else error / t.shape[2] ** 2)
    return _add(terms)


def inter_affinity(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    *,
    reduction: Reduction = "sum",
    pairing: Pairing = "roll",
    pairs: Tensor | None = None,
    tile_rows: int = DEFAULT_TILE_ROWS,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return L_inter, Eq. 6: as ``intra_affinity``, for the cross affinity of each sample with another one of the batch.

    Args:
        teacher: One tensor per scale, (B, D_k, H_k, W_k).
        student: Same shapes.
        reduction: Over pairs of positions, per scale: ``sum`` is the paper's, ``mean`` divides by (H_k W_k)^2.
        pairing: How samples are paired, see ``sample_pairs``; the default pairs each with its successor and draws nothing, random ones draw from
            torch's global generator.
        pairs: (M, 2) indices into the batch, instead of ``pairing``.
        tile_rows: Rows held at a time.
        product_dtype: Type of the factors of the matrix products; None for the features'.

    Returns:
        A scalar >= 0: averaged over the pairs, summed over scales. 0 for a batch of one, which has no other sample.

    Raises:
        ValueError: If the two lists differ in length or in any shape.
    """
    units = _unit_scales(teacher, student)
    return _inter(units, reduction, sample_pairs(len(units[0][0]), pairing) if pairs is None else pairs, tile_rows, product_dtype)


def _inter(units: Scales, reduction: Reduction, pairs: Tensor, tile_rows: int, product_dtype: torch.dtype | None) -> Tensor:
    first, second = pairs.to(units[0][0].device, non_blocking=True).unbind(1)
    if len(first) == 0:
        return _add([s.sum() * 0 for _, s in units])
    terms = []
    for t, s in ((t.flatten(2), s.flatten(2)) for t, s in units):  # (B, D, P)
        error = inter_affinity_error((s[first], s[second]), (t[first], t[second]), tile_rows, product_dtype=product_dtype).mean()
        terms.append(error if reduction == "sum" else error / t.shape[2] ** 2)
    return _add(terms)


def _unit_scales(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Scales:
    """Return (teacher, student) of each scale with unit length at each position, in full precision."""
    scales = paired_scales(teacher, student)
    with full_precision(scales[0][0].device):
        return [(unit_vectors(t), unit_vectors(s)) for t, s in scales]


def structural_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    config: LossConfig,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    product_dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Return the weighted total of Eq. 7 and its unweighted parts.

    Parts of weight 0 are neither computed nor named.

    Args:
        teacher: One tensor per scale, (B, D_k, H_k, W_k).
        student: Same shapes.
        config: Weights and readings.
        labels: (B,) class of each sample; needed by the pairing ``different-class``.
        generator: What a random pairing draws from; None for torch's global one.
        product_dtype: Type of the factors of the affinities' matrix products, which are most of the time of SNL's losses: bfloat16 rounds a unit
            vector's entries to 3 digits, sums stay in float32. None for the features' own.

    Returns:
        Scalars by name: ``total`` and any of ``channel``, ``spatial``, ``intra``, ``inter``.

    Raises:
        ValueError: If shapes differ, or ``labels`` are needed and missing.
    """
    units = _unit_scales(teacher, student)  # once for all losses that compare directions
    positions = config.affinity_positions if config.intra_weight or config.inter_weight else 0
    compared = _at_random_positions(units, positions) if positions else units
    affinity: Any = {"reduction": config.affinity_reduction, "tile_rows": config.tile_rows, "product_dtype": product_dtype}
    parts: dict[str, Tensor] = {}
    with full_precision(units[0][0].device):
        if config.channel_weight:
            parts["channel"] = _channel(units, config.channel_focus)
        if config.spatial_weight:
            parts["spatial"] = spatial_distillation(teacher, student, temperature=config.spatial_temperature, reduction=config.spatial_reduction)
        if config.intra_weight:
            parts["intra"] = _intra(compared, **affinity)
        if config.inter_weight:
            pairs = sample_pairs(len(teacher[0]), config.inter_pairing, labels=labels, generator=generator)
            parts["inter"] = _inter(compared, pairs=pairs, **affinity)
        return {"total": _total(parts, config) if parts else student[0].sum() * 0, **parts}


def _total(parts: Mapping[str, Tensor], config: LossConfig) -> Tensor:
    """Return the sum of Eq. 7."""
    weights = {
        "channel": config.channel_weight,
        "spatial": config.spatial_weight,
        "intra": config.intra_weight,
        "inter": config.inter_weight,
    }
    return _add([weights[name] * part for name, part in parts.items()])


def sample_pairs(count: int, pairing: Pairing, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Return which samples of a batch are compared with each other.

    ``roll``: each with its successor, the last with the first. ``permutation``: the same along a random order. ``mutual``: disjoint random pairs;
    one matrix serves both ways, at half the cost (with an odd count one sample is left out). ``different-class``: each with one of another class,
    at random; samples that have no partner of another class are left out, and a batch of one class is paired by ``permutation``.

    Args:
        count: Samples in the batch.
        pairing: One of the above.
        labels: (count,) class of each sample, for ``different-class``.
        generator: CPU generator of the random pairings; None for torch's global one.

    Returns:
        (M, 2) int64 indices, no sample with itself; M = 0 for a batch of one.

    Raises:
        ValueError: If ``different-class`` lacks ``labels``.
    """
    if count < 2:
        return torch.empty(0, 2, dtype=torch.int64)
    if pairing == "roll":
        order = torch.arange(count)
        return torch.stack([order, order.roll(-1)], 1)
    order = torch.randperm(count, generator=generator)
    if pairing == "mutual":
        return order[: count // 2 * 2].view(-1, 2)
    if pairing == "different-class":
        if labels is None or len(labels) != count:
            raise ValueError(f"pairing different-class needs labels for all {count} samples")
        shuffled = labels.detach().cpu()[order]
        by_class = order[shuffled.argsort(stable=True)]
        largest = int(shuffled.eq(shuffled[:, None]).sum(1).max())
        pairs = torch.stack([by_class, by_class.roll(-largest)], 1)  # a shift by the largest class leaves every class that fits half the batch
        differs = labels.detach().cpu()[pairs]
        pairs = pairs[differs[:, 0] != differs[:, 1]]
        if len(pairs):
            return pairs
    return torch.stack([order, order.roll(-1)], 1)


def _at_random_positions(scales: Scales, count: int) -> Scales:
    """Return both (B, D_k, min(count, H_k W_k), 1) at the same positions, drawn without repetition from torch's global generator.

    A scale with no more positions than ``count`` stays as it is and draws nothing.
    """
    chosen: list[tuple[Tensor, Tensor]] = []
    for teacher, student in scales:
        total = teacher.shape[2] * teacher.shape[3]
        if total <= count:
            chosen.append((teacher, student))
            continue
        drawn = torch.randperm(total)[:count].to(teacher.device, non_blocking=True)
        t, s = (features.flatten(2)[:, :, drawn, None] for features in (teacher, student))  # (B, D, count, 1)
        chosen.append((t, s))
    return chosen


def _add(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of scalars in the widest dtype among them."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
