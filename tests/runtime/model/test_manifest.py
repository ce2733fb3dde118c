"""A manifest is read back exactly as written or refused with a ManifestError that names the file and the key."""

import contextlib
import dataclasses
import hashlib
import json
import random

import numpy as np
import pytest

from snl_runtime.errors import ManifestError, SinkError
from snl_runtime.model.frame_range import FrameRange, FrameSizes
from snl_runtime.model.manifest import (
    Decision,
    EngineEntry,
    Evidence,
    Manifest,
    ParityReport,
    canonical_text,
    manifest_path,
    read_manifest,
    write_manifest,
)

ONNX, ENGINE, OTHER = "a" * 64, "e" * 64, "0" * 64
NOW = "2026-11-23T10:00:00+00:00"


def make_manifest(**changes):
    values = {
        "model_file": "x.onnx",
        "model_sha256": ONNX,
        "files": {"x.onnx": ONNX, "x.golden.npz": OTHER},
        "input": {
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "rgb",
            "size_hw": [32, 48],
            "batch": "dynamic",
            "max_batch": 8,
        },
        "outputs": {"anomaly_map": {"dtype": "float32", "shape": ["N", 1, 32, 48]}, "anomaly_score": {"dtype": "float32", "shape": ["N"]}},
        "graph": {"opset": 18, "precision": "fp32", "affinity_tile_rows": 256},
        "classes": ["bottle", "Schraube größer"],
        "training": {"seed": 0, "config": {"optim": {"learning_rate": 0.005}}},
        "training_image_sha256": [OTHER],
        "held_out": [{"path": "a/1.png", "sha256": OTHER, "class_name": "bottle"}],
        "created_at": NOW,
    }
    return Manifest(**{**values, **changes})


def make_decision(product="bottle", model_sha256=ONNX, **changes):
    values = {
        "product": product,
        "model_sha256": model_sha256,
        "pass_threshold": 1.25,
        "reject_threshold": 1.5,
        "floor": 0.25,
        "frame_sizes": FrameSizes(seen_hw=[(480, 640)], any_size=False),
        "bit_depth": 8,
        "frame_range": FrameRange(**dict.fromkeys((field.name for field in dataclasses.fields(FrameRange)), (0.0, 0.5))),
        "roi_xyxy": (1, 2, 30, 40),
        "sample_count": 299,
        "sample_sha256": OTHER,
        "max_frr": 0.01,
        "confidence": 0.95,
        "bound": "at most 1 % of good parts do not pass, with 95 % confidence",
        "evidence": Evidence(source="synthetic defects", counts={"scratch": (9, 10)}, detection_rate=0.9, min_detection=0.5),
        "accepted_outliers": [],
        "backend": "onnxruntime",
        "fitted_at": NOW,
        "expires_at": None,
        "tool_version": "0.1.0",
    }
    return Decision(**{**values, **changes})


@pytest.mark.parametrize("bits", [0, 9, 11, 32])
def test_bit_depth_that_no_camera_has_is_refused(bits):
    with pytest.raises(ManifestError, match="the bit depth of 'bottle' must be one of 8, 10, 12, 14, 16"):
        make_decision(bit_depth=bits)


def make_parity(subject_sha256=ENGINE, **changes):
    values = {
        "subject_file": "x.trt",
        "subject_sha256": subject_sha256,
        "reference": "x.onnx on onnxruntime",
        "frames_source": "golden crops, flips and noise",
        "frame_count": 64,
        "score_max_abs": 1e-4,
        "score_p99_abs": 1e-5,
        "map_max_abs": 1e-4,
        "map_p99_abs": 1e-5,
        "map_scale": 2.0,
        "tolerance": 2e-2,
        "auroc_drift": None,
        "flips": 0,
        "guard_band": 0.0,
        "more_lenient": 0,
        "passed_by_reference": 0,
        "refused_by_guard_band": 0,
        "passed": True,
        "failures": [],
        "verified_on": "not verified on a device",
        "created_at": NOW,
    }
    return ParityReport(**{**values, **changes})


def make_engine(sha256=ENGINE, **changes):
    values = {
        "file": "x.trt",
        "sha256": sha256,
        "library": "tensorrt",
        "library_version": "10.7.0",
        "compute_capability": ["8.9"],
        "precision": "fp16",
        "built_at": NOW,
        "parity": make_parity(sha256),
        "options": {"workspace_bytes": 1 << 30},
    }
    return EngineEntry(**{**values, **changes})


def full_manifest():
    return make_manifest().with_parity(make_parity(ONNX)).with_engine(make_engine()).with_decision(make_decision())


def rehash(document):
    """The self hash as the docs state it: sorted keys, no spaces, UTF-8, without the two keys."""
    hashed = {key: value for key, value in document.items() if key not in ("self_sha256", "signature")}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**document, "self_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "x.json"
    write_manifest(path, full_manifest())
    return path


def test_report_from_before_correlation_was_measured_keeps_its_text_and_hash(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    assert not [key for key in document["parity"][0] if "correlation" in key]
    manifest = read_manifest(written)
    assert manifest.parity[0].map_correlation_min is None
    before = written.read_bytes()
    write_manifest(written, manifest)
    assert written.read_bytes() == before


def test_correlation_of_a_report_is_kept(tmp_path):
    report = make_parity(ONNX, map_correlation_min=0.98, map_correlation_median=1)
    write_manifest(tmp_path / "x.json", make_manifest().with_parity(report))
    (read,) = read_manifest(tmp_path / "x.json").parity
    assert (read.map_correlation_min, read.map_correlation_median) == (0.98, 1.0)


def test_manifest_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "x.json"
    written = write_manifest(path, full_manifest())
    assert read_manifest(path) == written
    assert dataclasses.replace(written, self_sha256="") == full_manifest()


def test_file_is_strict_json_with_the_field_names_as_keys(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    assert set(document) == {field.name for field in dataclasses.fields(Manifest)}
    assert document["schema"] == 1
    assert document["decisions"][0]["evidence"]["counts"] == {"scratch": [9, 10]}
    assert document["decisions"][0]["frame_range"]["mean"] == [0.0, 0.5]
    assert document["decisions"][0]["frame_sizes"] == {"seen_hw": [[480, 640]], "any_size": False}
    assert document["classes"] == ["bottle", "Schraube größer"]
    assert document["signature"] is None


def test_self_hash_is_of_the_canonical_text_without_itself_and_the_signature(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    assert rehash(document)["self_sha256"] == document["self_sha256"]
    assert hashlib.sha256(canonical_text(read_manifest(written)).encode()).hexdigest() == document["self_sha256"]


def test_numpy_and_whole_numbers_are_written_like_the_floats_they_stand_for(tmp_path):
    plain = make_manifest().with_decision(make_decision(pass_threshold=1.0, reject_threshold=2.0, floor=0.5, sample_count=300))
    other = make_manifest().with_decision(
        make_decision(pass_threshold=1, reject_threshold=np.float64(2), floor=np.float32(0.5), sample_count=np.int64(300))
    )
    assert canonical_text(other) == canonical_text(plain)
    assert write_manifest(tmp_path / "x.json", other) == write_manifest(tmp_path / "y.json", plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_value_that_strict_json_cannot_carry_is_not_written(value, tmp_path):
    with pytest.raises(ManifestError, match=r"graph\.odd"):
        write_manifest(tmp_path / "x.json", make_manifest(graph={"odd": value}))
    assert list(tmp_path.iterdir()) == []


def test_refused_write_keeps_the_old_manifest(written):
    before = written.read_bytes()
    with pytest.raises(ManifestError, match="was not written"):
        write_manifest(written, dataclasses.replace(full_manifest(), classes=[1]))
    assert written.read_bytes() == before
    with pytest.raises(SinkError):
        write_manifest(written.parent / "missing" / "x.json", full_manifest())


def test_edited_threshold_is_seen_by_the_self_hash(written):
    written.write_text(written.read_text(encoding="utf-8").replace('"pass_threshold":1.25', '"pass_threshold":1.26'), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"x\.json: was altered"):
        read_manifest(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "has schema 2, this snl-edge reads schema 1"),
        (lambda d: d.update(schema="1"), "schema must be a whole number, got '1'"),
        (lambda d: d.update(schema=True), "schema must be a whole number, got 'True'"),
        (lambda d: d.update(desicions=[]), "unknown key 'desicions'; did you mean 'decisions'"),
        (lambda d: d.pop("model_sha256"), "key 'model_sha256' is missing"),
        (lambda d: d["decisions"][0].update(pass_treshold=1.0), r"unknown key 'decisions\[0\]\.pass_treshold'"),
        (lambda d: d["decisions"][0].pop("floor"), r"key 'decisions\[0\]\.floor' is missing"),
        (lambda d: d["decisions"][0].update(pass_threshold="1.25"), r"decisions\[0\]\.pass_threshold must be a number, got '1\.25'"),
        (lambda d: d["decisions"][0].update(pass_threshold=None), r"decisions\[0\]\.pass_threshold must be a number, got nothing"),
        (lambda d: d["decisions"][0].update(pass_threshold=9.0), "floor <= pass_threshold <= reject_threshold"),
        (lambda d: d["decisions"][0].update(floor=-1.0), "0 <= floor"),
        (lambda d: d["decisions"][0].update(roi_xyxy=[1, 2, 3]), r"decisions\[0\]\.roi_xyxy must have 4 values, got 3"),
        (lambda d: d["decisions"][0].update(sample_count=2.5), r"decisions\[0\]\.sample_count must be a whole number, got '2\.5'"),
        (lambda d: d["engines"][0]["parity"].update(passed=1), r"engines\[0\]\.parity\.passed must be true or false, got '1'"),
        (lambda d: d.update(decisions={}), "decisions must be a list, got a section of keys"),
        (lambda d: d.update(files={"../x.onnx": ONNX}), "'../x.onnx', which is not a plain file name"),
        (lambda d: d.update(files={"/etc/x": ONNX}), "not a plain file name"),
        (lambda d: d.update(model_sha256=OTHER), "gives two hashes for 'x.onnx'"),
        (lambda d: d.update(files={}, model_sha256="A" * 64), "must give 64 lower-case hexadecimal digits"),
        (lambda d: d["input"].update(color="bgr"), r"'input\.color' must be rgb, got 'bgr'"),
        (lambda d: d["input"].update(size_hw=[32]), r"'input\.size_hw' must be \[height, width\]"),
        (lambda d: d["input"].update(size_hw=[32, True]), r"'input\.size_hw'"),
        (lambda d: d["input"].update(batch=0), r"'input\.batch' must be"),
        (lambda d: d["input"].pop("max_batch"), "wrong or missing: max_batch"),
        (lambda d: d["input"].update(scale=255), "wrong or missing: scale"),
    ],
)
def test_odd_key_or_value_is_refused_by_name_even_with_a_fitting_hash(written, change, message):
    document = json.loads(written.read_text(encoding="utf-8"))
    change(document)
    written.write_text(json.dumps(rehash(document)), encoding="utf-8")
    with pytest.raises(ManifestError, match=rf"x\.json: .*{message}"):
        read_manifest(written)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b'{"schema": NaN}',
        b'{"schema": 1, "schema": 1}',
        b'{"schema": 1e999}',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b'{"graph": ' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"classes": ["\\ud800"]}',
        b"\0" * 100,
    ],
)
def test_file_that_is_no_manifest_is_a_manifest_error_that_names_it(content, tmp_path):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"odd\.json"):
        read_manifest(tmp_path / "odd.json")


def test_missing_manifest_says_what_to_do(tmp_path):
    with pytest.raises(ManifestError, match=r"cannot read .*x\.json: No such file or directory; copy it beside the model"):
        read_manifest(tmp_path / "x.json")
    with pytest.raises(ManifestError, match="cannot read"):
        read_manifest(tmp_path)


def test_truncation_at_any_byte_is_a_manifest_error(written):
    data = written.read_bytes()
    for length in range(0, len(data.rstrip()), 13):
        written.write_bytes(data[:length])
        with pytest.raises(ManifestError):
            read_manifest(written)


def test_flipped_bits_never_change_what_is_read(written):
    data, rng = bytearray(written.read_bytes()), random.Random(0)
    original = read_manifest(written)
    for _ in range(250):
        position, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        flipped = bytearray(data)
        flipped[position] ^= bit
        written.write_bytes(flipped)
        with contextlib.suppress(ManifestError):  # white space may change without harm
            assert read_manifest(written) == original


def places(value):
    """Every container of a JSON document with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def test_any_value_of_any_other_type_raises_nothing_but_manifest_errors(written):
    text, rng = written.read_text(encoding="utf-8"), random.Random(1)
    odd = [None, True, 0, -1, 1.5, 2**70, "", "x", "\ud800", "\0", [], {}, [[]], {"a": 1}, [None] * 3]
    refused = 0
    for _ in range(600):
        document = json.loads(text)
        container, key = rng.choice(list(places(document)))
        container[key] = rng.choice(odd)
        written.write_text(json.dumps(rehash(document)), encoding="utf-8")
        try:
            read_manifest(written)
        except ManifestError:
            refused += 1
    assert refused > 250  # free plain values (graph, training) may be anything


def test_manifest_lies_beside_the_model():
    assert manifest_path("models/x.onnx").as_posix() == "models/x.json"
    assert manifest_path("models/x.trt").as_posix() == "models/x.json"


def test_newest_decision_of_each_product_applies():
    manifest = make_manifest().with_decision(make_decision(pass_threshold=1.1)).with_decision(make_decision("screw"))
    manifest = manifest.with_decision(make_decision(pass_threshold=1.3))
    applies = manifest.decisions_for(ONNX)
    assert sorted(applies) == ["bottle", "screw"]
    assert applies["bottle"].pass_threshold == 1.3
    assert [decision.pass_threshold for decision in manifest.decisions] == [1.1, 1.25, 1.3]  # the old one stays as history


def test_decision_of_another_hash_never_applies():
    manifest = make_manifest().with_decision(make_decision(model_sha256=OTHER))
    assert manifest.decisions_for(ONNX) == {}
    assert manifest.decisions_for(OTHER).keys() == {"bottle"}


@pytest.mark.parametrize(
    ("parity", "applies"),
    [
        (make_parity(), True),
        (make_parity(passed=False), False),
        (make_parity(flips=1), True),
        (make_parity(more_lenient=1), False),
        (make_parity(guard_band=None), False),
        (make_parity(subject_sha256=OTHER), False),
        (None, False),
    ],
)
def test_engine_uses_its_onnx_decision_only_with_a_passed_parity_report_of_its_own(parity, applies):
    manifest = make_manifest().with_decision(make_decision()).with_engine(make_engine(parity=parity))
    assert (manifest.decisions_for(ENGINE) != {}) == applies


def test_engine_uses_a_decision_fitted_on_itself_without_parity():
    manifest = make_manifest().with_engine(make_engine(parity=None)).with_decision(make_decision(model_sha256=ENGINE))
    assert manifest.decisions_for(ENGINE).keys() == {"bottle"}


def test_engine_of_an_earlier_export_does_not_inherit_the_new_decision():
    manifest = make_manifest().with_engine(make_engine())
    exported_again = dataclasses.replace(manifest, model_sha256=OTHER, files={}).with_decision(make_decision(model_sha256=OTHER))
    assert exported_again.decisions_for(ENGINE) == {}


def test_rebuilt_engine_replaces_the_entry_of_its_file():
    manifest = make_manifest().with_engine(make_engine()).with_engine(make_engine(OTHER, parity=None))
    assert [engine.sha256 for engine in manifest.engines] == [OTHER]
    assert manifest.engine_for(ENGINE) is None


def test_every_change_drops_the_signature_and_the_self_hash():
    signed = dataclasses.replace(make_manifest(), self_sha256=OTHER, signature={"algorithm": "ed25519", "public_key": "", "value": ""})
    for changed in (signed.with_decision(make_decision()), signed.with_engine(make_engine()), signed.with_parity(make_parity())):
        assert changed.signature is None
        assert changed.self_sha256 == ""
