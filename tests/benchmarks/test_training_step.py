"""The command that times a training step finds every part of it, and compares trainings that differ in what they say."""

import time

from benchmarks.speed.training_step import PARTS, _batch, _parts, _Step, rows
from snl_train.trainer import Trainer


def test_every_part_of_a_step_is_found_and_the_shares_are_a_whole():
    trainer = Trainer(rows("resnet18", 32, 4, "cpu")["best"], total_steps=10)
    images, labels = _batch(4, 32)
    shares = _parts(_Step(trainer, images, labels, time.perf_counter))
    assert [*shares] == [*PARTS, "other"]
    assert all(shares[name] > 0 for name in PARTS)
    assert abs(sum(shares.values()) - 1) < 1e-9


def test_rows_share_backbone_size_and_batch_and_the_yardstick_is_plain():
    compared = rows("resnet34", 64, 6, "cpu")
    assert next(iter(compared)) == "rd"
    assert {(config.model.teacher, config.image_size, config.batch_size) for config in compared.values()} == {("resnet34", (64, 64), 6)}
    assert compared["rd"].model.is_plain
    assert compared["rd"].optim == compared["paper"].optim
    assert compared["rd, as best"].optim == compared["best"].optim
