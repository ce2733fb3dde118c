"""The rows of docs/effects.md about snl-run and snl-sign: what cannot be written is said first, and nothing is left half done."""

import contextlib
from pathlib import Path

import pytest

from snl_runtime.cli.run import main
from snl_runtime.cli.sign import main as sign


@pytest.mark.parametrize("fault", ["no folder", "a folder", "read-only"])
def test_record_file_that_cannot_be_written_is_refused_before_the_engine_is_rebuilt(parts, tmp_path, capsys, read_only, fault):
    out = tmp_path / "out"
    records = {"no folder": out / "gone" / "x.jsonl", "a folder": out, "read-only": out / "x.jsonl"}[fault]
    out.mkdir()
    if fault == "read-only":
        read_only(out)
    assert main(["--engine", str(tmp_path / "no.trt"), "--rebuild", "--images", str(parts), "--jsonl", str(records)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {records}" in line
    assert list(out.iterdir()) == []


def test_device_takes_records(engine, parts):
    assert main(["--engine", str(engine), "--images", str(parts), "--jsonl", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


@pytest.fixture
def key(tmp_path):
    pytest.importorskip("cryptography")
    folder = tmp_path / "keys"
    folder.mkdir()
    assert sign(["--make-key", str(folder / "key.pem")]) == 0
    return folder / "key.pem"


@pytest.mark.parametrize("fault", ["no folder", "read-only", "full disk"])
def test_key_that_cannot_be_written_leaves_neither_half_of_the_pair(tmp_path, capsys, read_only, file_size_limit, fault):
    pytest.importorskip("cryptography")
    out = tmp_path / "out"
    out.mkdir()
    path = {"no folder": out / "gone" / "key.pem"}.get(fault, out / "key.pem")
    if fault == "read-only":
        read_only(out)
    with file_size_limit(8) if fault == "full disk" else contextlib.nullcontext():
        assert sign(["--make-key", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("snl-sign: error: cannot write ")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("fault", ["read-only", "full disk"])
def test_signature_that_cannot_be_written_leaves_the_manifest_as_it_was(engine, key, capsys, read_only, file_size_limit, fault):
    folder = Path(engine).parent
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    if fault == "read-only":
        read_only(folder)
    with file_size_limit(8) if fault == "full disk" else contextlib.nullcontext():
        assert sign(["--engine", str(engine), "--key", str(key)]) == 2
    assert "cannot write " in capsys.readouterr().err.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
