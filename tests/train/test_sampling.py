"""Batches show every class equally often, and what is held out depends on seed and pixels only."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from snl_runtime.errors import ConfigError, DataError
from snl_train.data.samples import Sample
from snl_train.data.sampling import BalancedBatches, choose_golden, hold_out, limit_per_class

COUNTS = (250, 31, 28, 160, 3)
LABELS = [label for label, count in enumerate(COUNTS) for _ in range(count)]


def samples(counts: dict[str, int]) -> list[Sample]:
    return [
        Sample(path=Path(f"{name}/{index}.png"), class_name=name, pixel_sha256=f"{name}{index:060}")
        for name, count in counts.items()
        for index in range(count)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8, 16])
def test_class_counts_differ_by_at_most_one_in_every_batch_and_over_any_beginning(batch_size):
    batches = BalancedBatches(LABELS, batch_size, seed=3)
    shown: Counter[int] = Counter(dict.fromkeys(range(len(COUNTS)), 0))
    for numbers in itertools.islice(batches, 100):
        assert len(numbers) == batch_size
        in_batch = Counter(dict.fromkeys(range(len(COUNTS)), 0))
        in_batch.update(LABELS[number] for number in numbers)
        assert max(in_batch.values()) - min(in_batch.values()) <= 1
        shown.update(in_batch)
        assert max(shown.values()) - min(shown.values()) <= 1


def test_every_image_of_a_class_is_shown_before_any_is_shown_again():
    times_shown = np.zeros(len(LABELS), int)
    for numbers in itertools.islice(BalancedBatches(LABELS, 5, seed=0), 400):
        np.add.at(times_shown, numbers, 1)
        for label in range(len(COUNTS)):
            of_class = times_shown[np.asarray(LABELS) == label]
            assert of_class.max() - of_class.min() <= 1


def test_epoch_draws_as_many_images_as_there_are():
    assert BalancedBatches([0] * 9 + [1] * 3, 4, seed=0).batches_per_epoch == 3
    assert BalancedBatches([0] * 9 + [1] * 4, 4, seed=0).batches_per_epoch == 4


def test_order_is_the_same_for_the_same_seed_and_another_for_another():
    first, again, other = (np.concatenate(list(itertools.islice(BalancedBatches(LABELS, 8, seed=seed), 20))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(DataError):
        BalancedBatches([], 8, seed=0)


def test_hold_out_takes_the_share_of_each_class_and_loses_none():
    everything = samples({"a": 50, "b": 7})
    trained, held = hold_out(everything, 0.2, seed=0)
    assert Counter(sample.class_name for sample in held) == {"a": 10, "b": 1}
    assert sorted([*trained, *held], key=str) == sorted(everything, key=str)


def test_hold_out_depends_on_the_seed_but_not_on_names_order_or_other_classes():
    everything = samples({"a": 50, "b": 7})
    held = {sample.pixel_sha256 for sample in hold_out(everything, 0.2, seed=0)[1]}
    renamed = [
        Sample(path=Path(f"new{index}.png"), class_name=sample.class_name, pixel_sha256=sample.pixel_sha256)
        for index, sample in enumerate(reversed(everything))
    ]
    assert {sample.pixel_sha256 for sample in hold_out(renamed, 0.2, seed=0)[1]} == held
    alone = hold_out([sample for sample in everything if sample.class_name == "a"], 0.2, seed=0)[1]
    assert {sample.pixel_sha256 for sample in alone} == {sha256 for sha256 in held if sha256.startswith("a")}
    assert {sample.pixel_sha256 for sample in hold_out(everything, 0.2, seed=1)[1]} != held


def test_copies_of_a_held_out_image_are_not_trained_on():
    everything = samples({"a": 50})
    copies = [Sample(path=Path(f"copy{index}.png"), class_name="a", pixel_sha256=sample.pixel_sha256) for index, sample in enumerate(everything)]
    trained, held = hold_out([*everything, *copies], 0.2, seed=0)
    assert len(held) == 20
    assert not {sample.pixel_sha256 for sample in trained} & {sample.pixel_sha256 for sample in held}


def test_hold_out_of_nothing_keeps_all():
    everything = samples({"a": 3})
    assert hold_out(everything, 0.0, seed=0) == (everything, [])


def test_hold_out_that_leaves_a_class_empty_is_refused():
    with pytest.raises(ConfigError, match="'b'"):
        hold_out(samples({"a": 50, "b": 1}), 0.6, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_hold_out_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match="hold-out"):
        hold_out(samples({"a": 3}), share, seed=0)


def test_golden_samples_are_two_per_class_and_at_most_sixteen():
    few = samples({"a": 5, "b": 1, "c": 4})
    assert Counter(few[number].class_name for number in choose_golden(few, seed=0)) == {"a": 2, "b": 1, "c": 2}
    many = samples({f"class{number:02}": 3 for number in range(10)})
    chosen = Counter(many[number].class_name for number in choose_golden(many, seed=0))
    assert sum(chosen.values()) == 16
    assert len(chosen) == 10  # every class has one before any has two


def test_limit_per_class_takes_that_many_of_each_class_by_seed():
    everything = samples({"a": 50, "b": 7})
    limited = limit_per_class(everything, 10, seed=0)
    assert Counter(sample.class_name for sample in limited) == {"a": 10, "b": 7}
    assert limited != limit_per_class(everything, 10, seed=1)
    assert limit_per_class(everything, None, seed=0) == everything
