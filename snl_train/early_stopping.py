"""Early stopping: the validation loss, which is that of good images that a student does not learn from, and which images those are."""

import torch

from snl_train.config import TrainConfig
from snl_train.data.dataset import TrainingData, keep_back
from snl_train.losses import structural_loss
from snl_train.models import TeacherStudent

_MOST_IMAGES = 128
"""Most images that the loss is measured on."""


def split_for_early_stop(data: TrainingData, config: TrainConfig) -> tuple[TrainingData, TrainingData]:
    """Return the training images that are learned from, and those that only the loss is measured on.

    Raises:
        DataError: If no product has enough images for both.
    """
    share = config.early_stop.share
    return keep_back(data, share, seed=config.seed, at_most=_MOST_IMAGES, setting="early_stop.share")


@torch.no_grad()
def validation_loss(model: TeacherStudent, data: TrainingData, config: TrainConfig) -> float:
    """Return the mean loss over good images as they are, without synthetic anomalies, in eval mode and float32.

    Whatever is drawn at random is the same at every call, and torch's global generators are left as they were. The model is in eval mode afterwards
    only if it was before.

    Raises:
        DataError: If an image can no longer be read.
    """
    device, was_training = model.mean.device, model.training
    total = 0.0
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for begin in range(0, len(data.samples), config.batch_size):
            labels = torch.tensor(data.labels[begin : begin + config.batch_size])
            images = torch.from_numpy(data.inputs.read(data.samples[begin : begin + config.batch_size])).to(device)
            teacher, student = model(model.normalize(images))
            total += float(structural_loss(teacher, student, config.loss, labels=labels)["total"]) * len(images)
    model.train(was_training)
    return total / len(data.samples)
