"""A training step asks the device for nothing: what would wait for a GPU, or change with the values there, is counted on a CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snl_train.config import LossConfig, ModelConfig, OptimConfig, TrainConfig, preset_config
from snl_train.synthetic_anomaly_config import SyntheticAnomalyConfig
from snl_train.trainer import Trainer

_WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount", "item"}
"""Operators whose result, or its shape, the host needs to go on."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what waits for the values of some tensors, or of any that was computed from them; the others are the host's own.

    On a GPU these tensors would be there; here both are on the CPU, so the mode follows the values.
    """

    def __init__(self, on_device: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._followed = {id(tensor): tensor for tensor in on_device}  # kept, so that no number is used again
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        follows = any(id(tensor) in self._followed for tensor in _tensors((args, tuple(kwargs.values()))))
        name = func._schema.name.split("::")[1]
        if follows and name in _WAITING:
            self.found.append(name)
        result = func(*args, **kwargs)
        if follows:
            self._followed.update({id(tensor): tensor for tensor in _tensors((result,))})
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def make_trainer(preset: str, method: str) -> Trainer:
    base = preset_config(preset)
    model = ModelConfig(method=method, teacher="resnet18", teacher_weights="random", centers=4, cram_normalize=preset == "best")
    config = TrainConfig(
        model=model,
        loss=LossConfig(affinity_positions=16 if preset == "best" else 0),
        optim=OptimConfig(optimizer=base.optim.optimizer, average_decay=0.9, gradient_clip=1.0),
        synthetic_anomalies=SyntheticAnomalyConfig(share=0.9 if preset == "best" else 0.0),
        image_size=(32, 32),
        batch_size=4,
        device="cpu",
    )
    return Trainer(config, total_steps=10)


def waits_of_a_step(trainer: Trainer) -> list[str]:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    trainer.step(images, labels)  # the first step makes the optimizers' state
    on_device = [images, *trainer._model.parameters(), *trainer._model.buffers()]
    with Waits(iter(on_device)) as waits:
        trainer.step(images, labels)
    return waits.found


@pytest.mark.parametrize(("preset", "method"), [("paper", "snl-rd"), ("best", "snl-rd"), ("best", "snl-fd")])
def test_a_step_waits_for_the_device_once_and_that_only_on_a_cpu(preset: str, method: str) -> None:
    """The one is the check that the loss is finite, which a GPU does without."""
    assert waits_of_a_step(make_trainer(preset, method)) == ["_local_scalar_dense"]


def test_a_step_that_asks_for_a_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("paper", "fd")
    imitate = trainer._model.imitate

    def curious(images: Tensor, teacher: list[Tensor]) -> list[Tensor]:
        features: list[Tensor] = imitate(images, teacher)
        assert float(features[0].detach().mean()) < 1e9
        assert features[0].nonzero().shape[1] == 4
        return features

    monkeypatch.setattr(trainer._model, "imitate", curious)
    assert waits_of_a_step(trainer) == ["_local_scalar_dense", "nonzero", "_local_scalar_dense"]
