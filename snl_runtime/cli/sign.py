"""``snl-sign``: make a key pair, sign a model's manifest, or check its signature and files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snl_runtime.cli.command import EXIT_OK, CommandParser, need_packages, run_command
from snl_runtime.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from snl_runtime.model.bundle import CheckedFiles
    from snl_runtime.model.manifest import Manifest

PROGRAM = "snl-sign"
EXAMPLE = """
snl-sign --make-key key.pem
snl-sign --engine line.onnx --key key.pem
snl-sign --engine line.onnx --public-key key.pub.pem
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _run(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Sign a model's manifest with an Ed25519 key after comparing every file with its hash, or check the signature and the files.",
        example=EXAMPLE,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--make-key", metavar="FILE", type=Path, help="write a new private key there and its public key as FILE's name + .pub.pem")
    task.add_argument("--engine", metavar="FILE", type=Path, help="model: x.onnx or x.trt; x.json beside it is signed, or checked with --public-key")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key", metavar="FILE", type=Path, help="private key (PEM) that signs")
    key.add_argument("--public-key", metavar="FILE", type=Path, help="public key (PEM) that must have signed; nothing is written")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    need_packages(("cryptography",), what=PROGRAM, extra="sign")
    if arguments.make_key is not None:
        if arguments.key is not None or arguments.public_key is not None:
            raise ConfigError("--make-key makes both keys; leave --key and --public-key out")
        return _make_key(arguments.make_key)
    if arguments.key is not None:
        return _sign(arguments.engine, arguments.key)
    if arguments.public_key is not None:
        return _verify(arguments.engine, arguments.public_key)
    raise ConfigError("--engine needs --key FILE to sign, or --public-key FILE to check the signature; make both: snl-sign --make-key key.pem")


def _make_key(path: Path) -> int:
    from snl_runtime.model.signing import make_key_pair

    private, public = make_key_pair(path)
    print(f"{private} is the private key: keep it where models are released; {public} is the public key: give it to the stations")
    return EXIT_OK


def _sign(model: Path, key: Path) -> int:
    from snl_runtime.model.bundle import check_listed_files
    from snl_runtime.model.manifest import manifest_path
    from snl_runtime.model.signing import sign_manifest

    try:
        private_key_pem = key.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the private key {key}: {error.strerror or error}; make one: snl-sign --make-key {key}") from error
    manifest = _manifest_of(model, None)
    checked = check_listed_files(model, manifest)
    signed = sign_manifest(manifest_path(model), private_key_pem, expected=manifest)
    print(f"{manifest_path(model)} is signed with {_key_name(signed)}; {_files_text(checked)}")
    return EXIT_OK


def _verify(model: Path, public_key: Path) -> int:
    from snl_runtime.model.bundle import check_listed_files
    from snl_runtime.model.manifest import manifest_path

    manifest = _manifest_of(model, public_key)
    checked = check_listed_files(model, manifest)
    print(f"{manifest_path(model)} carries a valid signature of {_key_name(manifest)}; {_files_text(checked)}")
    return EXIT_OK


def _manifest_of(model: Path, public_key: Path | None) -> "Manifest":
    from snl_runtime.model.bundle import open_bundle
    from snl_runtime.model.manifest import manifest_path

    manifest = open_bundle(model, public_key=public_key).manifest
    if manifest is None:
        raise ManifestError(f"{manifest_path(model)} is missing: there is nothing to sign; export the model with snl-export")
    return manifest


def _key_name(manifest: "Manifest") -> str:
    return f"the key {(manifest.signature or {}).get('public_key', '')[:12]}"


def _files_text(checked: "CheckedFiles") -> str:
    missing = f", not here: {', '.join(checked.missing)}" if checked.missing else ""
    return f"{len(checked.matching)} files have the hashes it records{missing}"


if __name__ == "__main__":
    sys.exit(main())
