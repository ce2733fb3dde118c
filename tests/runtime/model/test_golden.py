"""Golden samples are read back as written or refused, and a machine that scores differently is refused by sample and value."""

import io
import pickle
import random
import zipfile

import numpy as np
import pytest

from snl_runtime.errors import GoldenSampleError, SinkError
from snl_runtime.model.golden import GoldenSamples, check_golden, golden_path, golden_tolerance, read_golden, write_golden


def make_golden(count=3, size=8):
    rng = np.random.default_rng(0)
    maps = rng.random((count, size, size), dtype=np.float32) * 2
    return GoldenSamples(images=rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), scores=maps.max(axis=(1, 2)), maps=maps)


def replay(golden, change=lambda scores, maps: None):
    """A backend that answers as recorded, but for ``change``."""

    def infer(images):
        index = next(i for i in range(len(golden.images)) if np.array_equal(golden.images[i], images[0]))
        scores, maps = golden.scores[index : index + 1].copy(), golden.maps[index : index + 1].copy()
        change(scores, maps)
        return scores, maps

    return infer


@pytest.fixture
def written(tmp_path):
    write_golden(tmp_path / "x.golden.npz", make_golden())
    return tmp_path / "x.golden.npz"


def test_samples_are_read_back_as_written_and_written_the_same_twice(written):
    golden, again = make_golden(), read_golden(written)
    for name in ("images", "scores", "maps"):
        assert np.array_equal(getattr(again, name), getattr(golden, name))
        assert getattr(again, name).dtype == getattr(golden, name).dtype
    before = written.read_bytes()
    write_golden(written, golden)
    assert written.read_bytes() == before


def test_missing_file_and_folder_say_what_to_do(tmp_path):
    with pytest.raises(GoldenSampleError, match=r"cannot read .*x\.golden\.npz: No such file or directory; copy it beside the model"):
        read_golden(tmp_path / "x.golden.npz")
    with pytest.raises(SinkError):
        write_golden(tmp_path / "missing" / "x.golden.npz", make_golden())


def test_truncation_at_every_fiftieth_is_refused(written):
    data = written.read_bytes()
    for part in range(50):
        written.write_bytes(data[: len(data) * part // 50])
        with pytest.raises(GoldenSampleError, match=r"x\.golden\.npz"):
            read_golden(written)


def test_flipped_bits_are_refused_or_change_nothing(written):
    data, golden, rng = written.read_bytes(), make_golden(), random.Random(0)
    for _ in range(400):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        written.write_bytes(flipped)
        try:
            again = read_golden(written)
        except GoldenSampleError:
            continue
        assert np.array_equal(again.maps, golden.maps)  # a bit of the archive's unused fields
        assert np.array_equal(again.images, golden.images)


def save_arrays(path, **arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", np.zeros((3, 8, 8, 3), np.float32), "golden images must be uint8, got float32"),
        ("images", np.zeros((3, 8, 8), np.uint8), r"must have shape \(n, H, W, 3\)"),
        ("images", np.zeros((0, 8, 8, 3), np.uint8), r"must have shape \(n, H, W, 3\)"),
        ("images", np.zeros((2, 8, 8, 3), np.uint8), "must match images"),
        ("scores", np.zeros((3, 1), np.float32), "must match images"),
        ("scores", np.zeros(3, np.float64), "golden scores must be float32"),
        ("scores", np.array([1, np.nan, 1], np.float32), "must be finite"),
        ("maps", np.zeros((3, 8, 9), np.float32), "must match images"),
        ("maps", np.full((3, 8, 8), np.inf, np.float32), "must be finite"),
        ("maps", np.zeros((3, 8, 8), np.float32), "not all zero"),
        ("maps", np.array("text"), "golden maps must be float32"),
    ],
)
def test_arrays_of_another_form_are_refused(name, value, message, tmp_path):
    golden = make_golden()
    save_arrays(tmp_path / "x.npz", **{"images": golden.images, "scores": golden.scores, "maps": golden.maps, name: value})
    with pytest.raises(GoldenSampleError, match=rf"x\.npz.*{message}"):
        read_golden(tmp_path / "x.npz")


def test_missing_and_surplus_arrays_are_refused(tmp_path):
    golden = make_golden()
    save_arrays(tmp_path / "x.npz", images=golden.images, scores=golden.scores)
    with pytest.raises(GoldenSampleError, match="expected the arrays images, scores, maps"):
        read_golden(tmp_path / "x.npz")
    save_arrays(tmp_path / "x.npz", images=golden.images, scores=golden.scores, maps=golden.maps, more=golden.scores)
    with pytest.raises(GoldenSampleError, match="expected the arrays"):
        read_golden(tmp_path / "x.npz")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in the golden samples was executed",))


def test_nothing_in_the_file_is_executed(tmp_path):
    golden = make_golden()
    save_arrays(tmp_path / "x.npz", images=golden.images, scores=golden.scores, maps=np.array([Bomb()], dtype=object))
    with pytest.raises(GoldenSampleError, match="allow_pickle"):
        read_golden(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(GoldenSampleError):
        read_golden(tmp_path / "y.npz")


@pytest.mark.parametrize("header", ["{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999,)}", "{" * 5000, "__import__('os')", ""])
def test_hostile_array_header_is_refused(header, tmp_path):
    golden = make_golden()
    text = header.encode() + b"\n"
    images = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", images)
        for name in ("scores", "maps"):
            buffer = io.BytesIO()
            np.save(buffer, getattr(golden, name))
            archive.writestr(f"{name}.npy", buffer.getvalue())
    with pytest.raises(GoldenSampleError):
        read_golden(tmp_path / "x.npz")


def test_machine_that_scores_as_recorded_passes_within_the_tolerance():
    golden = make_golden()
    allowed = 1e-3 * float(golden.maps.max())

    def drift(scores, maps):
        scores += 0.9 * allowed
        maps -= 0.9 * allowed

    check_golden(golden, replay(golden), 0.0)
    check_golden(golden, replay(golden, drift), 1e-3)


def test_quiet_sample_is_held_to_its_own_largest_value():
    loud = make_golden()
    maps = loud.maps.copy()
    maps[1] *= 0.01
    golden = GoldenSamples(images=loud.images, scores=maps.max(axis=(1, 2)), maps=maps)

    def drift(scores, maps):
        if scores[0] == golden.scores[1]:
            maps += 2e-3 * maps.max()

    check_golden(golden, replay(golden, drift), 3e-3)
    with pytest.raises(GoldenSampleError, match="golden sample 1"):
        check_golden(golden, replay(golden, drift), 1e-3)


def test_score_beyond_the_tolerance_names_sample_expected_and_got():
    golden = make_golden()

    def drift(scores, maps):
        if scores[0] == golden.scores[1]:
            scores += 0.1

    message = rf"golden sample 1 gives a score of {golden.scores[1] + 0.1:.6g} here, recorded is {golden.scores[1]:.6g}"
    with pytest.raises(GoldenSampleError, match=message):
        check_golden(golden, replay(golden, drift), 1e-3)


def test_single_wrong_map_value_is_found_and_its_place_named():
    golden = make_golden()

    def spoil(scores, maps):
        maps[0, 2, 5] = 0.0 if golden.maps[0, 2, 5] > 0.01 else 1.0

    with pytest.raises(GoldenSampleError, match=r"map value at \(2, 5\)"):
        check_golden(golden, replay(golden, spoil), 1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_never_agrees(value):
    golden = make_golden()

    def spoil_score(scores, maps):
        scores[:] = value

    def spoil_map(scores, maps):
        maps[0, 0, 0] = value

    for spoil in (spoil_score, spoil_map):
        with pytest.raises(GoldenSampleError, match="golden sample 0"):
            check_golden(golden, replay(golden, spoil), 0.5)


def test_map_of_another_size_is_refused():
    golden = make_golden()
    with pytest.raises(GoldenSampleError, match="belong to another model"):
        check_golden(golden, lambda images: (golden.scores[:1], golden.maps[:1, :4]), 1e-3)


def test_tolerance_comes_from_the_manifest_or_the_precision():
    assert golden_tolerance({}) == 1e-3
    assert golden_tolerance({"precision": "fp16"}) == 2e-2
    assert golden_tolerance({"precision": "fp32", "golden_tolerance": 5e-3}) == 5e-3
    assert golden_tolerance({"precision": "fp32", "golden_tolerance": 5e-3}, "fp16") == 2e-2  # an fp16 engine of an fp32 graph
    assert golden_tolerance({"golden_tolerance": "large"}) == 1e-3


def test_golden_samples_lie_beside_the_model():
    assert golden_path("models/x.onnx").as_posix() == "models/x.golden.npz"
    assert golden_path("models/x.trt").as_posix() == "models/x.golden.npz"
