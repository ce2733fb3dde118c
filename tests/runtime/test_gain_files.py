"""The gain map of a decision travels beside the model, named and hashed by the manifest; without it nothing opens."""

import dataclasses
import json

import numpy as np
import pytest

from snl_runtime.errors import ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.model.gain import GainMap
from snl_runtime.model.gain_files import encode_gain, gain_of, open_gains, write_gain
from snl_runtime.model.manifest import GainFile, canonical_text, read_manifest, write_manifest

SHAPE = (64, 48)


def random_gain():
    return GainMap(np.random.default_rng(0).uniform(0.5, 1.5, SHAPE).astype(np.float32))


def decided(make_decision, file, product="bottle"):
    return make_decision(product=product, gain=file)


@pytest.fixture
def written(tmp_path):
    """Model path, what a decision says, and the gain map."""
    gain, model = random_gain(), tmp_path / "line.onnx"
    file, data = encode_gain(model, "bottle", gain)
    write_gain(model, file, data)
    return model, file, gain


def test_gain_map_comes_back_as_it_was_written(written, fixtures):
    model, file, gain = written
    decision = decided(fixtures.make_decision, file)
    opened = open_gains(model, [decision, decision, fixtures.make_decision(product="cap")], SHAPE)
    assert np.array_equal(gain_of(decision, opened).values, gain.values)
    assert list(opened) == [file.sha256]


def test_decision_without_a_gain_map_has_none(fixtures):
    assert gain_of(fixtures.make_decision(), {}) is None


def test_gain_map_that_was_not_opened_is_never_left_out_silently(written, fixtures):
    with pytest.raises(ManifestError, match="was not opened"):
        gain_of(decided(fixtures.make_decision, written[1]), {})


@pytest.mark.parametrize(
    ("product", "part"),
    [
        ("bottle", "bottle"),
        ('Dose 5/8"', "Dose_5_8_"),
        ("übel", "ubel"),
        ("瓶", "product"),
        ("../../etc", "______etc"),
        ("a.b", "a_b"),
        ("x" * 200, "x" * 60),
    ],
)
def test_file_is_named_by_model_product_and_hash(tmp_path, product, part):
    file, data = encode_gain(tmp_path / "line.onnx", product, random_gain())
    assert file.file == f"line.gain.{part}.{file.sha256[:12]}.npz"
    assert encode_gain(tmp_path / "line.onnx", product, random_gain())[1] == data


def test_files_of_a_model_may_be_renamed_together(written, fixtures):
    model, file, _ = written
    model.with_name(file.file).rename(model.with_name(file.file.replace("line.", "north.")))
    assert open_gains(model.with_name("north.trt"), [decided(fixtures.make_decision, file)], SHAPE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(b""), "is altered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is altered"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"gain", b"gone")), "is altered"),
    ],
)
def test_missing_or_altered_file_is_an_error_that_says_what_to_run(written, fixtures, damage, message):
    model, file, _ = written
    damage(model.with_name(file.file))
    with pytest.raises(ManifestError, match=message) as caught:
        open_gains(model, [decided(fixtures.make_decision, file)], SHAPE)
    assert "snl-calibrate --engine line.onnx --fixtured" in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {"gain": np.ones((4, 4))},
        {"gain": np.zeros(SHAPE, np.float32)},
        {"gain": np.full(SHAPE, np.nan, np.float32)},
        {"gain": np.ones((4, 4), np.float32)},
        {"gain": np.array([{"a": 1}], object)},
        {"other": np.ones(SHAPE, np.float32)},
        {"gain": np.ones(SHAPE, np.float32), "more": np.ones(1)},
    ],
)
def test_whole_file_that_holds_no_gain_map_of_the_model_is_refused(tmp_path, fixtures, arrays):
    path = tmp_path / "line.gain.bottle.npz"
    np.savez(path, **arrays)
    file = GainFile(file=path.name, sha256=sha256_file(path), highest=1.0)
    with pytest.raises(ManifestError):
        open_gains(tmp_path / "line.onnx", [decided(fixtures.make_decision, file)], SHAPE)


@pytest.mark.parametrize("name", ["", "../x.npz", "/etc/passwd", "a\\b.npz", "a\n.npz"])
def test_gain_file_is_a_plain_name_with_a_whole_hash(name):
    with pytest.raises(ManifestError, match="plain file name"):
        GainFile(file=name, sha256="a" * 64, highest=1.0)
    with pytest.raises(ManifestError, match="hexadecimal"):
        GainFile(file="x.npz", sha256="A" * 64, highest=1.0)


@pytest.mark.parametrize("highest", [0.0, -1.0, float("nan")])
def test_gain_file_names_a_largest_gain_above_0(highest):
    with pytest.raises(ManifestError, match="largest gain"):
        GainFile(file="x.npz", sha256="a" * 64, highest=highest)


def test_largest_gain_that_is_not_the_files_is_refused(written, fixtures):
    """It bounds the guard band of an engine: too small a value would let an engine pass what its model would not."""
    model, file, _ = written
    with pytest.raises(ManifestError, match="largest gain"):
        open_gains(model, [decided(fixtures.make_decision, dataclasses.replace(file, highest=file.highest / 2))], SHAPE)


def test_manifest_with_a_gain_map_is_read_as_it_was_written(model_folder):
    file = GainFile(file="line.gain.bottle.0123456789ab.npz", sha256="ab" * 32, highest=1.0)
    model_folder.write(decisions=[{}, {"gain": file}])
    plain, gained = read_manifest(model_folder.manifest).decisions
    assert (plain.gain, gained.gain) == (None, file)


def test_decision_without_a_gain_map_is_written_as_before_there_were_any(model_folder):
    """Hashes and signatures of earlier manifests hold: the text has no such key."""
    model_folder.write()
    document = json.loads(model_folder.manifest.read_text())
    assert "gain" not in document["decisions"][0]
    assert '"gain"' not in canonical_text(read_manifest(model_folder.manifest))


@pytest.mark.parametrize(
    "value",
    [
        "a.npz",
        {"file": "a.npz"},
        {"file": "../a.npz", "sha256": "a" * 64, "highest": 1.0},
        {"file": "a.npz", "sha256": "a" * 64, "highest": 1.0, "x": 1},
        3,
    ],
)
def test_gain_entry_of_another_form_is_refused(model_folder, value):
    model_folder.write()
    document = json.loads(model_folder.manifest.read_text())
    document["decisions"][0]["gain"] = value
    model_folder.manifest.write_text(json.dumps(document))
    with pytest.raises(ManifestError):
        read_manifest(model_folder.manifest)


def test_hash_and_signature_cover_the_gain_entry(model_folder):
    model_folder.write(decisions=[{"gain": GainFile(file="a.npz", sha256="a" * 64, highest=1.0)}])
    text = model_folder.manifest.read_text()
    for altered in (text.replace('"a.npz"', '"b.npz"'), text.replace("a" * 64, "b" * 64)):
        assert altered != text
        model_folder.manifest.write_text(altered)
        with pytest.raises(ManifestError, match="was altered"):
            read_manifest(model_folder.manifest)
    model_folder.manifest.write_text(text)
    manifest = read_manifest(model_folder.manifest)
    without = dataclasses.replace(manifest, decisions=[dataclasses.replace(manifest.decisions[0], gain=None)])
    assert canonical_text(without) != canonical_text(manifest)
    write_manifest(model_folder.manifest, without)
    assert read_manifest(model_folder.manifest).self_sha256 != manifest.self_sha256
