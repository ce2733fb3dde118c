"""Training on altered inputs: what the student sees, what it is compared with, and that it can be resumed."""

import copy

import numpy as np
import pytest
import torch

from snl_train.checkpoint import load_checkpoint
from snl_train.config import ModelConfig, OptimConfig, TrainConfig
from snl_train.data.dataset import load_training_data
from snl_train.losses import structural_loss
from snl_train.synthetic_anomaly_config import SyntheticAnomalyConfig
from snl_train.trainer import Trainer
from snl_train.training import train


def make_config(method: str, **changes) -> TrainConfig:
    model = ModelConfig(method=method, teacher="resnet18", teacher_weights="random", centers=4, whitening=True)
    settings = {"image_size": (32, 32), "epochs": 2, "batch_size": 4, "device": "cpu", "synthetic_anomalies": SyntheticAnomalyConfig(share=0.6)}
    return TrainConfig(model=model, **(settings | changes))


@pytest.mark.parametrize("method", ["rd", "snl-fd"])
def test_a_altered_training_resumes_to_the_bit(method, plain_root, tmp_path):
    config = make_config(method)
    data = load_training_data(plain_root, (32, 32), config=config.data, threads=1)
    train(config, data, tmp_path / "straight.pt")
    steps = iter(range(100))
    train(config, data, tmp_path / "stopped.pt", should_stop=lambda: next(steps) == 2)
    torch.rand(10)
    train(config, data, tmp_path / "stopped.pt", resume=True)
    straight, stopped = (load_checkpoint(tmp_path / f"{name}.pt").state_dict for name in ("straight", "stopped"))
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    eye = torch.eye(64) * 0.5**0.5
    assert not torch.allclose(straight["whitening.0.weight"], eye)


@pytest.mark.parametrize("method", ["rd", "fd"])
def test_student_sees_the_synthetic_anomaly_and_is_compared_with_the_teacher_on_good_images(method, monkeypatch):
    config = make_config(method, optim=OptimConfig(learning_rate=1e-3))
    trainer = Trainer(config, total_steps=10)
    rng = np.random.default_rng(0)
    images, altered = (torch.from_numpy(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)) for _ in range(2))
    has_anomaly = torch.tensor([True, False, True, False])
    altered[~has_anomaly] = images[~has_anomaly]
    monkeypatch.setattr(trainer, "_synthetic_anomalies", lambda batch: (altered, has_anomaly))
    model = copy.deepcopy(trainer._model)
    with torch.no_grad():
        teacher = model.teacher(model.normalize(images))
        _, student = model(model.normalize(altered))  # one pass over the altered batch
        expected = structural_loss(teacher, student, config.loss, labels=torch.zeros(4))["total"]
    got = trainer.step(images, torch.zeros(4, dtype=torch.int64))["total"]
    assert float(got) == pytest.approx(float(expected), rel=1e-4)
