"""Ed25519 signatures of manifests: with a key, a manifest whose hashes were all made to fit again is still refused.

The public key comes from outside the bundle (a flag, an argument); the copy inside the manifest only makes the message clearer.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from snl_runtime.errors import SignatureError
from snl_runtime.manifest import Manifest, canonical_text, update_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "ed25519"
PublicKey: TypeAlias = bytes | str | os.PathLike[str]
"""A PEM text, 64 hexadecimal digits, or the path of a PEM file."""

_MISSING = "signatures need the package cryptography: pip install 'snl-edge[sign]'"


def sign_manifest(path: str | os.PathLike[str], private_key_pem: bytes) -> Manifest:
    """Sign the manifest file in place and return it; every later change of the manifest needs a new signature.

    Raises:
        ManifestError: If the manifest cannot be read.
        SignatureError: If the key is no unencrypted Ed25519 private key in PEM form, or ``cryptography`` is missing.
        SinkError: If the file cannot be written.
    """
    key = _load_private_key(private_key_pem)

    def sign(manifest: Manifest) -> Manifest:
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


def _load_private_key(pem: bytes) -> "Ed25519PrivateKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise SignatureError(_MISSING) from error
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("the private key is no unencrypted PEM file; make one: openssl genpkey -algorithm ed25519 -out key.pem") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"the private key must be Ed25519, got {type(key).__name__}; make one: openssl genpkey -algorithm ed25519 -out key.pem")
    return key


def _load_public_key(public_key: PublicKey) -> "Ed25519PublicKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise SignatureError(_MISSING) from error
    material = _key_material(public_key)
    try:
        if b"-----BEGIN" not in material:
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(material.decode("ascii").strip()))
        key = load_pem_public_key(material)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("the public key must be a PEM text or 64 hexadecimal digits; make one: openssl pkey -in key.pem -pubout") from error
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
