"""snl-sign makes keys, signs what it checked, and says in one line whether a bundle is what was signed."""

import dataclasses
import sys

import numpy as np
import pytest

from snl_runtime.cli.run import main as run_main
from snl_runtime.cli.sign import main
from snl_runtime.files import sha256_file
from snl_runtime.images.files import write_image
from snl_runtime.model.manifest import EngineEntry, read_manifest, update_manifest, write_manifest


@pytest.fixture
def folder(fixtures, tmp_path):
    """A model with an engine and a normalization map beside it."""
    (tmp_path / "model").mkdir()
    folder = fixtures.ModelFolder(tmp_path / "model")
    folder.write()
    folder.give_normalization(np.full((fixtures.SIZE, fixtures.SIZE), 1.0, np.float32))
    engine = folder.model.with_suffix(".trt")
    engine.write_bytes(b"a plan")
    entry = EngineEntry(
        file=engine.name,
        sha256=sha256_file(engine),
        library="tensorrt",
        library_version="10.3.0",
        compute_capability=["8.9"],
        precision="fp16",
        built_at="2024-05-01T12:00:00+00:00",
        parity=None,
    )
    update_manifest(folder.manifest, lambda manifest: manifest.with_engine(entry))
    return folder


@pytest.fixture
def keys(tmp_path, capsys):
    assert main(["--make-key", str(tmp_path / "key.pem")]) == 0
    capsys.readouterr()
    return tmp_path / "key.pem", tmp_path / "key.pub.pem"


@pytest.fixture
def call(capsys):
    """Run snl-sign and return its status and its one line."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        (line,) = (printed.out + printed.err).splitlines()
        assert bool(printed.out) == (status == 0)
        return status, line

    return run


def sign(folder, keys, call):
    status, line = call("--engine", folder.model, "--key", keys[0])
    assert status == 0, line
    return line


def verify(folder, keys, call):
    return call("--engine", folder.model, "--public-key", keys[1])


# ---- keys ------------------------------------------------------------------------------------------------------------------------------------


def test_keys_are_a_private_file_of_the_owner_and_a_public_one(tmp_path, call):
    status, line = call("--make-key", tmp_path / "key.pem")
    assert status == 0
    assert line.startswith(f"{tmp_path / 'key.pem'} is the private key")
    assert f"{tmp_path / 'key.pub.pem'} is the public key" in line
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert "BEGIN PRIVATE KEY" in (tmp_path / "key.pem").read_text()
    assert "BEGIN PUBLIC KEY" in (tmp_path / "key.pub.pem").read_text()


@pytest.mark.parametrize("existing", ["key.pem", "key.pub.pem"])
def test_key_that_exists_is_not_overwritten_and_no_half_pair_is_left(tmp_path, call, existing):
    (tmp_path / existing).write_text("precious")
    status, line = call("--make-key", tmp_path / "key.pem")
    assert status == 2
    assert f"{tmp_path / existing} exists and is not overwritten" in line
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_key_in_a_folder_that_is_not_there_is_one_line(tmp_path, call):
    status, line = call("--make-key", tmp_path / "missing" / "key.pem")
    assert (status, "No such file or directory" in line) == (2, True)


# ---- the loop --------------------------------------------------------------------------------------------------------------------------------


def test_signed_bundle_verifies_and_runs_with_the_public_key(folder, keys, call, fixtures, tmp_path):
    status, line = verify(folder, keys, call)
    assert (status, "not signed" in line) == (2, True)
    line = sign(folder, keys, call)
    assert line.startswith(f"{folder.manifest} is signed with the key {read_manifest(folder.manifest).signature['public_key'][:12]}; 4 files have")
    status, line = verify(folder, keys, call)
    assert (status, "carries a valid signature of the key" in line) == (0, True)
    (tmp_path / "parts").mkdir()
    write_image(tmp_path / "parts" / "1.png", np.ascontiguousarray(fixtures.good_frame(1)[:, :, ::-1]))
    arguments = ["--engine", str(folder.model), "--images", str(tmp_path / "parts"), "--fail-on-reject", "--public-key", str(keys[1])]
    assert run_main(arguments) == 0


def test_bundle_that_was_changed_after_signing_verifies_and_runs_no_more(folder, keys, call, tmp_path, capsys):
    sign(folder, keys, call)
    signed = read_manifest(folder.manifest)
    loose = dataclasses.replace(signed.decisions[0], pass_threshold=1e3, reject_threshold=1e3)
    write_manifest(folder.manifest, dataclasses.replace(signed, decisions=[loose]))  # by hand: hashed again, the old signature kept
    status, line = verify(folder, keys, call)
    assert (status, "changed after it was signed" in line) == (2, True)
    assert run_main(["--engine", str(folder.model), "--images", str(tmp_path), "--public-key", str(keys[1])]) == 2
    assert "changed after it was signed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["line.onnx", "line.golden.npz", "line.trt", "normalization"])
def test_tampered_file_is_named_and_neither_signed_nor_verified(folder, keys, call, name):
    sign(folder, keys, call)
    path = next(folder.model.parent.glob("*.normalization.*")) if name == "normalization" else folder.model.with_name(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    before = folder.manifest.read_bytes()
    for status, line in (verify(folder, keys, call), call("--engine", folder.model, "--key", keys[0])):
        assert status == 2
        assert f"{path} has sha256" in line
    assert folder.manifest.read_bytes() == before


def test_files_that_are_not_here_are_listed(folder, keys, call):
    folder.model.with_suffix(".trt").unlink()
    assert sign(folder, keys, call).endswith("3 files have the hashes it records, not here: line.trt")


def test_files_that_were_renamed_together_are_found(folder, keys, call):
    sign(folder, keys, call)
    for path in list(folder.model.parent.glob("line.*")):
        path.rename(path.with_name(path.name.replace("line.", "press4.", 1)))
    status, line = call("--engine", folder.model.with_name("press4.onnx"), "--public-key", keys[1])
    assert (status, "4 files have" in line) == (0, True), line


def test_another_key_is_refused(folder, keys, call, tmp_path):
    sign(folder, keys, call)
    call("--make-key", tmp_path / "other.pem")
    status, line = call("--engine", folder.model, "--public-key", tmp_path / "other.pub.pem")
    assert (status, "is signed with the key" in line) == (2, True)
    assert call("--engine", folder.model, "--key", tmp_path / "other.pem")[0] == 0
    assert call("--engine", folder.model, "--public-key", tmp_path / "other.pub.pem")[0] == 0


def test_manifest_that_changes_while_its_files_are_checked_is_not_signed(folder, keys, call, monkeypatch):
    from snl_runtime.model import bundle

    real = bundle.check_listed_files

    def while_another_calibrates(model, manifest):
        update_manifest(folder.manifest, lambda listed: listed.with_decision(listed.decisions[0]))
        return real(model, manifest)

    monkeypatch.setattr(bundle, "check_listed_files", while_another_calibrates)
    status, line = call("--engine", folder.model, "--key", keys[0])
    assert (status, "changed while its files were checked" in line) == (2, True)
    assert read_manifest(folder.manifest).signature is None


# ---- mix-ups ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "MODEL"], "needs --key FILE to sign, or --public-key FILE"),
        (["--make-key", "new.pem", "--key", "PRIVATE"], "--make-key makes both keys"),
        (["--engine", "MODEL", "--key", "PUBLIC"], "a public key was given where the private key signs"),
        (["--engine", "MODEL", "--public-key", "PRIVATE"], "a private key was given where the public key is expected"),
        (
            ["--engine", "MODEL", "--key", "none.pem"],
            "cannot read the private key none.pem: No such file or directory; make one: snl-sign",
        ),
        (["--engine", "MODEL", "--public-key", "none.pem"], "cannot read the public key none.pem"),
        (["--engine", "none.onnx", "--key", "PRIVATE"], "cannot read none.onnx"),
        (["--engine", "MODEL", "--key", "MODEL"], "no unencrypted PEM file; make one: snl-sign --make-key key.pem"),
    ],
)
def test_mix_up_is_one_line_that_says_what_to_do(folder, keys, call, arguments, words):
    named = {"MODEL": folder.model, "PRIVATE": keys[0], "PUBLIC": keys[1]}
    before = folder.manifest.read_bytes()
    status, line = call(*(named.get(argument, argument) for argument in arguments))
    assert (status, words in line) == (2, True), line
    assert folder.manifest.read_bytes() == before


def test_lone_model_has_nothing_to_sign(folder, keys, call):
    folder.manifest.unlink()
    status, line = call("--engine", folder.model, "--key", keys[0])
    assert (status, "is missing: there is nothing to sign; export the model" in line) == (2, True)


@pytest.mark.parametrize("arguments", [["--key", "PRIVATE"], ["--public-key", "PUBLIC"], ["--make-key"]])
def test_without_cryptography_the_extra_is_named(folder, keys, call, monkeypatch, tmp_path, arguments):
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    named = {"PRIVATE": keys[0], "PUBLIC": keys[1]}
    given = [named.get(argument, argument) for argument in arguments]
    status, line = call(*given, tmp_path / "new.pem") if arguments == ["--make-key"] else call("--engine", folder.model, *given)
    assert (status, "pip install 'snl-edge[sign]'" in line) == (2, True)
