"""Golden samples are spread over the classes and the same on every run."""

import numpy as np
import pytest

from snl_calibration.golden import choose_golden
from snl_runtime.errors import ConfigError, DataError


def _images(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8))


def test_every_class_is_served_before_one_gets_a_second():
    classes = ["a"] * 20 + ["b"] * 3 + ["c"]
    chosen = choose_golden(_images(24), classes, 7)
    assert sorted(classes[i] for i in chosen) == ["a", "a", "a", "b", "b", "b", "c"]


def test_choice_does_not_depend_on_the_order_of_the_images():
    images, classes = _images(12), ["x", "y", "z"] * 4
    order = np.random.default_rng(1).permutation(12)
    direct = choose_golden(images, classes, 5)
    shuffled = choose_golden([images[i] for i in order], [classes[i] for i in order], 5)
    assert [order[i] for i in shuffled] == direct


def test_no_image_is_chosen_twice():
    images = _images(6)
    chosen = choose_golden([*images, *images], ["a"] * 12, 10)
    assert len(chosen) == 6
    assert len({images[i % 6].tobytes() for i in chosen}) == 6


def test_fewer_places_than_classes_serve_the_first_classes():
    chosen = choose_golden(_images(4), ["d", "a", "c", "b"], 2)
    assert chosen == [1, 3]


def test_count_below_one_is_a_user_error():
    with pytest.raises(ConfigError, match="at least 1"):
        choose_golden(_images(2), ["a", "a"], 0)


@pytest.mark.parametrize(("images", "classes"), [(0, 0), (2, 1)])
def test_missing_images_or_class_names_are_refused(images, classes):
    with pytest.raises(DataError, match="one class name per image"):
        choose_golden(_images(images), ["a"] * classes, 1)
