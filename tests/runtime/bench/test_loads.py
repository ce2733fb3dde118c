"""Every kind of call judges as many frames as it says, goes round the frames it was given, and takes no time from a frame without a score."""

import threading

import numpy as np
import pytest

from snl_runtime import SnlDetector
from snl_runtime.bench.loads import Batches, Cameras, SingleFrames, Subject
from snl_runtime.errors import DataError


class Judge:
    """A detector that notes what it is given; the real one judges."""

    def __init__(self, detector):
        self._detector = detector
        self.seen, self.threads = [], set()
        self.batch_size = detector.batch_size

    def detect(self, image, **options):
        self.seen.append(int(image[0, 0, 0]))
        self.threads.add(threading.get_ident())
        return self._detector.detect(image, **options)

    def detect_batch(self, images, **options):
        self.seen += [int(image[0, 0, 0]) for image in images]
        return self._detector.detect_batch(images, **options)


@pytest.fixture
def subject(model_folder, fixtures):
    frames = [np.ascontiguousarray(fixtures.good_frame(seed)[:, :, ::-1]) for seed in range(3)]
    for number, frame in enumerate(frames):
        frame[0, 0, 0] = number
    with SnlDetector(model_folder.write()) as detector:
        yield Subject(name="line.onnx", detector=Judge(detector), frames=frames, product="bottle")


def test_single_frames_go_round_and_warm_up_is_not_kept(subject):
    load = SingleFrames(subject)
    load.run(0, keep=False)
    for index in range(4):
        load.run(index)
    assert subject.detector.seen == [0, 0, 1, 2, 0]
    assert len(load.call_ms) == 4
    assert {stage: len(values) for stage, values in load.stage_ms.items()} == {"preprocess": 4, "infer": 4, "decide": 4}


def test_batch_is_one_call_of_so_many_frames(subject):
    load = Batches(subject, 4)
    load.run(0)
    load.run(1)
    assert subject.detector.seen == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(load.call_ms) == 2
    assert load.frames_per_s == pytest.approx(1e3 * 8 / sum(load.call_ms))


@pytest.mark.parametrize(("frames", "calls"), [(1, 1), (8, 1), (9, 2), (24, 3)])
def test_calls_of_the_backend_follow_from_what_the_model_takes_at_once(subject, frames, calls):
    assert subject.detector.batch_size == 8
    assert Batches(subject, frames).backend_calls == calls


def test_each_camera_judges_one_frame_of_every_trigger_on_threads_that_stay(subject):
    with Cameras(subject, 3) as load:
        load.run(0, keep=False)
        for index in range(5):
            load.run(index)
    assert sorted(subject.detector.seen) == sorted([0, 1, 2] * 6)
    assert len(load.call_ms) == 5
    assert len(load.verdict_ms) == 15
    assert max(load.verdict_ms) <= max(load.call_ms)
    assert 1 <= len(subject.detector.threads) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snl-bench-camera")]


@pytest.mark.parametrize("kind", [SingleFrames, lambda subject: Batches(subject, 2), lambda subject: Cameras(subject, 2)])
def test_frame_without_a_score_gives_no_time(subject, kind):
    subject.frames[0] = np.zeros((0, 0, 3), np.uint8)
    subject.detector.detect = subject.detector._detector.detect
    subject.detector.detect_batch = subject.detector._detector.detect_batch
    load = kind(subject)
    with pytest.raises(DataError, match=r"line\.onnx cannot score a frame, so its times mean nothing: "):
        load.run(0)
    assert load.call_ms == []
    if isinstance(load, Cameras):
        load.__exit__(None, None, None)
