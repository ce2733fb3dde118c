"""The fault table: no fault gives PASS, and no fault leaks a foreign exception."""

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import BackendError, ConfigError, GoldenSampleError, InferenceError, ManifestError, SnlError
from snl_runtime.model.manifest import read_manifest, write_manifest
from snl_runtime.types import Verdict
from snl_runtime.verdict.ruling import REASON_CODES

HANG_S = 20.0
"""Bound of a call that hangs; every test releases it earlier."""


@dataclass(frozen=True)
class Row:
    """One fault.

    ``expected`` is the error of the constructor, or the reason code of the verdict ERROR.
    """

    name: str
    expected: type[SnlError] | str
    bundle: dict = field(default_factory=dict)
    damage: Callable = lambda folder: None
    frame: Callable = lambda fixtures: fixtures.good_frame(1)
    backend_fault: Callable | None = None
    options: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)


def fill(map_value, score):
    def fault(image, anomaly_map, anomaly_score):
        anomaly_map[:] = map_value
        anomaly_score[:] = score

    return fault


def write_nothing(image, anomaly_map, anomaly_score):
    pass


def write_map_only(image, anomaly_map, anomaly_score):
    anomaly_map[:] = 5


def write_score_only(image, anomaly_map, anomaly_score):
    anomaly_score[:] = 5


def write_half_of_the_map(image, anomaly_map, anomaly_score):
    anomaly_map[:, :, :16] = 5
    anomaly_score[:] = 5


def raise_error(error):
    def fault(image, anomaly_map, anomaly_score):
        raise error

    return fault


def hang(image, anomaly_map, anomaly_score):
    RELEASE.wait(HANG_S)


RELEASE = threading.Event()


@pytest.fixture(autouse=True)
def release_hung_calls():
    RELEASE.clear()
    yield
    RELEASE.set()


def truncate(name):
    def damage(folder):
        path = getattr(folder, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def flip_byte(name):
    def damage(folder):
        path = getattr(folder, name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x41
        path.write_bytes(data)

    return damage


def remove(*names):
    def damage(folder):
        for name in names:
            getattr(folder, name).unlink()

    return damage


def edit_manifest(**changes):
    def damage(folder):
        folder.manifest.write_text(json.dumps({**json.loads(folder.manifest.read_text()), **changes}))

    return damage


def replace_text(name, text):
    return lambda folder: getattr(folder, name).write_text(text)


def normalized(damage=lambda path: None, shape=(32, 32)):
    """Give the product a normalization map that lets everything pass, then damage its file."""
    return lambda folder: damage(folder.give_normalization(np.full(shape, 1e-3, np.float32)))


def forge_normalization(**arrays):
    """Replace the normalization map and its hash, as someone without a key to defy could."""

    def damage(folder):
        path = folder.give_normalization(np.ones((32, 32), np.float32))
        np.savez(path, **arrays)
        manifest = read_manifest(folder.manifest)
        (decision,) = manifest.decisions
        file = dataclasses.replace(decision.normalization, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        write_manifest(folder.manifest, dataclasses.replace(manifest, decisions=[dataclasses.replace(decision, normalization=file)]))

    return damage


def lone_and_corrupt(folder):
    remove("manifest", "golden")(folder)
    truncate("model")(folder)


def constant(value, shape=(32, 32, 3), dtype=np.uint8):
    return lambda fixtures: np.full(shape, value, dtype)


def noise(fixtures):
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def half_black(fixtures, part=np.s_[16:]):
    frame = fixtures.good_frame(1)
    frame[part] = 0
    return frame


def as_type(dtype):
    return lambda fixtures: fixtures.good_frame(1).astype(dtype)


class HostileArray:
    """Not an array, but claims to be one and fails."""

    dtype = np.dtype(np.uint8)
    shape = (32, 32, 3)
    ndim = 3

    def __array__(self, *args, **kwargs):
        raise ZeroDivisionError("hostile")


GOLDEN_CALLS = 3
NAN, INF = math.nan, math.inf
FAR = {"pass_threshold": 1e6, "reject_threshold": 1e6}
"""Thresholds that any score meets: what stops the part is the row's own fault."""

MODEL_ROWS = [
    Row("NaN weights", InferenceError, {"kernel_value": NAN, "decisions": [FAR]}),
    Row("infinite weights", InferenceError, {"kernel_value": INF, "decisions": [FAR]}),
    Row("NaN weights without golden samples", "no_golden_check", {"kernel_value": NAN, "golden": False, "decisions": [FAR]}),
    Row("NaN score from the graph", InferenceError, {"score_offset": NAN}),
    Row("graph with a zero map", GoldenSampleError, {"map_normalization": 0.0}),
    Row("graph with another weight", GoldenSampleError, {"kernel_value": 0.039, "decisions": [FAR]}),
    Row("graph whose score is not the maximum", InferenceError, {"score_normalization": 0.9, "decisions": [FAR]}),
    Row("moved golden samples", GoldenSampleError, {"golden_shift": 0.5}),
    Row("no golden samples", "no_golden_check", {"golden": False}),
    Row("missing golden file", GoldenSampleError, damage=remove("golden")),
    Row("truncated golden file", ManifestError, damage=truncate("golden")),
    Row("altered golden file", ManifestError, damage=flip_byte("golden")),
    Row("truncated model", ManifestError, damage=truncate("model")),
    Row("altered model", ManifestError, damage=flip_byte("model")),
    Row("model that is text", ManifestError, damage=replace_text("model", "not a network")),
    Row("missing model", ManifestError, damage=remove("model")),
    Row("truncated model without a manifest", BackendError, damage=lone_and_corrupt),
    Row("truncated manifest", ManifestError, damage=truncate("manifest")),
    Row("altered manifest", ManifestError, damage=edit_manifest(created_at="2020-01-01T00:00:00+00:00")),
    Row("manifest of another schema", ManifestError, damage=edit_manifest(schema=2)),
    Row("manifest that is no object", ManifestError, damage=replace_text("manifest", "[]")),
    Row("empty manifest", ManifestError, damage=replace_text("manifest", "")),
    Row("manifest of another input size", ManifestError, {"input_changes": {"size_hw": [64, 64]}}),
    Row("manifest of another input size, no golden samples", ManifestError, {"input_changes": {"size_hw": [64, 64]}, "golden": False}),
    Row("lone onnx", "no_manifest", damage=remove("manifest", "golden")),
    Row("lone onnx beside golden samples", "no_manifest", damage=remove("manifest")),
    Row("unknown backend", SnlError, options={"backend": "abacus"}),
    Row("timeout of zero", ConfigError, options={"timeout_ms": 0}),
]

DECISION_ROWS = [
    Row("missing decision", "no_decision", {"decisions": []}),
    Row("expired decision", "decision_expired", {"decisions": [{"expires_at": "2024-05-02T12:00:00+00:00"}]}),
    Row("clock before the calibration", "clock_before_fit", {"decisions": [{"fitted_at": "2999-01-01T00:00:00+00:00"}]}),
    Row("decision with no date", "decision_invalid", {"decisions": [{"fitted_at": "today"}]}),
    Row("decision of another hash", "no_threshold_for_engine", {"decisions": [{"model_sha256": "c" * 64}]}),
    Row(
        "decision of another hash, product named", "no_threshold_for_engine", {"decisions": [{"model_sha256": "c" * 64}]}, call={"product": "bottle"}
    ),
    Row("newer decision expired", "decision_expired", {"decisions": [{}, {"expires_at": "2024-05-02T12:00:00+00:00"}]}),
    Row("one of two products expired, none named", "decision_expired", {"decisions": [{}, {"product": "cap", "expires_at": "2024-05-02T12:00:00Z"}]}),
    Row("two products with two regions of interest", "ambiguous_product", {"decisions": [{}, {"product": "cap", "roi_xyxy": (0, 0, 16, 16)}]}),
    Row("unknown product", "unknown_product", call={"product": "cable"}),
    Row("unknown product of the detector", "unknown_product", options={"product": "cable"}),
    Row("empty product name", "unknown_product", call={"product": ""}),
    Row("product that is no name", "unknown_product", call={"product": ["bottle"]}),
    Row("score below the floor", "below_floor", {"decisions": [{"floor": 1e5, **FAR}]}),
    Row("floor of zero", "decision_invalid", {"decisions": [{"floor": 0.0}]}),
    Row("region of interest outside the frame", "frame_size", {"decisions": [{"roi_xyxy": (0, 0, 64, 64)}]}),
]

NORMALIZATION_ROWS = [
    Row("missing normalization map", ManifestError, {"decisions": [FAR]}, normalized(lambda path: path.unlink())),
    Row("truncated normalization map", ManifestError, {"decisions": [FAR]}, normalized(lambda path: path.write_bytes(path.read_bytes()[:-20]))),
    Row("altered normalization map", ManifestError, {"decisions": [FAR]}, normalized(lambda path: path.write_bytes(path.read_bytes()[::-1]))),
    Row("normalization map of another size", ManifestError, {"decisions": [FAR]}, normalized(shape=(64, 64))),
    Row("forged normalization map of zeros", ManifestError, {"decisions": [FAR]}, forge_normalization(normalization=np.zeros((32, 32), np.float32))),
    Row(
        "forged normalization map of NaN", ManifestError, {"decisions": [FAR]}, forge_normalization(normalization=np.full((32, 32), NAN, np.float32))
    ),
    Row("forged normalization map of objects", ManifestError, {"decisions": [FAR]}, forge_normalization(normalization=np.array([print], object))),
    Row("normalization map that takes the score below the floor", "below_floor", damage=normalized()),
]

FRAME_ROWS = [
    Row("no frame", "frame_unusable", frame=lambda fixtures: None),
    Row("text", "frame_unusable", frame=lambda fixtures: "frame.png"),
    Row("list", "frame_unusable", frame=lambda fixtures: fixtures.good_frame(1).tolist()),
    Row("number", "frame_unusable", frame=lambda fixtures: 7),
    Row("hostile array", "frame_unusable", frame=lambda fixtures: HostileArray()),
    Row("object array", "frame_unusable", frame=as_type(object)),
    Row("float frame", "frame_unusable", frame=as_type(np.float64)),
    Row("float frame of NaN", "frame_unusable", frame=constant(NAN, dtype=np.float32)),
    Row("boolean frame", "frame_unusable", frame=as_type(bool)),
    Row("signed frame", "frame_unusable", frame=as_type(np.int8)),
    Row("frame of 32 bits", "frame_unusable", frame=as_type(np.uint32)),
    Row("big-endian frame of 16 bits, dark", ("frame_unusable", "frame_flat"), frame=as_type(">u2")),
    Row("structured array", "frame_unusable", frame=lambda fixtures: np.zeros((32, 32), [("b", "u1"), ("g", "u1")])),
    Row("two dimensions as bgr", "frame_unusable", frame=constant(80, (32, 32))),
    Row("one dimension", "frame_unusable", frame=constant(80, (32,))),
    Row("no dimension", "frame_unusable", frame=constant(80, ())),
    Row("batch of frames", "frame_unusable", frame=lambda fixtures: fixtures.good_frame(1)[None]),
    Row("channels first", "frame_unusable", frame=lambda fixtures: fixtures.good_frame(1).transpose(2, 0, 1)),
    Row("four channels as bgr", "frame_unusable", frame=constant(80, (32, 32, 4))),
    Row("three channels as gray", "frame_unusable", call={"color": "gray"}),
    Row("unknown color order", "frame_unusable", call={"color": "yuv"}),
    Row("color order that is no name", ("frame_unusable", "internal_error"), call={"color": ["bgr"]}),
    Row("empty frame", "frame_unusable", frame=constant(0, (0, 32, 3))),
    Row("empty frame of no width", "frame_unusable", frame=constant(0, (32, 0, 3))),
    Row("frame of one pixel", "frame_flat", frame=constant(120, (1, 1, 3))),
    Row("frame of absurd size", "frame_unusable", frame=lambda fixtures: np.broadcast_to(np.uint8(9), (1 << 20, 1 << 20, 3))),
    Row("frame of absurd length", "frame_unusable", frame=lambda fixtures: np.broadcast_to(np.uint8(9), (1, 1 << 40, 3))),
    Row("black frame", "frame_flat", {"decisions": [FAR]}, frame=constant(0)),
    Row("saturated frame", "frame_flat", {"decisions": [FAR]}, frame=constant(255)),
    Row("constant frame", "frame_flat", {"decisions": [FAR]}, frame=constant(118)),
    Row("constant color", "frame_flat", {"decisions": [FAR]}, frame=constant((200, 20, 90))),
    Row("noise frame", "frame_out_of_range", {"decisions": [FAR]}, frame=noise),
    Row("lower half black", "frame_out_of_range", {"decisions": [FAR]}, frame=half_black),
    Row("left half black", "frame_out_of_range", {"decisions": [FAR]}, frame=lambda fixtures: half_black(fixtures, np.s_[:, :16])),
    Row("upper half white", "frame_out_of_range", {"decisions": [FAR]}, frame=lambda fixtures: np.maximum(half_black(fixtures), half_white())),
    Row("too dark", "frame_out_of_range", {"decisions": [FAR]}, frame=lambda fixtures: fixtures.good_frame(1) // 2),
    Row("too bright", "frame_out_of_range", {"decisions": [FAR]}, frame=lambda fixtures: fixtures.good_frame(1) // 2 + 125),
]

BACKEND_ROWS = [
    Row("NaN output", "output_not_finite", backend_fault=fill(NAN, NAN)),
    Row("NaN map with a finite score", "output_not_finite", backend_fault=fill(NAN, 3.0)),
    Row("NaN score with a finite map", "output_not_finite", backend_fault=fill(3.0, NAN)),
    Row("infinite output", "output_not_finite", backend_fault=fill(INF, INF)),
    Row("negative infinite output", "output_not_finite", backend_fault=fill(-INF, -INF)),
    Row("zero map", "below_floor", backend_fault=fill(0.0, 0.0)),
    Row("negative output", "below_floor", backend_fault=fill(-3.0, -3.0)),
    Row("stale output: nothing written", "output_not_finite", backend_fault=write_nothing),
    Row("stale score", "output_not_finite", backend_fault=write_map_only),
    Row("stale map", "output_not_finite", backend_fault=write_score_only),
    Row("half of the map written", "output_not_finite", backend_fault=write_half_of_the_map),
    Row("score is not the maximum of the map", "output_inconsistent", backend_fault=fill(30.0, 3.0)),
    Row("zero map with a good score", "output_inconsistent", backend_fault=fill(0.0, 3.0)),
    Row("backend raises its own error", "backend_error", backend_fault=raise_error(InferenceError("device lost"))),
    Row("backend raises a foreign error", "backend_error", backend_fault=raise_error(ValueError("CUDA_ERROR_ILLEGAL_ADDRESS"))),
    Row("backend out of memory", "backend_error", backend_fault=raise_error(MemoryError())),
    Row("timeout", "timeout", backend_fault=hang, options={"timeout_ms": 300}),
]

ROWS = MODEL_ROWS + DECISION_ROWS + NORMALIZATION_ROWS + FRAME_ROWS + BACKEND_ROWS


def half_white():
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[:16] = 255
    return frame


def outcome_of(row, folder, fixtures):
    """Return (constructor error or None, result or None). Anything but an SnlError escapes and fails the row."""
    model = folder.write(**row.bundle)
    row.damage(folder)
    options = dict(row.options)
    if row.backend_fault is not None:
        options["backend"] = fixtures.FakeBackend(row.backend_fault, healthy_calls=GOLDEN_CALLS)
    try:
        detector = SnlDetector(model, **options)
    except SnlError as error:
        return error, None
    with detector:
        return None, detector.detect(row.frame(fixtures), **row.call)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_no_fault_passes_and_none_leaks_a_foreign_exception(row, model_folder, fixtures):
    error, result = outcome_of(row, model_folder, fixtures)
    expected = row.expected if isinstance(row.expected, tuple) else (row.expected,)
    if error is not None:
        assert isinstance(error, tuple(kind for kind in expected if not isinstance(kind, str))), repr(error)
        assert len(str(error)) > 20, "an error says what is wrong and what to do"
        return
    assert result.verdict is Verdict.ERROR
    assert result.reason_code in expected, result.reason
    assert result.reason_code in REASON_CODES
    assert result.reason


@pytest.mark.parametrize("seed", range(1, 6))
def test_control_a_good_frame_passes(seed, model_folder, fixtures):
    with SnlDetector(model_folder.write()) as detector:
        result = detector.detect(fixtures.good_frame(seed))
    assert (result.verdict, result.reason_code) == (Verdict.PASS, "below_threshold"), result.reason


def test_control_a_good_frame_passes_with_the_fake_backend(model_folder, fixtures):
    with SnlDetector(model_folder.write(), backend=fixtures.FakeBackend()) as detector:
        assert detector.detect(fixtures.good_frame(1)).verdict is Verdict.PASS


def test_control_a_scratched_frame_is_rejected(model_folder, fixtures):
    with SnlDetector(model_folder.write()) as detector:
        result = detector.detect(fixtures.bad_frame(1))
    assert result.verdict is Verdict.REJECT, result.reason
    assert result.regions


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_control_a_good_frame_passes_on_every_backend(backend, model_folder, fixtures):
    pytest.importorskip(backend)
    with SnlDetector(model_folder.write(), backend=backend, threads=1) as detector:
        assert detector.detect(fixtures.good_frame(1)).verdict is Verdict.PASS
        assert detector.detect(half_black(fixtures)).verdict is Verdict.ERROR


@pytest.fixture(scope="module")
def open_detector(fixtures, tmp_path_factory):
    with SnlDetector(fixtures.ModelFolder(tmp_path_factory.mktemp("model")).write()) as detector:
        yield detector


ANY_ARRAY = hnp.arrays(
    st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(endianness="?"), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(), st.just(np.dtype("O"))),
    st.one_of(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6), st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
)
ANY_OBJECT = st.one_of(ANY_ARRAY, st.none(), st.text(), st.binary(), st.integers(), st.lists(st.integers()), st.dictionaries(st.text(), st.floats()))


@given(
    frame=ANY_OBJECT, color=st.sampled_from(["bgr", "rgb", "gray", "bgra", "rgba", "", None, 3]), product=st.sampled_from([None, "bottle", "cap", 5])
)
@settings(max_examples=200, deadline=None)
def test_no_object_makes_detect_raise_or_pass(open_detector, frame, color, product):
    result = open_detector.detect(frame, color=color, product=product)
    assert result.verdict is not Verdict.PASS
    assert result.reason_code in REASON_CODES


def test_every_row_has_a_name_of_its_own():
    assert len({row.name for row in ROWS}) == len(ROWS)
