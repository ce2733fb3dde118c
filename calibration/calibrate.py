"""Fit decisions on the file that ships and append them to its manifest."""

import dataclasses
import importlib.metadata
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from snl_runtime.backends.base import scored_by
from snl_runtime.errors import CalibrationRefusedError, ConfigError, DataError, FrameError, ManifestError
from snl_runtime.files import check_writable
from snl_runtime.images.files import read_image
from snl_runtime.images.frame_look import FrameLook, measure_look
from snl_runtime.images.listing import Listing
from snl_runtime.model.frame_range import FrameRange
from snl_runtime.model.ignore_mask import IgnoreMask
from snl_runtime.model.manifest import Decision, Evidence, Manifest, TileGrid, manifest_path
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.model.normalization_files import MapFile, encode_ignore_mask, encode_normalization
from snl_runtime.progress import ProgressReporter, no_progress
from snl_runtime.scorer import Scorer
from snl_runtime.types import AnomalyMap, Image
from snl_runtime.verdict.frame_checks import MIN_DEVIATION, FrameStatistics, check_frame, fit_frame_range
from snl_runtime.verdict.scored_frame import Scored

from .appending import append_decisions
from .evidence import BadPart, Detection, Hardest, collect_from_bad_images, collect_from_synthetic_defects, find_bad_parts, require_detection
from .ignore_mask import fit_ignore_mask
from .leniency import decision_before, find_must_reject, find_passing, require_not_lenient
from .normalization import NormalizationFit, check_normalization_sample, fit_product_normalization, note_on_normalization
from .options import CalibrationOptions
from .outliers import find_accepted, find_outliers
from .reference import fit_reference
from .sample import ProductSample, find_samples, listed, notes_on_sizes, read_parts, require_independent
from .thresholds import ThresholdFit, check_sample_size, fit_threshold
from .tiles import fit_tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductFit:
    """What came of one product.

    Attributes:
        product: Its name.
        decision: What is appended to the manifest; None if the fit was refused.
        refusal: Why it was refused, one sentence; None if it was not.
        fit: Threshold and bound; None if the refusal came before.
        evidence: Detection counts; None if the refusal came before.
        hardest: Kind to the defect of that kind that scored lowest; empty if the refusal came before.
        scores: Image name to score of the good parts, of a fixed-pose product under the normalization map of the others; empty if the refusal came
            before.
        normalization: Normalization map of a fixed-pose product; None without one or if the refusal came before.
        ignore_mask: Which cells of the map are judged; None if all are or the refusal came before.
        outliers: The ones of them beyond median + 6 MAD, accepted or not, highest first.
        paths: Image name to file of the good parts.
        sample_count: Number of good parts found.
        bit_depth: Bits that a value of their files uses; 8 if the refusal came before they were read.
        warnings: What a person should know, one sentence each.
    """

    product: str
    decision: Decision | None = None
    refusal: str | None = None
    fit: ThresholdFit | None = None
    evidence: Evidence | None = None
    hardest: dict[str, Hardest]
    scores: dict[str, float]
    normalization: NormalizationFit | None = None
    ignore_mask: IgnoreMask | None = None
    outliers: dict[str, float]
    paths: dict[str, Path]
    sample_count: int
    bit_depth: int
    warnings: list[str]


def calibrate(
    model_path: Path,
    good: Path,
    options: CalibrationOptions,
    *,
    on_listed: Callable[[Listing], None] = lambda _: None,
    before_writing: Callable[[Sequence[ProductFit]], None] = lambda _: None,
    progress: ProgressReporter = no_progress,
) -> list[ProductFit]:
    """Fit one decision per product and then append all of them to the manifest at once; a refused product does not stop the others.

    Args:
        model_path: ``x.onnx`` or ``x.trt`` with its manifest beside it. The decisions belong to this file's hash.
        good: Folder of good images, of product folders, or with ``options.held_out`` the training data's root.
        options: Promise and evidence.
        on_listed: Is given what was found in each folder of images, before any is read.
        before_writing: Is given the fits while nothing is written yet; where it raises, nothing is.
        progress: Told how far the reading and scoring of each product is.

    Raises:
        ConfigError: If the product cannot be told, an ignore mask is given for several, or an accepted outlier is no image of the sample or
            more than one.
        DataError: If a folder or image cannot be used; nothing is written then.
        ManifestError: If the model has no manifest or does not match it.
        SinkError: If the manifest cannot be written, which shows before the first image is read.
    """
    with Scorer(model_path, backend=options.backend, device=options.device) as scorer:
        manifest = scorer.bundle.manifest
        if manifest is None:
            raise ManifestError(f"{model_path} has no manifest beside it; export it with snl-export, which writes {manifest_path(model_path).name}")
        check_writable(manifest_path(model_path))
        samples = find_samples(good, manifest, options.product, held_out=options.held_out, on_listed=on_listed)
        if options.ignore_mask is not None and len(samples) > 1:
            raise ConfigError(f"--ignore-mask {options.ignore_mask} is for one product; name it with --product, {len(samples)} were found")
        options = dataclasses.replace(options, accept_outliers=find_accepted(samples, options.accept_outliers))
        samples[0].warnings.extend(scorer.bundle.notes)
        bad_parts = {sample.product: _bad_parts(sample, options, on_listed, is_only=len(samples) == 1) for sample in samples}
        must_reject = {sample.product: find_must_reject(options.must_reject, sample.product, on_listed) for sample in samples}
        fits = [
            _fit_product(scorer, manifest, _Record(sample, progress), bad_parts[sample.product], must_reject[sample.product], options)
            for sample in samples
        ]
    before_writing(fits)
    append_decisions(model_path, [(fit.decision, _map_files(model_path, fit)) for fit in fits if fit.decision is not None])
    return fits


@dataclass(slots=True)
class _Record:
    """What is known of a product so far; it outlives a refusal."""

    sample: ProductSample
    progress: ProgressReporter
    scores: dict[str, float] = field(default_factory=dict)
    maps: list[AnomalyMap] = field(default_factory=list)
    looks: list[FrameLook] = field(default_factory=list)
    normalization: NormalizationFit | None = None
    ignore_mask: IgnoreMask | None = None
    tiles: TileGrid | None = None
    outliers: dict[str, float] = field(default_factory=dict)
    fit: ThresholdFit | None = None
    detection: Detection | None = None

    @property
    def factors(self) -> MapFactors | None:
        """What the line multiplies the product's map with."""
        return self.ignore_mask if self.normalization is None else self.normalization.factors

    def result(self, *, decision: Decision | None = None, refusal: str | None = None) -> ProductFit:
        return ProductFit(
            product=self.sample.product,
            decision=decision,
            refusal=refusal,
            fit=self.fit,
            evidence=None if self.detection is None else self.detection.evidence,
            hardest={} if self.detection is None else self.detection.hardest,
            scores=self.scores,
            normalization=self.normalization,
            ignore_mask=self.ignore_mask,
            outliers=self.outliers,
            paths={part.name: part.path for part in self.sample.parts},
            sample_count=len(self.sample.parts),
            bit_depth=self.sample.bit_depth,
            warnings=self.sample.warnings,
        )


def _fit_product(
    scorer: Scorer,
    manifest: Manifest,
    record: _Record,
    bad_parts: list[BadPart] | None,
    must_reject: Sequence[Path],
    options: CalibrationOptions,
) -> ProductFit:
    try:
        decision = _decide(scorer, manifest, record, bad_parts, options)
        passing = find_passing(must_reject, record.sample, _passes(scorer, record, decision, options))
        before = decision_before(manifest, scorer.bundle.sha256, record.sample.product)
        decision = require_not_lenient(decision, before, passing, options)
    except CalibrationRefusedError as refusal:
        return record.result(refusal=str(refusal))
    return record.result(decision=decision)


def _decide(scorer: Scorer, manifest: Manifest, record: _Record, bad_parts: list[BadPart] | None, options: CalibrationOptions) -> Decision:
    record.sample = require_independent(read_parts(record.sample, options.bit_depth, record.progress), manifest)
    sample = record.sample
    sizes = sample.frame_sizes(any_size=options.any_size)
    sample.warnings.extend(notes_on_sizes(sizes, has_roi=options.roi_xyxy is not None))
    check_sample_size(len(sample.parts), options.max_frr, options.confidence)
    if options.fixed_pose:
        check_normalization_sample(len(sample.parts))
    record.tiles = fit_tiles(options, sizes, manifest)
    if options.ignore_mask is not None:
        map_hw = scorer.size_hw if record.tiles is None else record.tiles.map_hw
        record.ignore_mask = fit_ignore_mask(options.ignore_mask, sizes, options.roi_xyxy, map_hw, max_ignored=options.max_ignored)
    statistics = _score_good_parts(scorer, record, options)
    accepted = _require_no_unknown_outlier(record, options.accept_outliers)
    if options.fixed_pose:
        accepted = _fit_normalization(record, accepted, options)
    fit = record.fit = _fit_threshold(record, options)
    frame_range = fit_frame_range(statistics)
    detection = record.detection = _detect(scorer, manifest, record, fit, frame_range, bad_parts, options)
    require_detection(detection.evidence, fit)
    fitted_at = datetime.now(timezone.utc).replace(microsecond=0)
    return Decision(
        product=sample.product,
        model_sha256=scorer.bundle.sha256,
        pass_threshold=fit.pass_threshold,
        reject_threshold=fit.pass_threshold * (1 + options.review_band),
        floor=fit.floor,
        frame_sizes=sizes,
        bit_depth=sample.bit_depth,
        frame_range=frame_range,
        roi_xyxy=options.roi_xyxy,
        sample_count=fit.sample_count,
        sample_sha256=sample.sha256,
        max_frr=fit.max_frr,
        confidence=fit.confidence,
        bound=fit.bound,
        evidence=detection.evidence,
        accepted_outliers=accepted,
        backend=scored_by(scorer.backend, is_on_device=scorer.is_on_device),
        fitted_at=fitted_at.isoformat(),
        expires_at=None if options.valid_days is None else (fitted_at + timedelta(days=options.valid_days)).isoformat(),
        reference=fit_reference(list(record.scores.values()), record.looks),
        tool_version=importlib.metadata.version("snl-edge"),
        normalization=None
        if record.normalization is None
        else encode_normalization(scorer.bundle.path, sample.product, record.normalization.normalization)[0],
        ignore_mask=None if record.ignore_mask is None else encode_ignore_mask(scorer.bundle.path, sample.product, record.ignore_mask)[0],
        tiles=record.tiles,
        mm_per_px=options.mm_per_px,
    )


def _fit_normalization(record: _Record, accepted: list[str], options: CalibrationOptions) -> list[str]:
    """Fit the normalization map, put the normalized scores in place of the raw ones and return the outliers of either kind that a person accepted."""
    record.normalization = fit_product_normalization(record.scores, record.maps, record.ignore_mask, options.max_frr, options.confidence)
    record.maps.clear()
    record.scores = record.normalization.scores
    raw_outliers = record.outliers
    accepted = list(dict.fromkeys([*accepted, *_require_no_unknown_outlier(record, options.accept_outliers)]))
    record.outliers = {**raw_outliers, **record.outliers}
    return accepted


def _fit_threshold(record: _Record, options: CalibrationOptions) -> ThresholdFit:
    fit = fit_threshold(list(record.scores.values()), options.max_frr, options.confidence)
    if record.normalization is None:
        return fit
    return dataclasses.replace(fit, bound=f"{fit.bound}; each part was scored under the normalization map of all others")


def _detect(  # everything a decision rests on
    scorer: Scorer,
    manifest: Manifest,
    record: _Record,
    fit: ThresholdFit,
    frame_range: FrameRange,
    bad_parts: list[BadPart] | None,
    options: CalibrationOptions,
) -> Detection:
    sample = record.sample
    sizes = sample.frame_sizes(any_size=options.any_size)
    out_of_range: list[str] = []

    def score(image: Image, path: Path) -> float:
        scored = _score(scorer, image, path, record, options)
        if not sizes.fits((image.shape[0], image.shape[1])) or check_frame(scored.statistics, frame_range) is not None:
            out_of_range.append(path.name)
        if record.normalization is not None:
            record.normalization.raw_peaks.append(_peak(scored, record.ignore_mask))
        return _judged_score(scored, record)

    if bad_parts is not None:
        detection = collect_from_bad_images(score, bad_parts, sample, manifest, fit, options.min_detection, progress=record.progress)
    else:
        detection = collect_from_synthetic_defects(score, sample, fit, options, progress=record.progress)
    if record.normalization is not None:
        detected = sum(detected for detected, _ in detection.evidence.counts.values())
        note = note_on_normalization(record.normalization, fit, detected, detection.evidence.source)
        sample.warnings.extend([] if note is None else [note])
    if out_of_range:
        total = sum(total for _, total in detection.evidence.counts.values())
        sample.warnings.append(
            f"{len(out_of_range)} of {total} {detection.evidence.source} leave the qualified input range, by their size or by how much they change: "
            f"such parts become ERROR on the line, whatever they score ({listed(sorted(set(out_of_range)))})"
        )
    return detection


def _passes(scorer: Scorer, record: _Record, decision: Decision, options: CalibrationOptions) -> Callable[[Image, Path], bool]:
    def passes(image: Image, path: Path) -> bool:
        scored = _score(scorer, image, path, record, options)
        size_hw = (image.shape[0], image.shape[1])
        is_judged = decision.frame_sizes.fits(size_hw) and check_frame(scored.statistics, decision.frame_range) is None
        return is_judged and decision.floor <= _judged_score(scored, record) <= decision.pass_threshold

    return passes


def _judged_score(scored: Scored, record: _Record) -> float:
    """Return what the line compares with the thresholds of the product."""
    return _peak(scored, record.factors)


def _score_good_parts(scorer: Scorer, record: _Record, options: CalibrationOptions) -> list[FrameStatistics]:
    statistics: list[FrameStatistics] = []
    flat: list[str] = []
    with record.progress(len(record.sample.parts), unit="images", label=f"{record.sample.product}: score good parts") as steps:
        for part in record.sample.parts:
            image = read_image(part.path, record.sample.bit_depth)
            scored = _score(scorer, image, part.path, record, options)
            record.looks.append(measure_look(image, "rgb", options.roi_xyxy))
            record.scores[part.name] = _peak(scored, record.ignore_mask)
            if options.fixed_pose:
                record.maps.append(scored.anomaly_map)
            statistics.append(scored.statistics)
            if statistics[-1].deviation < MIN_DEVIATION:
                flat.append(part.name)
            steps.advance()
    if flat:
        raise CalibrationRefusedError(
            f"{len(flat)} good images show nothing (deviation below {MIN_DEVIATION:g} gray levels): {listed(flat)}; remove them"
        )
    return statistics


def _score(scorer: Scorer, image: Image, path: Path, record: _Record, options: CalibrationOptions) -> Scored:
    try:
        return scorer.score(image, "rgb", options.roi_xyxy, None if record.tiles is None else record.tiles.views(scorer.size_hw))
    except FrameError as error:
        raise DataError(f"{path}: {error}") from error


def _peak(scored: Scored, factors: MapFactors | None) -> float:
    """Return what the line compares with the threshold: without factors score and map may differ in the last bit."""
    return max(scored.score, float(scored.anomaly_map.max())) if factors is None else factors.peak(scored.anomaly_map)


def _require_no_unknown_outlier(record: _Record, accept: tuple[str, ...]) -> list[str]:
    report = find_outliers(record.scores)
    record.outliers = report.scores
    accepted = [name for name in report.scores if name in accept]
    unknown = {name: score for name, score in report.scores.items() if name not in accepted}
    if unknown:
        names = listed([f"{name} ({score:.6g})" for name, score in unknown.items()], shown=20)
        flags = " ".join(f"--accept-outlier {shlex.quote(name)}" for name in unknown) if len(unknown) <= 20 else "--accept-outlier NAME for each"
        raise CalibrationRefusedError(
            f"{len(unknown)} good images score beyond median + 6 MAD = {report.limit:.6g}: {names}; "
            f"look at each: take bad parts out of the folder, accept good ones with {flags}"
        )
    return accepted


def _bad_parts(sample: ProductSample, options: CalibrationOptions, on_listed: Callable[[Listing], None], *, is_only: bool) -> list[BadPart] | None:
    if options.bad is None:
        return None
    if not is_only and options.bad.is_dir() and not (options.bad / sample.product).is_dir():
        sample.warnings.append(f"{options.bad} has no folder {sample.product!r}: synthetic defects were used instead")
        return None
    return find_bad_parts(options.bad, sample.product, on_listed)


def _map_files(model_path: Path, fit: ProductFit) -> list[tuple[MapFile, bytes]]:
    files: list[tuple[MapFile, bytes]] = []
    if fit.normalization is not None:
        files.append(encode_normalization(model_path, fit.product, fit.normalization.normalization))
    if fit.ignore_mask is not None:
        files.append(encode_ignore_mask(model_path, fit.product, fit.ignore_mask))
    return files
