"""Fitting a memory: sample the teacher's features of good images, choose centers, and measure the peaks that the maps are divided by."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from snl_runtime.errors import DataError
from snl_runtime.progress import ProgressReporter, no_progress
from snl_train.config import TrainConfig
from snl_train.data.dataset import TrainingData, keep_back
from snl_train.features import exact_float32
from snl_train.memory_centers import Candidates, Floats, Indices, cells_per_image, choose_centers
from snl_train.models.memory import FeatureMemory, remembered_features
from snl_train.models.teacher_student import TeacherStudent
from snl_train.scoring import memory_maps, student_map

STUDENT_FACTOR = 2.0
"""How much more the student's map counts than that of a layer, each divided by its mean peak on good images: the best of the rules in
docs/results/accuracy.md on development classes, and not below the student alone on the others."""
_MOST_CELLS = 400_000
"""Most candidates of a layer, whatever the number of images: 200 MB for 128 channels."""
_MOST_PEAKS = 128
"""Most images that peaks are measured on; the mean of their peaks is then known to a few percent."""


def split_for_normalization(data: TrainingData, config: TrainConfig) -> tuple[TrainingData, TrainingData]:
    """Return the training images that are learned from, and those that only the peaks are measured on.

    Raises:
        DataError: If no product has enough images for both.
    """
    share = config.memory.normalization_share
    return keep_back(data, share, seed=config.seed, at_most=_MOST_PEAKS, setting="memory.normalization_share")


def fit_memory(
    model: TeacherStudent, learned: TrainingData, peaks: TrainingData, config: TrainConfig, *, progress: ProgressReporter = no_progress
) -> None:
    """Choose the centers of a model's memory and normalize its maps, in place; the student's map is left alone.

    Args:
        model: With a memory; on the device where it runs.
        learned: Good images that the centers are chosen from.
        peaks: Good images that are not among them.
        config: All settings.
        progress: Told the images and the centers.

    Raises:
        DataError: If an image can no longer be read, or the maps of good images are zero or not finite.
    """
    cast(FeatureMemory, model.memory).take_centers(new_centers(model, learned, config, progress=progress))
    normalize_memory(model, peaks, config)


def new_centers(model: TeacherStudent, learned: TrainingData, config: TrainConfig, *, progress: ProgressReporter = no_progress) -> list[Tensor]:
    """Return ``config.memory.centers`` centers of each remembered layer, (N, D), chosen from good images; the model's memory is left alone.

    Raises:
        DataError: If an image can no longer be read.
    """
    memory = cast(FeatureMemory, model.memory)
    gathered = _gather(model, memory, learned, config, progress)
    with progress(len(memory.layers) * config.memory.centers, unit="centers", label="memory") as steps:
        return [torch.from_numpy(choose_centers(one, config.memory, seed=config.seed, advance=steps.advance)) for one in gathered]


def normalize_memory(model: TeacherStudent, peaks: TrainingData, config: TrainConfig) -> None:
    """Set the weights of the memory's maps, in place.

    Args:
        model: With the centers in its memory.
        peaks: Good images that the centers were not chosen from.
        config: All settings.

    Raises:
        DataError: If an image can no longer be read, or the maps of good images are zero or not finite.
    """
    memory = cast(FeatureMemory, model.memory)
    for codebook in memory.books:
        codebook.weight.fill_(1.0)

    def maps(images: Tensor) -> list[Tensor]:
        teacher = model.teacher(images, stages=max(memory.layers))
        return memory_maps(memory, teacher, config.image_size, config.score)

    try:
        means = mean_peaks(model, peaks, maps, batch_size=config.batch_size)
    except ValueError as error:
        raise DataError(f"the memory cannot be normalized: {error}; are all images of {peaks.root} the same?") from error
    for codebook, mean in zip(memory.books, means, strict=True):
        codebook.weight.fill_(1 / mean)


def weigh_student(model: TeacherStudent, peaks: TrainingData, config: TrainConfig) -> None:
    """Set the weight of the student's map beside the memory's, in place.

    Args:
        model: In eval mode, with student and memory.
        peaks: Good images that neither of them learned from.
        config: All settings.

    Raises:
        DataError: If an image can no longer be read.
        ValueError: If the student's maps of good images are zero or not finite.
    """

    def maps(images: Tensor) -> list[Tensor]:
        teacher, student = model(images)
        return [student_map(teacher, student, config.image_size, config.score, whitening=model.whitening)]

    cast(FeatureMemory, model.memory).student_weight.fill_(STUDENT_FACTOR / mean_peaks(model, peaks, maps, batch_size=config.batch_size)[0])


@torch.no_grad()
def mean_peaks(model: TeacherStudent, data: TrainingData, maps: Callable[[Tensor], list[Tensor]], *, batch_size: int) -> list[float]:
    """Return the mean highest value of each map, as a mean over products of the means over their images.

    Args:
        model: Prepares the images.
        data: Good images.
        maps: Gives maps (B, ...) for normalized images (B, 3, H, W).
        batch_size: Images at a time.

    Raises:
        DataError: If an image can no longer be read.
        ValueError: If a mean is zero or not finite.
    """
    found: list[Tensor] = []  # (B, number of maps)
    for numbers in _batches(range(len(data.samples)), batch_size):
        with exact_float32(model.mean.device):
            found.append(torch.stack([one.flatten(1).amax(1) for one in maps(_inputs(model, data, numbers))], 1).double().cpu())
    peaks, labels = torch.cat(found), torch.tensor(data.labels)
    means = torch.stack([peaks[labels == label].mean(0) for label in sorted(set(data.labels))]).mean(0)
    if not torch.isfinite(means).all() or (means <= 0).any():
        raise DataError(
            f"the anomaly maps of good images must be finite and not all zero, got mean peaks of {means.tolist()}; are all images the same?"
        )
    return [float(mean) for mean in means]


@torch.no_grad()
def _gather(model: TeacherStudent, memory: FeatureMemory, data: TrainingData, config: TrainConfig, progress: ProgressReporter) -> list[Candidates]:
    labels = np.array(data.labels, np.int64)
    order = labels.argsort(kind="stable").astype(np.int64)  # candidates are sorted by product
    present, image_counts = np.unique(labels, return_counts=True)
    wanted = dict(zip(present.tolist(), cells_per_image(image_counts.tolist(), config.memory, most_cells=_MOST_CELLS), strict=True))
    features: list[list[Floats]] = [[] for _ in memory.layers]
    with progress(len(order), unit="images", label="features") as steps:
        for numbers in _batches(order.tolist(), config.batch_size):
            with exact_float32(model.mean.device):
                teacher = model.teacher(_inputs(model, data, numbers), stages=max(memory.layers))
                for kept, layer in zip(features, memory.layers, strict=True):
                    cells = remembered_features(teacher[layer - 1]).flatten(2).mT.cpu().numpy()  # (B, P, D)
                    kept += [
                        of_image[_positions(len(of_image), wanted[int(labels[number])], [config.seed, layer, number])]
                        for number, of_image in zip(numbers, cells, strict=True)
                    ]
            steps.advance(len(numbers))
    return [_candidates(kept, labels[order]) for kept in features]


def _candidates(features: list[Floats], products: Indices) -> Candidates:
    return Candidates(features=np.concatenate(features), products=np.repeat(products, [len(one) for one in features]))


def _positions(cells: int, wanted: int, seed: list[int]) -> slice | Indices:
    if wanted >= cells:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(cells, wanted, replace=False))


def _batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(numbers[begin : begin + size]) for begin in range(0, len(numbers), size))


def _inputs(model: TeacherStudent, data: TrainingData, numbers: Sequence[int]) -> Tensor:
    images = torch.from_numpy(data.inputs.read([data.samples[number] for number in numbers]))
    return model.normalize(images.to(model.mean.device))
