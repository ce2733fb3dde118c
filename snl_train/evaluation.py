"""Evaluation of a checkpoint or an exported model on labeled images.

Images go through the one preprocessing of the line and are measured at network resolution; the image score is the maximum of the map; a mask cell is
anomalous when any part of it is. A file that prepares frames on the GPU on the line does so here too. The same function takes a checkpoint
(`CheckpointScorer`) and an exported file (`snl_runtime.scorer.Scorer`), so the two can be compared number by number.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import BackendUnavailableError, DataError, InferenceError
from snl_runtime.images.preprocess import InputSpec, prepare, resize_mask
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.images.views import Tiles, score_views, tile_views
from snl_runtime.scorer import Scorer
from snl_runtime.types import AnomalyMap, Image
from snl_train.data.samples import Sample
from snl_train.ignored_part import IgnoredPart
from snl_train.measures import Bootstrap, GroupMeasures, Measure, ScoredImage, measure_groups

if TYPE_CHECKING:
    import torch

    from snl_train.checkpoint import Checkpoint

_READERS = 2
"""Threads that decode images while the model scores the batch before."""


class InputScorer(Protocol):
    """What can be evaluated: a checkpoint, an exported model, or anything else that gives a map per network input."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input and of its maps."""

    def score_inputs(self, images: npt.NDArray[np.uint8], /) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return scores (N,) and maps (N, H, W) of images (N, H, W, 3) uint8 RGB."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluation:
    """What a model reaches on a set of labeled images.

    Attributes:
        size_hw: Resolution at which everything was measured.
        bootstrap: How the intervals were made.
        classes: One entry per class, sorted by name.
        mean: Mean over the classes for which a metric is defined.
        pooled: All images as one set: what a single threshold for all products would reach.
        images: Every scored image, in the order given.
        left_out: Unreadable files and why; empty unless skipping was asked for.
    """

    size_hw: tuple[int, int]
    bootstrap: Bootstrap
    classes: Sequence[GroupMeasures]
    mean: GroupMeasures
    pooled: GroupMeasures
    images: Sequence[ScoredImage]
    left_out: Sequence[tuple[Path, str]] = ()

    @property
    def ignored_share(self) -> dict[str, float]:
        """Share of the pixels that is not judged, 0 to below 1, by class; only classes with an ignore mask."""
        return {image.sample.class_name: 1 - float(image.judged.mean()) for image in self.images if image.judged is not None}

    def to_plain(self, *, relative_to: Path | None = None) -> dict[str, Any]:
        """Return plain values for JSON: no NaN, None where a metric is not defined.

        Args:
            relative_to: Folder that the paths of images start from, where they lie below it.
        """
        return {
            "size_hw": list(self.size_hw),
            "bootstrap": {"resamples": self.bootstrap.resamples, "confidence": self.bootstrap.confidence, "seed": self.bootstrap.seed},
            "ignored_share": self.ignored_share,
            "classes": {group.name: _plain_group(group) for group in self.classes},
            "mean": _plain_group(self.mean),
            "pooled": _plain_group(self.pooled),
            "images": [_plain_image(image, relative_to) for image in self.images],
            "left_out": [{"path": _plain_path(path, relative_to), "reason": reason} for path, reason in self.left_out],
        }


def evaluate(
    scorer: InputScorer,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    bootstrap: Bootstrap | None = None,
    skip_unreadable: bool = False,
    on_images: Callable[[int], None] = lambda _: None,
    on_group: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score samples and measure the result.

    Keeps all maps in memory: 256 KiB per image at 256x256, 320 KiB with its mask.

    Args:
        scorer: Model to evaluate.
        samples: Labeled images, good ones and anomalous ones, of any number of classes.
        batch_size: Images per call of the scorer.
        bootstrap: How intervals are made; None for 1000 resamples at 95 %.
        skip_unreadable: List unreadable files in ``left_out`` instead of raising.
        on_images: Called with the number of images after each batch.
        on_group: Called after each class and after the pooled group were measured.

    Raises:
        DataError: If there is no sample, or one cannot be read.
        InferenceError: If the model's answer is not finite.
    """
    images, left_out = score_samples(scorer, samples, batch_size=batch_size, skip_unreadable=skip_unreadable, on_images=on_images)
    return measure(images, scorer.size_hw, bootstrap=bootstrap, left_out=left_out, on_group=on_group)


def score_samples(
    scorer: InputScorer,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    tiles: Tiles | None = None,
    ignored: Mapping[str, IgnoredPart] | None = None,
    skip_unreadable: bool = False,
    on_images: Callable[[int], None] = lambda _: None,
) -> tuple[list[ScoredImage], list[tuple[Path, str]]]:
    """Return the scored images and the unreadable files with the reason, the first half of `evaluate`.

    Seen in tiles, an image has the largest score of its views, and its merged map is reduced to the network's size, at which everything is measured.

    Args:
        scorer: Model to evaluate.
        samples: Labeled images.
        batch_size: Images, or views of one, per call of the scorer.
        tiles: In which tiles images are seen, alone or beside the whole image; None to see them only as a whole.
        ignored: What is not judged, by class: a score is then the largest judged value of the map, and the defect is what of it is judged.
        skip_unreadable: List unreadable files instead of raising.
        on_images: Called with the number of images after each batch.

    Raises:
        DataError: If there is no sample, or one cannot be read.
        InferenceError: If the model's answer is not finite.
    """
    if not samples:
        raise DataError("no labeled test images were found; expected test/good and test/<defect> folders (MVTec AD) or VisA's CSV")
    left_out: list[tuple[Path, str]] = []
    images: list[ScoredImage] = []
    on_device = isinstance(scorer, Scorer) and scorer.is_on_device
    for batch in _read_batches(samples, scorer.size_hw, batch_size, is_prepared=not on_device and tiles is None):
        for read, score, answer in _score_batch(scorer, _readable(batch, left_out, skip_unreadable=skip_unreadable), tiles, batch_size):
            images.append(_scored(read, score, answer, (ignored or {}).get(read.sample.class_name), scorer.size_hw))
        on_images(len(batch))
    if not images:
        raise DataError(f"none of the {len(samples)} test images can be read; the first one: {left_out[0][1]}")
    return images, left_out


def measure(
    images: Sequence[ScoredImage],
    size_hw: tuple[int, int],
    *,
    bootstrap: Bootstrap | None = None,
    left_out: Sequence[tuple[Path, str]] = (),
    on_group: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Return the metrics of scored images with maps of ``size_hw``, the second half of `evaluate`."""
    bootstrap = bootstrap if bootstrap is not None else Bootstrap()
    classes, mean, pooled = measure_groups(images, bootstrap, on_group=on_group)
    return Evaluation(size_hw=size_hw, bootstrap=bootstrap, classes=classes, mean=mean, pooled=pooled, images=images, left_out=tuple(left_out))


class CheckpointScorer:
    """Scores prepared images with a checkpoint, in float32.

    Args:
        checkpoint: Loaded checkpoint.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto`` (CUDA if there is one).

    Attributes:
        model: The networks, in eval mode on the device.
        size_hw: Height and width of its input.

    Raises:
        CheckpointError: If the weights do not fit the configuration.
        BackendUnavailableError: If the device does not exist.
        ConfigError: If a GPU has too little memory for it.
    """

    def __init__(self, checkpoint: "Checkpoint", device: str = "cpu") -> None:
        self._device = _torch_device(device)
        with _explaining_full_gpu("the model"):
            self.model = checkpoint.build_model().to(self._device)
        self._score_config = checkpoint.config.score
        height, width = checkpoint.config.image_size
        self.size_hw: tuple[int, int] = (height, width)

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self._device)

    def score_inputs(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return scores (N,) and maps (N, H, W), float32, of prepared images (N, H, W, 3) uint8 RGB.

        Raises:
            ConfigError: If a GPU has too little memory.
        """
        import torch  # loads slowly, and an exported model is evaluated without it

        from snl_train.features import exact_float32
        from snl_train.scoring import score_features

        with _explaining_full_gpu(f"batches of {len(images)}"), torch.inference_mode(), exact_float32(self._device):
            inputs = self.model.normalize(torch.from_numpy(images).to(self._device))  # (N, 3, H, W)
            teacher, student = self.model(inputs)
            maps, scores = score_features(
                teacher, student, self.size_hw, self._score_config, whitening=self.model.whitening, memory=self.model.memory
            )  # (N, 1, H, W), (N,)
            return scores.float().cpu().numpy(), maps[:, 0].float().cpu().numpy()


def _explaining_full_gpu(what: str) -> contextlib.AbstractContextManager[None]:
    from snl_train.device import explaining_full_gpu  # imports torch, and an exported model is evaluated without it

    return explaining_full_gpu(what, remedy="lower the batch size, or take --device cpu")


def _torch_device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three for devices that do not exist
        reason = str(error).splitlines()[0]
        raise BackendUnavailableError(f"device {name!r} cannot be used ({reason}); expected auto, cpu, cuda or cuda:N") from error
    return device


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    sample: Sample
    image: Image | None  # the network's input, or the whole frame for a scorer that prepares it
    mask: npt.NDArray[np.bool_] | None = None
    error: DataError | None = None


def _read_batches(samples: Sequence[Sample], size_hw: tuple[int, int], batch_size: int, *, is_prepared: bool) -> Iterator[list[_Read]]:
    """Yield decoded batches, the next one being read while the caller works on this one."""
    no_defect = np.zeros(size_hw, dtype=np.bool_)  # shared by all good images
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        waiting: collections.deque[Future[_Read]] = collections.deque()
        remaining = iter(samples)
        for _ in range(0, len(samples), batch_size):
            while len(waiting) < 2 * batch_size and (sample := next(remaining, None)) is not None:
                waiting.append(readers.submit(_read, sample, size_hw, no_defect, is_prepared=is_prepared))
            yield [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]


def _read(sample: Sample, size_hw: tuple[int, int], no_defect: npt.NDArray[np.bool_], *, is_prepared: bool) -> _Read:
    try:
        image = sample.read_image()
        if is_prepared:
            image = prepare(image, "rgb", InputSpec(size_hw=size_hw))
        if not sample.is_anomalous:
            return _Read(sample, image, no_defect)
        mask = sample.read_mask()
    except DataError as error:
        return _Read(sample, None, error=error)
    return _Read(sample, image, None if mask is None else resize_mask(mask, size_hw))


def _readable(batch: Sequence[_Read], left_out: list[tuple[Path, str]], *, skip_unreadable: bool) -> list[_Read]:
    for read in batch:
        if read.error is None:
            continue
        if not skip_unreadable:
            raise read.error
        left_out.append((read.sample.path, str(read.error)))
    return [read for read in batch if read.error is None]


def _score_batch(scorer: InputScorer, batch: Sequence[_Read], tiles: Tiles | None, batch_size: int) -> Iterator[tuple[_Read, float, AnomalyMap]]:
    """Yield the model's answer to each image: its score, and its map as the model saw it, merged if it saw tiles."""
    images = [read.image for read in batch if read.image is not None]
    if not images:
        return
    scores, maps = _answers(scorer, images) if tiles is None else _tiled_answers(scorer, images, tiles, batch_size)
    for read, score, one in zip(batch, scores, maps):
        if not (np.isfinite(score) and np.isfinite(one).all()):
            raise InferenceError(f"the model gives no finite anomaly map for {read.sample.path}; its weights are damaged or its training diverged")
        yield read, float(score), one


def _scored(read: _Read, score: float, answer: AnomalyMap, part: IgnoredPart | None, size_hw: tuple[int, int]) -> ScoredImage:
    """Return the image with its map at the size at which everything is measured."""
    if part is None:
        anomaly_map = np.array(upsample_map(answer, size_hw), dtype=np.float32)  # a scorer may use its buffer again
        return ScoredImage(sample=read.sample, score=score, anomaly_map=anomaly_map, mask=read.mask)
    under_mask = part.on((answer.shape[0], answer.shape[1])).apply(answer)  # before it is reduced, so that nothing ignored reaches its neighbors
    mask = part.on(size_hw)
    judged = mask.values > 0
    return ScoredImage(
        sample=read.sample,
        score=float(under_mask.max()),
        anomaly_map=mask.apply(upsample_map(under_mask, size_hw)),
        mask=None if read.mask is None else read.mask & judged,
        judged=judged,
        is_hidden=read.mask is not None and bool(read.mask.any()) and not (read.mask & judged).any(),
    )


def _answers(scorer: InputScorer, images: Sequence[Image]) -> tuple[Sequence[float] | npt.NDArray[np.float32], Sequence[AnomalyMap]]:
    if isinstance(scorer, Scorer) and scorer.is_on_device:
        scored = [scorer.score(image, "rgb") for image in images]
        return [one.score for one in scored], [one.anomaly_map for one in scored]
    scores, maps = scorer.score_inputs(np.stack(images))
    return scores, list(maps)


def _tiled_answers(scorer: InputScorer, images: Sequence[Image], tiles: Tiles, batch_size: int) -> tuple[list[float], list[AnomalyMap]]:
    scores, maps = [], []
    for image in images:
        views = tile_views((image.shape[0], image.shape[1]), scorer.size_hw, tiles)
        part = prepare(image, "rgb", InputSpec(size_hw=views.map_hw))
        score, merged = score_views(part, views, scorer.score_inputs, batch_size=batch_size)
        scores.append(score)
        maps.append(merged)
    return scores, maps


def _plain_group(group: GroupMeasures) -> dict[str, Any]:
    return {
        "good": group.good,
        "anomalous": group.anomalous,
        "masked": group.masked,
        "hidden": group.hidden,
        "reference_score": group.reference_score,
        "metrics": {name: _plain_measure(measure) for name, measure in group.measures.items()},
    }


def _plain_measure(measure: Measure) -> dict[str, Any]:
    return {"value": measure.value, "interval": None if measure.interval is None else list(measure.interval)}


def _plain_image(image: ScoredImage, relative_to: Path | None) -> dict[str, Any]:
    sample = image.sample
    return {
        "path": _plain_path(sample.path, relative_to),
        "class": sample.class_name,
        "defect": sample.defect,
        "is_anomalous": sample.is_anomalous,
        "score": image.score,
    }


def _plain_path(path: Path, relative_to: Path | None) -> str:
    if relative_to is not None and path.is_relative_to(relative_to):
        return path.relative_to(relative_to).as_posix()
    return path.as_posix()
