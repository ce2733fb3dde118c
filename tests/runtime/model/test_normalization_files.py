"""The normalization map of a decision travels beside the model, named and hashed by the manifest; without it nothing opens."""

import dataclasses
import json

import numpy as np
import pytest

from snl_runtime.errors import ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.model.manifest import NormalizationFile, canonical_text, read_manifest, write_manifest
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_normalization, normalization_of, open_normalizations, write_map_file

SHAPE = (64, 48)


def random_normalization():
    return NormalizationMap(np.random.default_rng(0).uniform(0.5, 1.5, SHAPE).astype(np.float32))


def decided(make_decision, file, product="bottle"):
    return make_decision(product=product, normalization=file)


@pytest.fixture
def written(tmp_path):
    """Model path, what a decision says, and the normalization map."""
    normalization, model = random_normalization(), tmp_path / "line.onnx"
    file, data = encode_normalization(model, "bottle", normalization)
    write_map_file(model, file, data)
    return model, file, normalization


def test_normalization_map_comes_back_as_it_was_written(written, fixtures):
    model, file, normalization = written
    decision = decided(fixtures.make_decision, file)
    opened = open_normalizations(model, [decision, decision, fixtures.make_decision(product="cap")], SHAPE)
    assert np.array_equal(normalization_of(decision, opened).values, normalization.values)
    assert list(opened) == [file.sha256]


def test_decision_without_a_normalization_map_has_none(fixtures):
    assert normalization_of(fixtures.make_decision(), {}) is None


def test_normalization_map_that_was_not_opened_is_never_left_out_silently(written, fixtures):
    with pytest.raises(ManifestError, match="was not opened"):
        normalization_of(decided(fixtures.make_decision, written[1]), {})


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
    file, data = encode_normalization(tmp_path / "line.onnx", product, random_normalization())
    assert file.file == f"line.normalization.{part}.{file.sha256[:12]}.npz"
    assert encode_normalization(tmp_path / "line.onnx", product, random_normalization())[1] == data


def test_files_of_a_model_may_be_renamed_together(written, fixtures):
    model, file, _ = written
    model.with_name(file.file).rename(model.with_name(file.file.replace("line.", "north.")))
    assert open_normalizations(model.with_name("north.trt"), [decided(fixtures.make_decision, file)], SHAPE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(b""), "is altered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is altered"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"normalization", b"gone")), "is altered"),
    ],
)
def test_missing_or_altered_file_is_an_error_that_says_what_to_run(written, fixtures, damage, message):
    model, file, _ = written
    damage(model.with_name(file.file))
    with pytest.raises(ManifestError, match=message) as caught:
        open_normalizations(model, [decided(fixtures.make_decision, file)], SHAPE)
    assert "snl-calibrate --engine line.onnx --fixed-pose" in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {"normalization": np.ones((4, 4))},
        {"normalization": np.zeros(SHAPE, np.float32)},
        {"normalization": np.full(SHAPE, np.nan, np.float32)},
        {"normalization": np.ones((4, 4), np.float32)},
        {"normalization": np.array([{"a": 1}], object)},
        {"other": np.ones(SHAPE, np.float32)},
        {"normalization": np.ones(SHAPE, np.float32), "more": np.ones(1)},
    ],
)
def test_whole_file_that_holds_no_normalization_map_of_the_model_is_refused(tmp_path, fixtures, arrays):
    path = tmp_path / "line.normalization.bottle.npz"
    np.savez(path, **arrays)
    file = NormalizationFile(file=path.name, sha256=sha256_file(path), highest=1.0)
    with pytest.raises(ManifestError):
        open_normalizations(tmp_path / "line.onnx", [decided(fixtures.make_decision, file)], SHAPE)


@pytest.mark.parametrize("name", ["", "../x.npz", "/etc/passwd", "a\\b.npz", "a\n.npz"])
def test_normalization_file_is_a_plain_name_with_a_whole_hash(name):
    with pytest.raises(ManifestError, match="plain file name"):
        NormalizationFile(file=name, sha256="a" * 64, highest=1.0)
    with pytest.raises(ManifestError, match="hexadecimal"):
        NormalizationFile(file="x.npz", sha256="A" * 64, highest=1.0)


@pytest.mark.parametrize("highest", [0.0, -1.0, float("nan")])
def test_normalization_file_names_a_largest_normalization_above_0(highest):
    with pytest.raises(ManifestError, match="largest normalization"):
        NormalizationFile(file="x.npz", sha256="a" * 64, highest=highest)


def test_largest_normalization_that_is_not_the_files_is_refused(written, fixtures):
    """It bounds the guard band of an engine: too small a value would let an engine pass what its model would not."""
    model, file, _ = written
    with pytest.raises(ManifestError, match="largest normalization"):
        open_normalizations(model, [decided(fixtures.make_decision, dataclasses.replace(file, highest=file.highest / 2))], SHAPE)


def test_manifest_with_a_normalization_map_is_read_as_it_was_written(model_folder):
    file = NormalizationFile(file="line.normalization.bottle.0123456789ab.npz", sha256="ab" * 32, highest=1.0)
    model_folder.write(decisions=[{}, {"normalization": file}])
    plain, normalized = read_manifest(model_folder.manifest).decisions
    assert (plain.normalization, normalized.normalization) == (None, file)


def test_decision_without_a_normalization_map_is_written_as_before_there_were_any(model_folder):
    """Hashes and signatures of earlier manifests hold: the text has no such key."""
    model_folder.write()
    document = json.loads(model_folder.manifest.read_text())
    assert "normalization" not in document["decisions"][0]
    assert '"normalization"' not in canonical_text(read_manifest(model_folder.manifest))


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
def test_normalization_entry_of_another_form_is_refused(model_folder, value):
    model_folder.write()
    document = json.loads(model_folder.manifest.read_text())
    document["decisions"][0]["normalization"] = value
    model_folder.manifest.write_text(json.dumps(document))
    with pytest.raises(ManifestError):
        read_manifest(model_folder.manifest)


def test_hash_and_signature_cover_the_normalization_entry(model_folder):
    model_folder.write(decisions=[{"normalization": NormalizationFile(file="a.npz", sha256="a" * 64, highest=1.0)}])
    text = model_folder.manifest.read_text()
    for altered in (text.replace('"a.npz"', '"b.npz"'), text.replace("a" * 64, "b" * 64)):
        assert altered != text
        model_folder.manifest.write_text(altered)
        with pytest.raises(ManifestError, match="was altered"):
            read_manifest(model_folder.manifest)
    model_folder.manifest.write_text(text)
    manifest = read_manifest(model_folder.manifest)
    without = dataclasses.replace(manifest, decisions=[dataclasses.replace(manifest.decisions[0], normalization=None)])
    assert canonical_text(without) != canonical_text(manifest)
    write_manifest(model_folder.manifest, without)
    assert read_manifest(model_folder.manifest).self_sha256 != manifest.self_sha256
