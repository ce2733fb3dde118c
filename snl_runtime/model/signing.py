"""Ed25519 signatures of manifests: with a key, a manifest whose hashes were all made to fit again is still refused.

The public key comes from outside the bundle (a flag, an argument); the copy inside the manifest only makes the message clearer.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from snl_runtime.errors import ManifestError, SignatureError, SinkError
from snl_runtime.files import write_new_file
from snl_runtime.model.manifest import Manifest, canonical_text, update_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "ed25519"
PublicKey: TypeAlias = bytes | str | os.PathLike[str]
"""A PEM text, 64 hexadecimal digits, or the path of a PEM file."""

_MISSING = "signatures need the package cryptography: pip install 'snl-edge[sign]'"


def make_key_pair(path: Path) -> tuple[Path, Path]:
    """Write a new private key, readable by its owner only, and its public key beside it; return both paths.

    Args:
        path: Where the private key goes, e.g. ``key.pem``; the public key becomes ``key.pub.pem``.

    Raises:
        SignatureError: If ``cryptography`` is missing.
        SinkError: If one of the files exists, because whatever was signed with the old key would be lost, or cannot be written.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise SignatureError(_MISSING) from error
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    public_path = path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
    _write_new(public_path, public, 0o644)
    try:
        _write_new(path, private, 0o600)
    except BaseException:
        public_path.unlink()
        raise
    return path, public_path


def sign_manifest(path: str | os.PathLike[str], private_key_pem: bytes, *, expected: Manifest | None = None) -> Manifest:
    """Sign the manifest file in place and return it; every later change of the manifest needs a new signature.

    Args:
        path: The manifest.
        private_key_pem: The key.
        expected: What was checked before; another one that lies there now is not signed. None signs what lies there.

    Raises:
        ManifestError: If the manifest cannot be read, or is not the expected one.
        SignatureError: If the key is no unencrypted Ed25519 private key in PEM form, or ``cryptography`` is missing.
        SinkError: If the file cannot be written.
    """
    key = _load_private_key(private_key_pem)

    def sign(manifest: Manifest) -> Manifest:
        if expected is not None and manifest != expected:
            raise ManifestError(f"{path} was changed while its files were checked; sign it again")
        signature = {
            "algorithm": ALGORITHM,
            "public_key": key.public_key().public_bytes_raw().hex(),
            "value": key.sign(canonical_text(manifest).encode("utf-8")).hex(),
        }
        return dataclasses.replace(manifest, signature=signature)

    return update_manifest(path, sign)


def verify_manifest(manifest: Manifest, public_key: PublicKey) -> None:
    """Return if the manifest carries a valid signature of this key.

    Raises:
        SignatureError: If it is unsigned, signed with another key, changed since, or the key cannot be used.
    """
    key = _load_public_key(public_key)
    signature = manifest.signature
    if signature is None:
        raise SignatureError("the manifest is not signed, a public key was given; sign it with the private key of the release")
    if signature.get("algorithm") != ALGORITHM:
        raise SignatureError(f"the manifest is signed with '{signature.get('algorithm')}', expected {ALGORITHM}; sign it again")
    expected = key.public_bytes_raw().hex()
    if signature.get("public_key") != expected:
        raise SignatureError(f"the manifest is signed with the key {str(signature.get('public_key'))[:12]}, expected {expected[:12]}")
    _verify(key, signature.get("value", ""), canonical_text(manifest))


def _verify(key: "Ed25519PublicKey", value_hex: str, text: str) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(value_hex), text.encode("utf-8"))
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("the manifest was changed after it was signed; copy it again from the release or sign it again") from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        write_new_file(path, content, mode=mode)
    except FileExistsError as error:
        raise SinkError(f"{path} exists and is not overwritten: stations that trust this key would refuse new models; name another file") from error
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror or error}; check the folder, its permissions and the free space") from error


def _load_private_key(pem: bytes) -> "Ed25519PrivateKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise SignatureError(_MISSING) from error
    if b"-----BEGIN PUBLIC KEY" in pem:
        raise SignatureError("a public key was given where the private key signs; give the file that snl-sign --make-key named first")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("the private key is no unencrypted PEM file; make one: snl-sign --make-key key.pem") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"the private key must be Ed25519, got {type(key).__name__}; make one: snl-sign --make-key key.pem")
    return key


def _load_public_key(public_key: PublicKey) -> "Ed25519PublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise SignatureError(_MISSING) from error
    material = _key_material(public_key)
    if b"PRIVATE KEY-----" in material:
        raise SignatureError("a private key was given where the public key is expected; give key.pub.pem, and keep the private key off the stations")
    try:
        if b"-----BEGIN" not in material:
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(material.decode("ascii").strip()))
        key = load_pem_public_key(material)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("the public key must be a PEM text or 64 hexadecimal digits; snl-sign --make-key key.pem makes key.pub.pem") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"the public key must be Ed25519, got {type(key).__name__}")
    return key


def _key_material(public_key: PublicKey) -> bytes:
    if isinstance(public_key, bytes):
        return public_key
    text = os.fspath(public_key)
    is_path = isinstance(public_key, os.PathLike) or ("-----BEGIN" not in text and text.lower().endswith((".pem", ".pub", ".key")))
    if not is_path:
        return text.encode("utf-8")
    try:
        return Path(text).read_bytes()
    except (OSError, ValueError) as error:
        raise SignatureError(f"cannot read the public key {text}: {getattr(error, 'strerror', None) or error}") from error
