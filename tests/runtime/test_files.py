"""A reader sees the old file or the whole new one, and every failure to write is a SinkError that names the file."""

import hashlib
import os

import pytest

from snl_runtime.errors import SinkError
from snl_runtime.files import atomic_path, atomic_write_bytes, atomic_write_text, check_writable, sha256_bytes, sha256_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_old_content_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    atomic_write_text(target, "old")
    atomic_write_text(target, "neu\nä")
    assert target.read_bytes() == b"neu\n\xc3\xa4"
    assert names(tmp_path) == ["x.json"]


def test_failure_inside_the_block_keeps_the_old_content_and_removes_the_temporary_file(tmp_path):
    target = tmp_path / "x.onnx"
    target.write_bytes(b"old")

    def fail_half_way():
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["x.onnx"]


def test_temporary_file_lies_beside_the_target_hidden_and_with_its_suffix(tmp_path):
    with atomic_path(tmp_path / "x.golden.npz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"1")


def test_nothing_written_is_an_error_and_not_an_empty_file(tmp_path):
    with pytest.raises(SinkError, match="x.bin"), atomic_path(tmp_path / "x.bin"):
        pass
    assert names(tmp_path) == []


def test_missing_folder_is_a_sink_error_that_names_the_file(tmp_path):
    with pytest.raises(SinkError, match=r"cannot write .*x\.json: No such file or directory"):
        atomic_write_bytes(tmp_path / "missing" / "x.json", b"1")


def test_full_disk_is_a_sink_error_and_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    target.write_bytes(b"old")

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(SinkError, match="No space left on device"):
        atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["x.json"]


def test_target_that_is_a_folder_is_a_sink_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(SinkError, match="cannot write"):
        atomic_write_bytes(tmp_path / "x", b"1")


def test_new_file_has_the_permissions_that_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        atomic_write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 9000  # more than two chunks
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


# What is probed before the work


@pytest.mark.parametrize("append", [False, True])
def test_writable_path_is_accepted_without_a_trace(tmp_path, append):
    check_writable(tmp_path / "x", append=append)
    assert names(tmp_path) == []
    (tmp_path / "x").write_bytes(b"old")
    check_writable(tmp_path / "x", append=append)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize(("path", "reason"), [("gone/x", "there is no folder"), ("file/x", "there is no folder"), ("folder", "it is a folder")])
def test_path_that_cannot_be_written_is_one_line_that_names_it(tmp_path, append, path, reason):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkError, match=f"cannot write {tmp_path / path}: {reason}"):
        check_writable(tmp_path / path, append=append)


def test_read_only_folder_is_found_out_and_not_believed_from_its_permissions(tmp_path, read_only):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_bytes(b"old")
    read_only(folder)
    with pytest.raises(SinkError, match="cannot write"):
        check_writable(folder / "x")


def test_full_disk_is_found_out_although_an_empty_file_fits(tmp_path, file_size_limit):
    with file_size_limit(100), pytest.raises(SinkError, match="File too large"):
        check_writable(tmp_path / "x")
    assert names(tmp_path) == []


def test_device_takes_what_is_appended_and_is_not_replaced_by_a_file():
    check_writable("/dev/null", append=True)
    with pytest.raises(SinkError, match="a device or a pipe"):
        check_writable("/dev/null")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write to every file")
def test_write_protected_file_is_not_replaced(tmp_path):
    (tmp_path / "x").touch(mode=0o444)
    with pytest.raises(SinkError, match="write-protected"):
        check_writable(tmp_path / "x")


def test_name_that_no_file_system_takes_is_one_line(tmp_path):
    with pytest.raises(SinkError, match="cannot write"):
        check_writable(tmp_path / ("x" * 300))
