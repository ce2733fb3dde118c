"""The method ``memory``: no student and no step; a teacher, the memory of its features on good images, and a checkpoint like every other."""

import time
from pathlib import Path

import torch

from snl_runtime.progress import ProgressReporter, no_progress
from snl_train.checkpoint import load_checkpoint
from snl_train.config import TrainConfig
from snl_train.data.dataset import TrainingData
from snl_train.device import explaining_full_gpu, resolve_device
from snl_train.memory_fit import fit_memory, split_for_normalization
from snl_train.models import build_model
from snl_train.output import is_finished, replacing
from snl_train.resume import check_same_config, read_resume_point, resume_path
from snl_train.saving import Saver
from snl_train.training_result import TrainingResult, complete_already, finished_result


def train_memory(
    config: TrainConfig, data: TrainingData, out: Path, *, resume: bool = False, progress: ProgressReporter = no_progress
) -> TrainingResult:
    """Fit a memory without a student and write its checkpoint; there is no log and nothing to resume.

    Args:
        config: All settings; the method is ``memory``.
        data: Images.
        out: Where the checkpoint goes; see :func:`snl_train.training.train`.
        resume: Change nothing if the checkpoint is there.
        progress: Told images and centers.

    Raises:
        ConfigError: If the device or the teacher's weights cannot be had, a GPU has too little memory, or another training lies there to be resumed.
        CheckpointError: If there is nothing to resume.
        DataError: If there are too few images, or one can no longer be read.
        SinkError: If the file cannot be written.
    """
    if resume and is_finished(out):
        return complete_already(config, data, out)
    if resume:
        check_same_config(read_resume_point(resume_path(out)).config, config)  # never passes: a memory leaves no state
    with replacing(out), explaining_full_gpu(f"batches of {config.batch_size}"):
        started_s = time.monotonic()
        learned, peaks = split_for_normalization(data, config)
        device = resolve_device(config.device)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.memory, size_hw=config.image_size).eval().to(device)
        fit_memory(model, learned, peaks, config, progress=progress)
        seconds = time.monotonic() - started_s
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        Saver(config, data, out, batches_per_epoch=0).save(weights, {}, steps_done=0, device=device)
    return finished_result(load_checkpoint(out), out, seconds=seconds, images_per_s=len(data.samples) / max(seconds, 1e-9))
