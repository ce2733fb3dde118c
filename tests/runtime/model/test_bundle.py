"""A model opens with what travels beside it only if every hash fits; every refusal says what to run."""

import dataclasses
import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from snl_runtime.errors import ManifestError, SignatureError
from snl_runtime.model.bundle import open_bundle
from snl_runtime.model.golden import GoldenSamples, write_golden
from snl_runtime.model.manifest import EngineEntry, Manifest, read_manifest, write_manifest
from snl_runtime.model.signing import sign_manifest

ONNX_BYTES, ENGINE_BYTES = b"graph" * 100, b"engine" * 100  # a bundle is opened by hash; nothing is loaded


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def golden_samples(size=8):
    maps = np.ones((2, size, size), np.float32)
    return GoldenSamples(images=np.zeros((2, size, size, 3), np.uint8), scores=np.ones(2, np.float32), maps=maps)


def make_bundle(folder, golden=None):
    (folder / "x.onnx").write_bytes(ONNX_BYTES)
    write_golden(folder / "x.golden.npz", golden or golden_samples())
    (folder / "x.trt").write_bytes(ENGINE_BYTES)
    manifest = Manifest(
        model_file="x.onnx",
        model_sha256=sha256(ONNX_BYTES),
        files={"x.onnx": sha256(ONNX_BYTES), "x.golden.npz": sha256((folder / "x.golden.npz").read_bytes())},
        input={"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "rgb", "size_hw": [8, 8], "batch": "dynamic", "max_batch": 4},
        outputs={},
        graph={"precision": "fp32"},
        classes=[],
        training={},
        training_image_sha256=[],
        held_out=[],
        created_at="2026-11-23T10:00:00+00:00",
    )
    engine = EngineEntry(
        file="x.trt",
        sha256=sha256(ENGINE_BYTES),
        library="tensorrt",
        library_version="10.7.0",
        compute_capability=["8.9"],
        precision="fp16",
        built_at="2026-11-23T10:00:00+00:00",
        parity=None,
    )
    write_manifest(folder / "x.json", manifest.with_engine(engine))
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_bundle(tmp_path)


def test_model_finds_manifest_and_golden_samples_beside_it(folder):
    bundle = open_bundle(folder / "x.onnx")
    assert (bundle.path, bundle.sha256, bundle.suffix) == (folder / "x.onnx", sha256(ONNX_BYTES), ".onnx")
    assert bundle.manifest == read_manifest(folder / "x.json")
    assert len(bundle.golden.images) == 2
    assert bundle.spec.size_hw == (8, 8)
    assert bundle.notes == ()
    assert bundle.engine is None
    assert bundle.golden_tolerance == 1e-3


def test_engine_finds_the_same_manifest_and_its_own_entry(folder):
    bundle = open_bundle(str(folder / "x.trt"))
    assert bundle.sha256 == sha256(ENGINE_BYTES)
    assert bundle.engine.library_version == "10.7.0"
    assert bundle.golden_tolerance == 2e-2


def test_engine_opens_without_its_onnx(folder):
    (folder / "x.onnx").unlink()
    assert open_bundle(folder / "x.trt").engine is not None


def test_lone_onnx_opens_with_a_note(folder):
    for name in ("x.json", "x.golden.npz"):
        (folder / name).unlink()
    bundle = open_bundle(folder / "x.onnx")
    assert (bundle.manifest, bundle.golden, bundle.spec) == (None, None, None)
    assert "every verdict is ERROR" in bundle.notes[0]


def test_missing_golden_samples_open_with_a_note(folder):
    (folder / "x.golden.npz").rename(folder / "moved.golden.npz")
    bundle = open_bundle(folder / "x.onnx")
    assert bundle.golden is None
    assert "x.golden.npz is missing: without the golden samples every verdict is ERROR" in bundle.notes[0]


def test_files_that_were_renamed_together_still_open(folder):
    for suffix in (".onnx", ".json", ".golden.npz"):
        (folder / f"x{suffix}").rename(folder / f"bottle{suffix}")
    assert open_bundle(folder / "bottle.onnx").golden is not None


@pytest.mark.parametrize("name", ["x.onnx", "x.trt"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"", lambda data: b"X" + data[1:]])
def test_altered_model_file_is_refused_and_the_message_says_what_to_run(folder, name, damage):
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ManifestError, match=rf"{name} has sha256 .*(snl-export --ckpt|snl-run --engine x\.trt --rebuild)"):
        open_bundle(folder / name)


def test_altered_or_foreign_golden_samples_are_refused(folder):
    data = (folder / "x.golden.npz").read_bytes()
    (folder / "x.golden.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ManifestError, match=r"x\.golden\.npz has sha256 .*snl-export"):
        open_bundle(folder / "x.onnx")


def test_golden_samples_that_the_manifest_does_not_list_are_refused(folder):
    manifest = read_manifest(folder / "x.json")
    listed = {name: value for name, value in manifest.files.items() if name == "x.onnx"}
    write_manifest(folder / "x.json", dataclasses.replace(manifest, files=listed))
    with pytest.raises(ManifestError, match="records none"):
        open_bundle(folder / "x.onnx")


def test_golden_samples_of_another_size_are_refused(tmp_path):
    make_bundle(tmp_path, golden_samples(size=4))
    with pytest.raises(ManifestError, match=r"samples of \(4, 4\) pixels, the model takes \(8, 8\)"):
        open_bundle(tmp_path / "x.onnx")


def test_altered_onnx_beside_an_engine_is_refused(folder):
    (folder / "x.onnx").write_bytes(b"another graph")
    with pytest.raises(ManifestError, match=r"x\.onnx has sha256"):
        open_bundle(folder / "x.trt")


def test_altered_manifest_is_refused(folder):
    path = folder / "x.json"
    path.write_text(path.read_text().replace('"precision":"fp32"', '"precision":"int8"'))
    with pytest.raises(ManifestError, match=r"x\.json: was altered"):
        open_bundle(folder / "x.onnx")


def test_engine_without_a_manifest_is_refused(folder):
    (folder / "x.json").unlink()
    with pytest.raises(ManifestError, match=r"x\.json is missing and an engine opens only with its manifest; copy it"):
        open_bundle(folder / "x.trt")


@pytest.mark.parametrize("name", ["none.onnx", "none.trt", "nul\0byte.onnx"])
def test_model_that_cannot_be_read_is_a_manifest_error(folder, name):
    with pytest.raises(ManifestError, match="cannot read"):
        open_bundle(folder / name if name else folder)


def test_key_accepts_the_signed_manifest_and_refuses_any_other(folder):
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(SignatureError, match="not signed"):
        open_bundle(folder / "x.onnx", public_key=public)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    sign_manifest(folder / "x.json", pem)
    assert open_bundle(folder / "x.onnx", public_key=public).manifest.signature is not None
    (folder / "x.json").unlink()
    with pytest.raises(ManifestError, match="a public key was given"):
        open_bundle(folder / "x.onnx", public_key=public)
