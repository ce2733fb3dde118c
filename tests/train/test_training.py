"""A training can be stopped anywhere and continued to the same weights, and never leaves a file that is half or not finite."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from snl_runtime.errors import CheckpointError, ConfigError, DataError, TrainingDivergedError
from snl_train.averaging import WeightAverage, estimate_statistics
from snl_train.checkpoint import load_checkpoint
from snl_train.config import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from snl_train.data.dataset import load_training_data
from snl_train.data.sampling import BalancedBatches
from snl_train.device import half_precision, resolve_device
from snl_train.losses import channel_distillation, structural_loss
from snl_train.metrics_log import metrics_path
from snl_train.models import build_model
from snl_train.resume import read_resume_point, resume_path, write_resume_point
from snl_train.schedule import learning_rate
from snl_train.trainer import Trainer
from snl_train.training import train

EPOCHS, STEPS_PER_EPOCH = 4, 3  # 12 images in batches of 4


def make_config(method="snl-fd", **changes) -> TrainConfig:
    values = {
        "model": ModelConfig(method=method, teacher="resnet18", teacher_weights="random", centers=4),
        "image_size": (32, 32),
        "epochs": EPOCHS,
        "batch_size": 4,
        "seed": 7,
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture
def data(plain_root):
    return load_training_data(plain_root, (32, 32), config=DataConfig(), threads=1)


def stop_after(steps):
    calls = itertools.count(1)
    return lambda: next(calls) >= steps


def weights_of(path):
    return load_checkpoint(path).state_dict


def assert_same_bits(first, second):
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# Resuming

OPTIMIZERS = {
    "last weights": OptimConfig(),
    "exponential average": OptimConfig(average_decay=0.9, gradient_clip=1.0),
    "mean of the last half": OptimConfig(average_last_share=0.5, schedule="cosine"),
    "muon": OptimConfig(optimizer="muon", gradient_clip=1.0),
}


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_training_stopped_in_an_epoch_and_resumed_equals_a_straight_one_to_the_bit(data, tmp_path, optim):
    config = make_config(optim=optim)
    straight = train(config, data, tmp_path / "straight.pt")
    assert straight.is_complete
    out = tmp_path / "stopped.pt"
    for steps in (4, 4):  # at step 4, in the second epoch, and at step 8, in the third
        stopped = train(config, data, out, should_stop=stop_after(steps), resume=resume_path(out).exists())
        assert not stopped.is_complete
        torch.rand(100)  # whatever else the process draws must not matter
    assert load_checkpoint(out).provenance["is_complete"] is False
    resumed = train(config, data, out, resume=True)
    assert (resumed.steps_done, resumed.epochs_done) == (12, 4)
    assert_same_bits(weights_of(out), weights_of(tmp_path / "straight.pt"))


def test_training_state_of_a_version_with_one_optimizer_is_continued(data, tmp_path):
    config = make_config()
    states = []
    for out in (tmp_path / "new.pt", tmp_path / "old.pt"):
        train(config, data, out, should_stop=stop_after(2))
        states.append(read_resume_point(resume_path(out)))
    (only,) = states[1].state.pop("optimizers")
    write_resume_point(resume_path(tmp_path / "old.pt"), dataclasses.replace(states[1], state={**states[1].state, "optimizer": only}))
    for out in (tmp_path / "new.pt", tmp_path / "old.pt"):
        train(config, data, out, resume=True)
    assert_same_bits(weights_of(tmp_path / "new.pt"), weights_of(tmp_path / "old.pt"))


def test_reverse_distillation_resumes_to_the_bit(data, tmp_path):
    config = make_config("snl-rd", epochs=2, loss=LossConfig(inter_pairing="different-class"))
    train(config, data, tmp_path / "straight.pt")
    train(config, data, tmp_path / "stopped.pt", should_stop=stop_after(2))
    train(config, data, tmp_path / "stopped.pt", resume=True)
    assert_same_bits(weights_of(tmp_path / "stopped.pt"), weights_of(tmp_path / "straight.pt"))


def test_augmentation_that_draws_from_the_global_generator_resumes_to_the_bit(data, tmp_path):
    def flip(images):
        return images.flip(2) if torch.rand(()) < 0.5 else images

    config = make_config("fd")
    train(config, data, tmp_path / "straight.pt", augment=flip)
    train(config, data, tmp_path / "stopped.pt", augment=flip, should_stop=stop_after(5))
    train(config, data, tmp_path / "stopped.pt", augment=flip, resume=True)
    assert_same_bits(weights_of(tmp_path / "stopped.pt"), weights_of(tmp_path / "straight.pt"))
    train(config, data, tmp_path / "plain.pt")
    assert any(not torch.equal(tensor, weights_of(tmp_path / "plain.pt")[name]) for name, tensor in weights_of(tmp_path / "straight.pt").items())


def test_log_of_a_resumed_training_holds_every_step_once(data, tmp_path):
    config = make_config("fd")
    out = tmp_path / "x.pt"
    train(config, data, out, should_stop=stop_after(4))
    with metrics_path(out).open("a") as log:
        log.write('{"step": 9}\n{"torn')  # of a process that was killed after its last save
    train(config, data, out, resume=True)
    lines = [json.loads(line) for line in metrics_path(out).read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 10, 12]
    assert all(set(line) == {"step", "epoch", "learning_rate", "images_per_s", "seconds", "loss"} for line in lines)
    assert lines[-1]["epoch"] == EPOCHS


def test_resuming_a_complete_training_changes_nothing(data, tmp_path):
    config = make_config("fd", epochs=1)
    out = tmp_path / "x.pt"
    train(config, data, out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    again = train(config, data, out, resume=True)
    assert again.is_complete
    assert again.steps_done == STEPS_PER_EPOCH
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_constant_learning_rate_allows_more_epochs_and_equals_a_longer_training(data, tmp_path):
    optim = OptimConfig(schedule="constant", learning_rate=1e-3)
    train(make_config("fd", epochs=2, optim=optim), data, tmp_path / "longer.pt")
    train(make_config("fd", epochs=1, optim=optim), data, tmp_path / "x.pt", should_stop=stop_after(2))
    train(make_config("fd", epochs=2, optim=optim), data, tmp_path / "x.pt", resume=True)
    assert_same_bits(weights_of(tmp_path / "x.pt"), weights_of(tmp_path / "longer.pt"))


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"epochs": 9}, "epochs"),
        ({"batch_size": 3}, "batch_size"),
        ({"optim": OptimConfig(learning_rate=1e-3)}, "optim.learning_rate was 0.005 and is 0.001"),
        ({"loss": LossConfig(intra_weight=2.0)}, "loss.intra_weight"),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(data, tmp_path, changed, name):
    train(make_config(epochs=1), data, tmp_path / "x.pt", should_stop=stop_after(1))
    with pytest.raises(ConfigError, match=name):
        train(make_config(**{"epochs": 1, **changed}), data, tmp_path / "x.pt", resume=True)


def test_resuming_on_other_images_is_refused(data, plain_root, picture, tmp_path):
    train(make_config("fd"), data, tmp_path / "x.pt", should_stop=stop_after(1))
    picture(plain_root / "ring" / "900.png", 900)
    other = load_training_data(plain_root, (32, 32), config=DataConfig())
    with pytest.raises(DataError, match="13 images now, 12 then"):
        train(make_config("fd"), other, tmp_path / "x.pt", resume=True)


def test_resuming_without_a_training_state_is_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.resume\.pt does not exist"):
        train(make_config("fd"), data, tmp_path / "x.pt", resume=True)


def test_damaged_training_state_is_refused(data, tmp_path):
    train(make_config("fd"), data, tmp_path / "x.pt", should_stop=stop_after(1))
    state = resume_path(tmp_path / "x.pt")
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"x\.resume\.pt"):
        train(make_config("fd"), data, tmp_path / "x.pt", resume=True)


# What is written


def test_checkpoint_says_what_it_was_trained_on(plain_root, tmp_path):
    data = load_training_data(plain_root, (32, 32), config=DataConfig(hold_out=0.34), seed=7)
    config = make_config("fd", epochs=1, data=DataConfig(hold_out=0.34))
    train(config, data, tmp_path / "x.pt")
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    assert checkpoint.config == config
    assert checkpoint.classes == ["bolt", "ring"]
    assert (checkpoint.seed, checkpoint.epochs_done) == (7, 1)
    assert checkpoint.training_image_sha256 == sorted(sample.pixel_sha256 for sample in data.samples)
    assert checkpoint.held_out == list(data.held_out)
    assert len(checkpoint.held_out) == 4
    assert sorted(checkpoint.golden_classes) == ["bolt", "bolt", "ring", "ring"]
    inputs = data.inputs.read(data.samples)
    assert all(any(np.array_equal(golden, image) for image in inputs) for golden in checkpoint.golden_images)
    assert checkpoint.provenance["versions"]["torch"]
    assert checkpoint.provenance["image_counts"] == {"bolt": 6, "ring": 2}
    assert checkpoint.provenance["frame_sizes"] == {"bolt": [[40, 48]], "ring": [[40, 48]]}
    assert checkpoint.provenance["is_complete"] is True


def test_teacher_of_the_checkpoint_is_the_configured_one(data, tmp_path):
    config = make_config("fd", epochs=1)
    train(config, data, tmp_path / "x.pt")
    expected = build_model(config.model).teacher.state_dict()
    assert_same_bits(load_checkpoint(tmp_path / "x.pt").build_model().teacher.state_dict(), expected)


@pytest.mark.parametrize("method", ["snl-rd", "snl-fd", "rd", "fd"])
def test_every_method_lowers_its_loss(data, tmp_path, method):
    config = make_config(method, optim=OptimConfig(learning_rate=2e-3))
    train(config, data, tmp_path / "x.pt")
    lines = [json.loads(line) for line in metrics_path(tmp_path / "x.pt").read_text().splitlines()]
    terms = {"total", "channel"} if config.model.is_plain else {"total", "channel", "spatial", "intra", "inter"}
    assert set(lines[0]["loss"]) == terms
    assert lines[-1]["loss"]["total"] < lines[0]["loss"]["total"]


def test_first_logged_loss_is_the_cosine_distance_of_the_first_batches(data, tmp_path):
    config = make_config("fd", epochs=1, optim=OptimConfig(learning_rate=1e-12, schedule="constant"))
    train(config, data, tmp_path / "x.pt")
    torch.manual_seed(config.seed)
    model = build_model(config.model).train()
    expected = []
    for numbers in itertools.islice(BalancedBatches(data.labels, 4, seed=config.seed), STEPS_PER_EPOCH):
        images = torch.from_numpy(data.inputs.read([data.samples[number] for number in numbers]))
        teacher, student = model(model.normalize(images))
        expected.append(channel_distillation(teacher, student).item())
    line = json.loads(metrics_path(tmp_path / "x.pt").read_text().splitlines()[0])
    assert line["loss"]["total"] == pytest.approx(sum(expected) / STEPS_PER_EPOCH, rel=1e-5)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_files(data, tmp_path, monkeypatch):
    out = tmp_path / "x.pt"
    kept = []

    def poisoned(*arguments, **options):
        losses = structural_loss(*arguments, **options)
        if not resume_path(out).exists():
            return losses
        kept.extend([out.read_bytes(), resume_path(out).read_bytes()])
        return {**losses, "total": losses["total"] * math.nan}

    monkeypatch.setattr("snl_train.trainer.structural_loss", poisoned)
    with pytest.raises(TrainingDivergedError, match=r"no longer finite at step 11 of 12.*keeps the last good weights"):
        train(make_config("fd"), data, out, save_every_s=0.0)
    assert [out.read_bytes(), resume_path(out).read_bytes()] == kept
    assert load_checkpoint(out).provenance["steps_done"] == 10


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path):
    trainer = Trainer(make_config("fd"), total_steps=1)
    next(iter(trainer._model.student.parameters())).data.fill_(math.inf)
    with pytest.raises(TrainingDivergedError, match="weight student"):
        trainer.weights([])


def test_full_gpu_is_one_sentence_that_says_what_to_lower(data, tmp_path):
    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match="the GPU has too little memory for batches of 4; lower --batch-size or --image-size"):
        train(make_config(batch_size=4), data, tmp_path / "x.pt", augment=full)


def test_cuda_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="--device cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("capabilities", [{"avx512_bf16": True}, {"amx_bf16": True}])
def test_half_precision_of_a_cpu_is_asked_for_and_needs_its_instructions(monkeypatch, capabilities):
    asked = dataclasses.replace(make_config("rd"), mixed_precision_cpu=True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert half_precision(torch.device("cpu"), asked) is torch.bfloat16
    assert half_precision(torch.device("cpu"), make_config("rd")) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert half_precision(torch.device("cpu"), asked) is None


@pytest.mark.parametrize("method", ["snl-rd", "snl-fd"])
def test_mixed_precision_training_on_a_cpu_lowers_its_loss(data, tmp_path, method, monkeypatch):
    """bfloat16 is computed without its instructions too, slowly: the rule holds on every processor."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    config = dataclasses.replace(make_config(method, epochs=6, optim=OptimConfig(learning_rate=2e-3)), mixed_precision_cpu=True)
    train(config, data, tmp_path / "x.pt")
    lines = [json.loads(line) for line in metrics_path(tmp_path / "x.pt").read_text().splitlines()]
    assert lines[-1]["loss"]["total"] < lines[0]["loss"]["total"]
    assert load_checkpoint(tmp_path / "x.pt").config.mixed_precision_cpu


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_mixed_precision_training_on_cuda_lowers_its_loss(data, tmp_path):
    config = dataclasses.replace(make_config("snl-rd", epochs=6, optim=OptimConfig(learning_rate=2e-3)), device="cuda")
    train(config, data, tmp_path / "x.pt")
    lines = [json.loads(line) for line in metrics_path(tmp_path / "x.pt").read_text().splitlines()]
    assert lines[-1]["loss"]["total"] < lines[0]["loss"]["total"]


# Learning rate


def test_one_cycle_rises_to_the_peak_and_falls_to_almost_nothing():
    config = OptimConfig(learning_rate=0.01, schedule="one-cycle", warmup_share=0.25)
    sizes = [learning_rate(step, 101, config) for step in range(101)]
    assert sizes[0] == pytest.approx(0.0004)
    assert max(sizes) == sizes[25] == pytest.approx(0.01)
    assert sizes[-1] == pytest.approx(1e-6)
    assert sizes[:26] == sorted(sizes[:26])
    assert sizes[25:] == sorted(sizes[25:], reverse=True)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_short_trainings_have_a_positive_learning_rate(schedule, total_steps):
    config = OptimConfig(learning_rate=0.01, schedule=schedule)
    assert all(0 < learning_rate(step, total_steps, config) <= 0.01 for step in range(total_steps))


# Averages


class Tiny(nn.Module):
    """One trained weight and batch statistics, one frozen weight."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.frozen = nn.Linear(1, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.norm(x)


def run_average(config, values, total_steps):
    model = Tiny()
    average = WeightAverage(model, config, total_steps=total_steps)
    for step, value in enumerate(values):
        with torch.no_grad():
            model.norm.weight.fill_(value)
            model.norm.running_mean.fill_(10 * value)
            model.frozen.weight.fill_(value)
        average.update(step)
    return average, average.averaged(model.state_dict())


def test_exponential_average_follows_its_recursion():
    values = [1.0, 4.0, 2.0, 8.0]
    expected = values[0]
    for count, value in enumerate(values[1:], start=2):
        decay = min(0.3, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    average, state = run_average(OptimConfig(average_decay=0.3), values, 4)
    assert state["norm.weight"].item() == pytest.approx(expected, rel=1e-6)
    assert state["norm.running_mean"].item() == pytest.approx(10 * expected, rel=1e-6)
    assert state["frozen.weight"].item() == values[-1]
    assert not average.needs_statistics


def test_even_average_is_the_mean_over_the_last_share_of_the_steps():
    average, state = run_average(OptimConfig(average_last_share=0.5), [100.0, 100.0, 1.0, 5.0], 4)
    assert state["norm.weight"].item() == pytest.approx((1 + 5) / 2)
    assert average.needs_statistics


def test_average_before_its_first_step_has_not_started():
    average, _ = run_average(OptimConfig(average_last_share=0.5), [1.0], 10)
    assert not average.is_started


def test_estimated_statistics_are_those_of_the_batches_together():
    model = Tiny().train()
    with torch.no_grad():
        model.norm.running_mean.fill_(99.0)
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [9.0]])]
    estimate_statistics(model, batches)
    assert model.norm.running_mean.item() == pytest.approx((2 + 7) / 2)
    assert model.norm.running_var.item() == pytest.approx((2 + 8) / 2)  # unbiased variances of the two batches
    assert model.norm.momentum == 0.1
