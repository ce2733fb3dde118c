"""The manifest has one writer: whoever changes it, from any process, loses nothing that another added."""

import ast
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from snl_runtime.errors import ManifestError, SinkError
from snl_runtime.files import exclusive_lock
from snl_runtime.model.manifest import read_manifest, replace_manifest, update_manifest
from snl_runtime.model.signing import sign_manifest

ROOT = Path(__file__).parents[3]
UPDATES_EACH = 500

HAMMER = """
import dataclasses, sys
from snl_runtime.model.manifest import update_manifest
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for index in range(count):
    update_manifest(path, lambda manifest: dataclasses.replace(manifest, classes=[*manifest.classes, f"{name}{index}"]))
"""

HOLDER = """
import sys
from snl_runtime.files import exclusive_lock
with exclusive_lock(sys.argv[1], what="test", blocking=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(model_folder):
    model_folder.write()
    return model_folder.manifest


@pytest.fixture
def holder(path):
    """Another process that holds the manifest's lock until it is told or killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=30)


def with_class(name):
    return lambda manifest: dataclasses.replace(manifest, classes=[*manifest.classes, name])


def test_two_processes_that_hammer_it_for_a_thousand_updates_lose_none(path):
    before = read_manifest(path)
    workers = [subprocess.Popen([sys.executable, "-c", HAMMER, str(path), name, str(UPDATES_EACH)]) for name in "ab"]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    after = read_manifest(path)
    added = after.classes[len(before.classes) :]
    assert len(added) == 2 * UPDATES_EACH
    for name in "ab":  # each in its own order
        assert [each for each in added if each[0] == name] == [f"{name}{index}" for index in range(UPDATES_EACH)]
    assert dataclasses.replace(after, classes=before.classes, self_sha256="") == dataclasses.replace(before, self_sha256="")


def test_change_is_given_what_lies_on_the_disk_and_its_result_is_returned_as_written(path):
    seen = []
    update_manifest(path, with_class("screw"))
    written = update_manifest(path, lambda manifest: seen.append(manifest) or with_class("nut")(manifest))
    assert seen[0].classes[-1] == "screw"
    assert written == read_manifest(path)
    assert written.classes[-2:] == ["screw", "nut"]


def test_writer_waits_for_the_holder_of_the_lock(path, holder):
    done = threading.Event()
    writer = threading.Thread(target=lambda: (update_manifest(path, with_class("late")), done.set()))
    writer.start()
    assert not done.wait(timeout=0.3)
    holder.communicate("", timeout=30)  # ends its input, and with that the block
    assert done.wait(timeout=30)
    writer.join(timeout=30)
    assert read_manifest(path).classes[-1] == "late"


def test_killed_holder_leaves_no_lock_behind(path, holder):
    with pytest.raises(SinkError, match=r"line\.json is in use by another training; wait"), exclusive_lock(path, what="training", blocking=False):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    assert path.with_name(".line.json.lock").exists()
    with exclusive_lock(path, what="training", blocking=False):
        pass
    assert not path.with_name(".line.json.lock").exists()
    assert update_manifest(path, with_class("next")).classes[-1] == "next"


def test_lock_excludes_threads_of_one_process_too(path):
    with exclusive_lock(path, what="training", blocking=False):
        refused = []

        def try_it():
            try:
                with exclusive_lock(path, what="training", blocking=False):
                    pass
            except SinkError as error:
                refused.append(error)

        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join(timeout=30)
        assert refused


def test_lock_is_free_after_an_error_inside(path):
    with pytest.raises(KeyError), exclusive_lock(path, what="training", blocking=False):
        raise KeyError
    with exclusive_lock(path, what="training", blocking=False):
        pass


def test_lock_file_that_another_user_left_is_enough(path):
    path.with_name(".line.json.lock").touch(0o444)
    with exclusive_lock(path, what="training", blocking=False):
        pass


@pytest.mark.parametrize("change", [lambda manifest: 1 / 0, lambda manifest: dataclasses.replace(manifest, classes=[float("nan")])])
def test_change_that_fails_leaves_the_manifest_as_it_was(path, change):
    before = path.read_bytes()
    with pytest.raises((ZeroDivisionError, ManifestError)):
        update_manifest(path, change)
    assert path.read_bytes() == before


def test_folder_that_cannot_be_written_is_one_clear_error(path):
    """Read-only for a user; for root, who may write anywhere, a folder where the lock file's name is taken by another folder."""
    if os.geteuid() == 0:
        path.with_name(".line.json.lock").mkdir()
    else:
        path.parent.chmod(0o555)
    try:
        with pytest.raises(SinkError, match=r"^cannot write .*line\.json: .*; check the folder, its permissions") as raised:
            update_manifest(path, with_class("screw"))
        assert "\n" not in str(raised.value)
    finally:
        path.parent.chmod(0o755)


def test_missing_manifest_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(ManifestError, match=r"cannot read .*x\.json"):
        update_manifest(tmp_path / "x.json", with_class("screw"))
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_manifest_that_is_not_there_writes_it(path):
    manifest = read_manifest(path)
    other = path.with_name("other.json")
    assert replace_manifest(other, lambda current: current or manifest) == manifest == read_manifest(other)


@pytest.mark.parametrize(
    "change",
    [with_class("screw"), lambda manifest: manifest.with_decision(manifest.decisions[0])],
    ids=["signature kept by the change", "signature dropped by the change"],
)
def test_lost_signature_is_reported_in_one_warning(path, caplog, change):
    sign_manifest(path, Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert update_manifest(path, lambda manifest: manifest).signature is not None
    assert caplog.records == []
    assert update_manifest(path, change).signature is None
    (record,) = caplog.records
    assert record.getMessage() == (
        "line.json loses its signature, which does not cover the change; sign it again: snl-sign --engine line.onnx --key key.pem"
    )
    update_manifest(path, with_class("nut"))
    assert len(caplog.records) == 1


def test_no_code_path_writes_a_manifest_but_the_writer_itself_and_the_staging_of_an_export():
    writers = set()
    for folder in ("snl_runtime", "snl_train", "export", "calibration", "benchmarks", "examples"):
        for source in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
            if any(getattr(node, "id", None) == "write_manifest" or getattr(node, "attr", None) == "write_manifest" for node in nodes):
                writers.add(source.relative_to(ROOT).as_posix())
    assert writers == {"snl_runtime/model/manifest.py", "export/bundle_writer.py"}
