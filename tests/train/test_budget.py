"""A training lasts as many optimizer steps as it was given, wherever its epochs end, and ends early only on a plateau of good images' loss."""

import dataclasses
import json
import math

import pytest
import torch

from snl_runtime.errors import ConfigError, DataError, TrainingDivergedError
from snl_train.budget import EarlyStopConfig, Plateau
from snl_train.checkpoint import load_checkpoint
from snl_train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig, load_config
from snl_train.data.dataset import load_training_data
from snl_train.early_stopping import split_for_early_stop, validation_loss
from snl_train.memory_config import MemoryConfig
from snl_train.memory_fit import split_for_normalization
from snl_train.metrics_log import metrics_path
from snl_train.models import build_model
from snl_train.resume import read_resume_point, resume_path, write_resume_point
from snl_train.trainer import Trainer
from snl_train.training import train

CONSTANT = OptimConfig(schedule="constant", learning_rate=1e-3)
NEVER_BETTER = EarlyStopConfig(patience=2, every_steps=2, min_improvement=0.99, share=0.25)


def make_config(**changes):
    model = ModelConfig(method="fd", teacher="resnet18", teacher_weights="random")
    return TrainConfig(**{"model": model, "image_size": (32, 32), "batch_size": 4, "seed": 7, "device": "cpu", **changes})


@pytest.fixture
def data(plain_root):
    return load_training_data(plain_root, (32, 32), config=DataConfig(), threads=1)


def logged(out):
    return [json.loads(line) for line in metrics_path(out).read_text().splitlines()]


# How many steps


@pytest.mark.parametrize(
    ("images", "steps"),
    [(20, 120), (192, 960), (200, 1000), (1200, 1000), (4000, 1000), (4001, 1002), (20_000, 5000)],  # an epoch is ceil(n / 8) steps
)
def test_default_budget_is_a_thousand_steps_but_2_to_40_passes(images, steps):
    assert TrainConfig().total_steps(math.ceil(images / 8)) == steps


def test_steps_and_epochs_count_the_same_steps():
    assert TrainConfig(steps=69).total_steps(23) == TrainConfig(epochs=3).total_steps(23) == 69


def test_method_memory_takes_no_step_whatever_its_budget():
    config = TrainConfig(steps=5, model=ModelConfig(method="memory", teacher="resnet18"))
    assert config.total_steps(23) == 0


def test_two_budgets_are_refused():
    with pytest.raises(ConfigError, match="steps and epochs are two budgets for one training, got 5 and 2; give one of them"):
        TrainConfig(steps=5, epochs=2)
    with pytest.raises(ConfigError, match="two budgets"):
        load_config(overrides={"steps": 5, "epochs": 2})
    with pytest.raises(ConfigError, match="steps must be 1 or more, got 0"):
        TrainConfig(steps=0)


def test_flag_replaces_the_other_budget_of_the_file(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("epochs: 4\n")
    config = load_config(file, {"steps": 30})
    assert (config.steps, config.epochs) == (30, None)
    file.write_text("steps: 30\nepochs: 4\n")
    with pytest.raises(ConfigError, match="two budgets"):
        load_config(file)


def test_training_in_steps_ends_in_the_middle_of_an_epoch(data, tmp_path):
    result = train(make_config(steps=4), data, tmp_path / "x.pt")  # three batches an epoch
    assert (result.steps_done, result.total_steps, result.epochs_done, result.is_complete) == (4, 4, 1, True)
    assert [line["step"] for line in logged(tmp_path / "x.pt")] == [4]
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    assert (checkpoint.provenance["steps_done"], checkpoint.epochs_done, checkpoint.unfinished) == (4, 1, None)
    assert not resume_path(tmp_path / "x.pt").exists()


def test_the_same_steps_asked_for_in_epochs_give_the_same_weights(data, tmp_path):
    train(make_config(steps=6), data, tmp_path / "steps.pt")
    train(make_config(epochs=2), data, tmp_path / "epochs.pt")
    first, second = (load_checkpoint(tmp_path / name).state_dict for name in ("steps.pt", "epochs.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_training_goes_on_with_the_same_number_of_steps_only(data, tmp_path):
    out = tmp_path / "x.pt"
    train(make_config(steps=6), data, out, should_stop=lambda: True)
    with pytest.raises(ConfigError, match="it was 6 steps and is 9"):
        train(make_config(epochs=3), data, out, resume=True)
    assert train(make_config(epochs=2), data, out, resume=True).steps_done == 6


# The plateau


def test_plateau_needs_as_many_measurements_without_improvement_as_its_patience():
    plateau = Plateau(EarlyStopConfig(patience=2, min_improvement=0.1))
    assert [plateau.add(50 * n, loss) for n, loss in enumerate([1.0, 0.95, 0.89, 0.85, 0.95])] == [False, False, False, False, True]
    assert (plateau.best_step, plateau.best_loss, plateau.last_loss) == (100, 0.89, 0.95)


def test_a_loss_that_is_no_number_is_no_improvement():
    plateau = Plateau(EarlyStopConfig(patience=1))
    assert plateau.add(1, math.nan)


def test_no_patience_measures_nothing():
    assert not any(Plateau(EarlyStopConfig()).is_due(step) for step in range(1, 200))


@pytest.mark.parametrize("optim", [OptimConfig(), OptimConfig(schedule="constant", average_last_share=0.5)])
def test_early_stop_is_refused_where_the_last_steps_matter(optim):
    with pytest.raises(ConfigError, match=r"early_stop.patience needs optim.schedule=constant"):
        TrainConfig(early_stop=EarlyStopConfig(patience=2), optim=optim)


def test_training_ends_on_a_plateau_and_says_so(data, tmp_path):
    config = make_config(steps=50, optim=CONSTANT, early_stop=NEVER_BETTER)
    out = tmp_path / "x.pt"
    result = train(config, data, out)
    assert (result.steps_done, result.total_steps, result.is_complete) == (6, 50, True)  # step 2 is the best; 4 and 6 are not better
    lines = {line["step"]: line["validation_loss"] for line in logged(out)}
    assert set(lines) == {2, 4, 6}
    expected = {"step": 6, "loss": lines[6], "best_step": 2, "best_loss": lines[2]}
    assert load_checkpoint(out).provenance["stopped_early"] == result.stopped_early == expected
    assert load_checkpoint(out).unfinished is None
    again = train(config, data, out, resume=True)
    assert (again.steps_done, again.stopped_early) == (6, expected)


def test_plateau_is_found_at_the_same_step_after_a_resume(data, tmp_path):
    config = make_config(steps=50, optim=CONSTANT, early_stop=NEVER_BETTER)
    train(config, data, tmp_path / "straight.pt")
    steps = iter([False] * 4)
    train(config, data, tmp_path / "x.pt", should_stop=lambda: next(steps, True))
    resumed = train(config, data, tmp_path / "x.pt", resume=True)
    assert resumed.stopped_early == load_checkpoint(tmp_path / "straight.pt").provenance["stopped_early"]
    first, second = (load_checkpoint(tmp_path / name).state_dict for name in ("straight.pt", "x.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_state_of_a_version_without_early_stopping_is_continued(data, tmp_path):
    out = tmp_path / "x.pt"
    train(make_config(steps=2), data, out, should_stop=lambda: True)
    point = read_resume_point(resume_path(out))
    state = {name: value for name, value in point.state.items() if name != "plateau"}
    write_resume_point(resume_path(out), dataclasses.replace(point, state=state))
    assert train(make_config(steps=2), data, out, resume=True).steps_done == 2


def test_validation_loss_that_is_not_finite_ends_the_training_as_diverged(data):
    trainer = Trainer(make_config(), total_steps=5)
    with torch.no_grad():
        next(iter(trainer._model.student.parameters())).fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match="the validation loss is no longer finite"):
        trainer.validation_loss(data)


def test_measuring_the_loss_changes_no_weight(data, tmp_path):
    """The same images are learned from; only one of the two is measured."""
    measured = make_config(steps=6, optim=CONSTANT, early_stop=EarlyStopConfig(patience=9, every_steps=2, share=0.25))
    learned, _ = split_for_early_stop(data, measured)
    train(measured, data, tmp_path / "measured.pt")
    train(make_config(steps=6, optim=CONSTANT), learned, tmp_path / "plain.pt")
    first, second = (load_checkpoint(tmp_path / name).state_dict for name in ("measured.pt", "plain.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_validation_loss_is_the_mean_cosine_distance_of_images_as_they_are(data):
    config = make_config(optim=CONSTANT, early_stop=NEVER_BETTER)
    model = build_model(config.model)
    loss = validation_loss(model, data, config)
    assert model.training
    model.eval()
    with torch.no_grad():
        pairs = zip(*model(model.normalize(torch.from_numpy(data.inputs.read(data.samples)))), strict=True)
    assert loss == pytest.approx(sum(float((1 - torch.cosine_similarity(t, s)).mean()) for t, s in pairs), rel=1e-5)


def test_images_of_the_plateau_are_not_learned_from(data):
    config = make_config(optim=CONSTANT, early_stop=NEVER_BETTER)
    learned, kept = split_for_early_stop(data, config)
    assert {name: sum(sample.class_name == name for sample in kept.samples) for name in data.classes} == {"bolt": 2, "ring": 1}
    assert not set(learned.samples) & set(kept.samples)
    with pytest.raises(DataError, match="raise early_stop.share"):
        split_for_early_stop(data, dataclasses.replace(config, early_stop=EarlyStopConfig(patience=1, share=0.01)))


def test_with_a_memory_the_plateau_takes_the_images_of_its_normalization(data, tmp_path):
    memory = MemoryConfig(centers=4, layers=(1,), normalization_share=0.34)
    config = make_config(steps=2, optim=CONSTANT, memory=memory, early_stop=EarlyStopConfig(patience=1, every_steps=2))
    train(config, data, tmp_path / "x.pt")
    _, peaks = split_for_normalization(data, config)
    (line,) = logged(tmp_path / "x.pt")
    model = load_checkpoint(tmp_path / "x.pt").build_model()
    assert line["validation_loss"] == pytest.approx(validation_loss(model, peaks, config), rel=1e-4)
