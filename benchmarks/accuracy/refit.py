"""What is fitted after a training, fitted anew on its checkpoint: the score and the residual whitening are compared without training again."""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from snl_train.checkpoint import Checkpoint
from snl_train.config import TrainConfig
from snl_train.data.dataset import TrainingData
from snl_train.data.sampling import BalancedBatches
from snl_train.models import build_model
from snl_train.models.whitening import fit_own_whitening
from snl_train.training import STATISTICS_BATCHES

_FITTED = ("whitening", "whitening_floor", "whitening_expectation", "whitening_normalization")
"""Settings of the model that training does not see."""


def training_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration without what is fitted after the training: two that agree in the rest have the same weights.

    With a memory nothing is left out: the student's map is weighted by its peaks, which depend on score and whitening.
    """
    if recorded.get("memory", {}).get("centers"):
        return dict(recorded)
    model = {name: value for name, value in recorded["model"].items() if name not in _FITTED}
    return {**recorded, "score": None, "model": model}


def fitted_anew(stored: Checkpoint, config: TrainConfig, data: TrainingData) -> Checkpoint:
    """Return a checkpoint with the score and the whitening of another configuration; the whitening on the images that a training would take."""
    fitted = {name: getattr(config.model, name) for name in _FITTED}
    state = dict(stored.state_dict)
    if fitted != {name: getattr(stored.config.model, name) for name in _FITTED}:
        state = _with_whitening(state, config, data)
    kept = dataclasses.replace(stored.config, score=config.score, model=dataclasses.replace(stored.config.model, **fitted))
    return dataclasses.replace(stored, config=kept, state_dict=state)


def _with_whitening(state: Mapping[str, torch.Tensor], config: TrainConfig, data: TrainingData) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model, config.memory, load_teacher_weights=False)
    trained = {name: tensor for name, tensor in state.items() if not name.startswith("whitening.")}
    expected = {name for name in model.state_dict() if not name.startswith("whitening.")}
    assert trained.keys() == expected  # the rest of the configuration is the same
    model.load_state_dict(trained, strict=False)
    model.eval()
    if model.whitening is not None:

        def inputs() -> Iterator[torch.Tensor]:
            batches = islice(BalancedBatches(data.labels, config.batch_size, seed=config.seed), STATISTICS_BATCHES)
            images = (torch.from_numpy(data.inputs.read([data.samples[number] for number in numbers])) for numbers in batches)
            return (model.normalize(batch) for batch in images)

        fit_own_whitening(model, inputs, config.model.whitening_normalization)
    fitted: dict[str, torch.Tensor] = model.state_dict()
    return fitted
