"""With a key, a manifest that is unsigned, signed with another key, or changed and re-hashed is refused."""

import dataclasses
import json
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from snl_runtime.errors import ManifestError, SignatureError
from snl_runtime.model.manifest import Manifest, read_manifest, write_manifest
from snl_runtime.model.signing import sign_manifest, verify_manifest

SHA = "a" * 64


def private_pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def key():
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def path(tmp_path):
    manifest = Manifest(
        model_file="x.onnx",
        model_sha256=SHA,
        files={"x.onnx": SHA},
        input={"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "rgb", "size_hw": [8, 8], "batch": 1, "max_batch": 1},
        outputs={},
        graph={"opset": 18},
        classes=["bottle"],
        training={},
        training_image_sha256=[],
        held_out=[],
        created_at="2026-11-23T10:00:00+00:00",
    )
    write_manifest(tmp_path / "x.json", manifest)
    return tmp_path / "x.json"


def test_signed_manifest_verifies_with_every_form_of_the_public_key(path, key):
    sign_manifest(path, private_pem(key))
    manifest = read_manifest(path)
    pem_file = path.with_name("release.pem")
    pem_file.write_bytes(public_pem(key))
    for form in (public_pem(key), public_pem(key).decode(), key.public_key().public_bytes_raw().hex(), pem_file, str(pem_file)):
        verify_manifest(manifest, form)


def test_signature_is_ed25519_over_the_canonical_text(path, key):
    signed = sign_manifest(path, private_pem(key))
    document = json.loads(path.read_text())
    text = json.dumps({k: v for k, v in document.items() if k not in ("self_sha256", "signature")}, sort_keys=True, separators=(",", ":"))
    assert signed.signature == {
        "algorithm": "ed25519",
        "public_key": key.public_key().public_bytes_raw().hex(),
        "value": key.sign(text.encode()).hex(),
    }


def test_unsigned_manifest_is_refused(path, key):
    with pytest.raises(SignatureError, match="not signed"):
        verify_manifest(read_manifest(path), public_pem(key))


def test_manifest_changed_and_hashed_again_is_refused(path, key):
    signed = sign_manifest(path, private_pem(key))
    write_manifest(path, dataclasses.replace(signed, classes=["screw"]))  # hashes fit, the old signature is kept
    with pytest.raises(SignatureError, match="changed after it was signed"):
        verify_manifest(read_manifest(path), public_pem(key))


def test_manifest_signed_with_another_key_is_refused(path, key):
    sign_manifest(path, private_pem(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(SignatureError, match="signed with the key"):
        verify_manifest(read_manifest(path), public_pem(key))


@pytest.mark.parametrize(
    "changes", [{"value": "00" * 64}, {"value": "no hex"}, {"value": ""}, {"algorithm": "rsa"}, {"algorithm": "none"}, {"public_key": ""}]
)
def test_forged_signature_fields_are_refused(path, key, changes):
    signed = sign_manifest(path, private_pem(key))
    forged = dataclasses.replace(signed, signature={**signed.signature, **changes})
    with pytest.raises(SignatureError):
        verify_manifest(forged, public_pem(key))


def test_signature_without_any_field_is_refused(path, key):
    with pytest.raises(SignatureError):
        verify_manifest(dataclasses.replace(read_manifest(path), signature={}), public_pem(key))


@pytest.mark.parametrize(
    "public_key", [b"", b"abc", "zz" * 32, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "none.pem", b"\xff" * 32]
)
def test_unusable_public_key_is_a_signature_error(path, key, public_key):
    sign_manifest(path, private_pem(key))
    with pytest.raises(SignatureError, match="public key"):
        verify_manifest(read_manifest(path), public_key)


def test_key_of_another_kind_is_refused_on_both_sides(path, key):
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(SignatureError, match="must be Ed25519"):
        sign_manifest(path, private_pem(other))
    with pytest.raises(SignatureError, match="no unencrypted PEM file"):
        sign_manifest(path, b"no key")
    with pytest.raises(SignatureError, match="must be Ed25519"):
        verify_manifest(read_manifest(path), public_pem(other))


def test_altered_manifest_is_not_signed(path, key):
    path.write_text(path.read_text().replace("bottle", "screw"))
    with pytest.raises(ManifestError, match="altered"):
        sign_manifest(path, private_pem(key))


def test_missing_package_refuses_rather_than_skips_the_check(path, key, monkeypatch):
    manifest = sign_manifest(path, private_pem(key))
    pem = public_pem(key)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(SignatureError, match=r"pip install 'snl-edge\[sign\]'"):
        verify_manifest(manifest, pem)
