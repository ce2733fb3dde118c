"""A CUDA graph is used only if its replays answer as plain runs do, image by image; no way of answering otherwise is let through."""

import numpy as np
import pytest

from snl_runtime.backends.onnxruntime.capture import RUNS_UNTIL_REPLAY, check_images, record_and_check
from snl_runtime.errors import InferenceError

SIZE_HW = (24, 32)


def model(images):
    """A map that follows the image cell by cell, and its maximum."""
    maps = images.astype(np.float32).mean(axis=3) / 255 + 0.1
    return maps, maps.max(axis=(1, 2))


class Replays:
    """Runs of which the first are plain, as ONNX Runtime makes them, and the rest go through ``fault``, which knows what was recorded."""

    def __init__(self, fault):
        self.fault, self.runs, self.recorded = fault, 0, None

    def __call__(self, images):
        self.runs += 1
        if self.runs < RUNS_UNTIL_REPLAY:
            self.recorded = images
            return model(images)
        return self.fault(images, self.recorded)


def moved(images, amount):
    maps, scores = model(images)
    maps[-1, -1, -1] += amount
    return maps, scores


FAULTS = {
    "the answer of the recording": lambda images, recorded: model(recorded),
    "nothing": lambda images, recorded: tuple(np.full_like(values, np.nan) for values in model(images)),
    "zeros": lambda images, recorded: tuple(np.zeros_like(values) for values in model(images)),
    "one cell of one image": lambda images, recorded: moved(images, 0.01),
    "another image of the batch": lambda images, recorded: model(images[::-1]),
    "only the first image of the batch": lambda images, recorded: model(np.concatenate([images[:1], recorded[1:]])),
    "the map without its score": lambda images, recorded: (model(images)[0], model(recorded)[1] + 1),
}


@pytest.mark.parametrize("count", [1, 3])
def test_replays_that_follow_the_image_pass(count):
    replays = Replays(lambda images, recorded: moved(images, 1e-5))
    record_and_check(model, replays, count, SIZE_HW)
    assert replays.runs == RUNS_UNTIL_REPLAY + 5


@pytest.mark.parametrize("fault", FAULTS)
def test_any_other_answer_is_refused(fault):
    with pytest.raises(InferenceError, match=r"^a replay of 3 images is \S+ off a plain run, allowed is 0\.00"):
        record_and_check(model, Replays(FAULTS[fault]), 3, SIZE_HW)


def test_graph_that_follows_one_image_late_is_refused():
    """The input is read before it is written: each replay answers the image before."""
    seen = []

    def late(images, recorded):
        seen.append(images)
        return model(seen[-2] if len(seen) > 1 else images)

    with pytest.raises(InferenceError, match="it may be an old answer"):
        record_and_check(model, Replays(late), 1, SIZE_HW)


def test_model_that_answers_every_image_alike_cannot_be_checked():
    constant = lambda images: (np.ones(images.shape[:3], np.float32), np.ones(len(images), np.float32))  # noqa: E731
    with pytest.raises(InferenceError, match="two different images get the same answer"):
        record_and_check(constant, constant, 1, SIZE_HW)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_plain_run_without_an_answer_cannot_be_checked(value):
    empty = lambda images: (np.full(images.shape[:3], value, np.float32), np.full(len(images), value, np.float32))  # noqa: E731
    with pytest.raises(InferenceError, match="with which nothing can be compared"):
        record_and_check(empty, empty, 1, SIZE_HW)


def test_no_two_images_of_the_check_are_alike():
    images = np.concatenate(check_images(4, SIZE_HW)).astype(int)
    assert images.shape == (8, *SIZE_HW, 3)
    differences = [np.abs(one - other).mean() for number, one in enumerate(images) for other in images[:number]]
    assert min(differences) > 40  # gray levels; of two independent uniform values it is 85
