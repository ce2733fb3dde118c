"""The rows of docs/effects.md about snl-run: a record file that cannot be written is said before a model is opened or an engine built."""

from pathlib import Path

import pytest

from snl_runtime.cli.run import main


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
