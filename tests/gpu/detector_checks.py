"""What a detector on a GPU must do, compared with the same model on the CPU; each check takes the detectors and fails with an AssertionError."""

import threading
from collections import Counter
from typing import NamedTuple

import numpy as np

from snl_runtime.images.files import read_image
from snl_runtime.images.listing import list_images
from snl_runtime.model.normalization_files import open_normalizations
from snl_runtime.parity.engine import ENGINE_LIMITS
from snl_runtime.parity.frames import derived_frames
from snl_runtime.parity.meter import ParityMeter, compare, figures
from snl_runtime.types import Verdict

HOST_LINE = "frames are prepared on the host, not on the GPU"
UNDECIDED_SHARE = 0.1
"""Most frames whose score may lie so near a threshold that either verdict is right."""
GROWTH_BYTES = 2 << 20
"""Device memory that 200 frames may take: one block of the driver's. One lost map of 64 x 64 pixels a frame is 3 MB."""
REOPENING_BYTES = 16 << 20
"""Device memory that may be gone after a model was opened again: the driver and the libraries grow their own pools by a few MiB."""


class Shot(NamedTuple):
    """A frame as the line hands it over."""

    image: np.ndarray
    color: str
    product: str | None


def read_shots(folder, products):
    """Return every image below ``folder``, in RGB and BGR in turn; its product is its first folder, if it is one of ``products``."""
    shots = []
    for number, path in enumerate(list_images(folder).taken):
        first = path.relative_to(folder).parts[0]
        image_rgb, is_bgr = read_image(path), number % 2 == 1
        image = np.ascontiguousarray(image_rgb[:, :, ::-1]) if is_bgr else image_rgb
        shots.append(Shot(image, "bgr" if is_bgr else "rgb", first if first in products else None))
    assert shots, f"{folder} holds no image"
    return shots


def inspect(detector, shot, image=None):
    """Return the verdict on a shot, or on another copy of its image."""
    return detector.detect(shot.image if image is None else image, color=shot.color, product=shot.product)


def check_verdicts(expecting, detector, shots, *, allowed):
    """Compare verdict, cause and score of every frame; return how often each verdict was expected.

    Args:
        expecting: Says what is right: the model on the CPU.
        detector: What is checked.
        shots: Frames.
        allowed: How far a score may be off. A frame whose score lies that near a threshold may get either verdict.
    """
    expected_verdicts, undecided = Counter(), 0
    for number, shot in enumerate(shots):
        expected, result = inspect(expecting, shot), inspect(detector, shot)
        where = f"frame {number} ({shot.product}): {result.verdict} {result.score}, {result.reason!r}; right is {expected.verdict} {expected.score}"
        expected_verdicts[expected.verdict] += 1
        if expected.verdict is not Verdict.ERROR:
            assert abs(result.score - expected.score) <= allowed, where
            if any(abs(expected.score - threshold) <= allowed for threshold in (expected.threshold, expected.reject_threshold)):
                undecided += 1
                continue
        assert (result.verdict, result.reason_code, result.product) == (expected.verdict, expected.reason_code, expected.product), where
    assert undecided <= UNDECIDED_SHARE * len(shots), f"{undecided} of {len(shots)} frames lie too near a threshold to tell anything"
    return expected_verdicts


def check_alike(first, second, where, *, relative=0.0):
    """Compare two results of one frame on one device; ``relative``: how far scores and maps may be apart, as a share of the score."""
    assert (first.verdict, first.reason_code) == (second.verdict, second.reason_code), where
    if first.verdict is Verdict.ERROR:
        return
    allowed = relative * abs(first.score)
    assert abs(first.score - second.score) <= allowed, f"{where}: score {second.score}, expected {first.score}"
    assert float(np.abs(first.anomaly_map - second.anomaly_map).max()) <= allowed, f"{where}: another map"


def check_threads(detectors, shots, *, rounds=3, relative=0.0):
    """Inspect the shots on one thread per detector at once, each in another order, and compare with the first detector alone.

    Args:
        detectors: One per thread; the same one may be given twice.
        shots: Frames.
        rounds: How often each thread goes through all of them.
        relative: See :func:`check_alike`.
    """
    expected = [inspect(detectors[0], shot) for shot in shots]
    failures = []

    def work(number, detector):
        try:
            for run in range(rounds * len(shots)):
                index = (run + number * len(shots) // len(detectors)) % len(shots)
                check_alike(expected[index], inspect(detector, shots[index]), f"thread {number}, frame {index}", relative=relative)
        except Exception as failure:  # noqa: BLE001  # an assertion included: it must reach the main thread
            failures.append(f"{type(failure).__name__}: {failure}")

    threads = [threading.Thread(target=work, args=(number, detector)) for number, detector in enumerate(detectors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def check_memory(free_bytes, work, *, rounds, warm_up=20, allowed=GROWTH_BYTES):
    """Fail if repeated work takes device memory and does not give it back.

    Args:
        free_bytes: Returns the free device memory.
        work: Called again and again.
        rounds: How often it is measured.
        warm_up: How often it is called before, so that pools have their size.
        allowed: Bytes that may be gone afterwards.
    """
    for _ in range(warm_up):
        work()
    before = free_bytes()
    for _ in range(rounds):
        work()
    gone = before - free_bytes()
    assert gone <= allowed, f"{gone / 2**20:+.1f} MiB of device memory are gone after {rounds} times (allowed {allowed / 2**20:.0f})"


def check_parity(reference, subject):
    """Put an ONNX file on this device through the gate that an engine must pass.

    Args:
        reference: Scorer of the file on the CPU.
        subject: Scorer of the file on the device; both opened without their golden check.
    """
    bundle = subject.bundle
    decisions = list(bundle.manifest.decisions_for(bundle.manifest.model_sha256).values())
    normalizations = open_normalizations(bundle.path, decisions, bundle.manifest.size_hw)
    meter = ParityMeter(ENGINE_LIMITS[bundle.manifest.graph["precision"]], decisions, normalizations)
    compare(reference, subject, None, derived_frames(bundle.golden.images), meter=meter)
    subject_is = {"subject_file": bundle.path.name, "subject_sha256": bundle.sha256}
    report = meter.report(**subject_is, reference="the CPU", frames_source="derived", verified_on=subject.backend.device)
    assert report.passed, f"{figures(report)}; {report.failures}"


def allowed_difference(bundle):
    """Return how far a score of this model may be off here, by its own golden samples."""
    return bundle.golden_tolerance * float(bundle.golden.maps.max())
