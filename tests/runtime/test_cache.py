"""No cache that cannot be read or written ends anything: the engine, or what else was asked for, is there, and one warning says what it costs."""

import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from snl_runtime import cache as cache_module
from snl_runtime.backends.tensorrt import builder
from snl_runtime.backends.tensorrt import library as trt_api
from snl_runtime.backends.tensorrt.builder import EngineTarget, build_engine
from snl_runtime.backends.tensorrt.engine import Engine
from snl_runtime.backends.tensorrt.library import TensorRtLibrary
from snl_runtime.cache import Cache, default_cache_folder
from snl_runtime.errors import SinkError
from snl_runtime.gpu.kernels import compiler, loader

CODE = b"\x7fELF code for SM86"


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(cache_module, "_warned", set())
    monkeypatch.setattr(trt_api, "_loggers", {})


@pytest.fixture
def trt(full_tensorrt):
    return full_tensorrt


# ---- what is cached: each uses its cache and returns what the user gets --------------------------------------------------------------------


def make_engine(folder, tmp_path, trt, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"graph")
    target = EngineTarget(library=TensorRtLibrary("tensorrt", trt.__version__, trt), compute_capabilities=(87,))
    built = build_engine(tmp_path / "x.onnx", tmp_path / "x.trt", target, cache_folder=folder)
    assert built.entry.file == "x.trt"
    return (tmp_path / "x.trt").read_bytes()


def make_kernels(folder, tmp_path, trt, monkeypatch):
    monkeypatch.setattr(loader, "compile_kernels", lambda number: compiler.KernelImage(code=CODE, is_cubin=True, compute_capability=number))
    monkeypatch.setattr(loader, "nvrtc_version", lambda: (13, 2))
    return loader.cached_image(86, cache_folder=folder)


def make_runtime(folder, tmp_path, trt, monkeypatch):
    """Open an engine of TensorRT-RTX and close it, which keeps the kernels that the library compiled."""
    kept = SimpleNamespace(deserialize=lambda content: content == CODE, serialize=lambda: CODE)
    configuration = SimpleNamespace(
        set_execution_context_allocation_strategy=lambda how: None, create_runtime_cache=lambda: kept, set_runtime_cache=lambda given: True
    )
    trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    engine = trt.Runtime(SimpleNamespace()).deserialize_cuda_engine(b"plan")
    engine.create_runtime_config = lambda: configuration
    opened = Engine(TensorRtLibrary("tensorrt-rtx", "1.7", trt), None, engine, "x.trt", folder / "runtime.cache")
    opened.close()
    return CODE


MAKERS = {"engine and timings": (make_engine, b"plan of graph"), "kernels": (make_kernels, CODE), "runtime": (make_runtime, CODE)}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def made(request, tmp_path, trt, monkeypatch):
    """Use one of the caches in a folder and check what comes of it."""
    make, expected = request.param

    def run(folder):
        assert make(folder, tmp_path, trt, monkeypatch) == expected

    return run


# ---- what is wrong with the folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """A file system of 16 KiB, for root only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=16k", *options)), "tmpfs", str(folder)]
        if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount, and not everywhere")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def is_a_file(tmp_path, mounted):
    (tmp_path / "file").write_text("not a folder")
    return tmp_path / "file"


def below_a_file(tmp_path, mounted):
    return is_a_file(tmp_path, mounted) / "cache"


def read_only(tmp_path, mounted):
    if os.geteuid() == 0:
        return mounted("ro")
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    return folder


def full_disk(tmp_path, mounted):
    folder = mounted()
    with pytest.raises(OSError) as raised:
        (folder / "fill").write_bytes(bytes(1 << 20))
    assert raised.value.errno == errno.ENOSPC
    return folder


@pytest.mark.parametrize("broken", [is_a_file, below_a_file, read_only, full_disk])
def test_folder_that_takes_nothing_only_costs_time_and_is_named_once(broken, made, tmp_path, mounted, caplog):
    folder = broken(tmp_path, mounted)
    made(folder)
    made(folder)
    said = [record.getMessage() for record in caplog.records if record.name == "snl_runtime.cache"]
    assert [line for line in said if "cannot be written" in line] == said
    assert len(said) == 1
    assert said[0].startswith(f"the cache {folder} cannot be written (")
    assert said[0].endswith("name another folder with SNL_EDGE_CACHE")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "truncated", "altered", "a folder in its place"],
)
def test_damaged_entry_is_made_anew(damage, made, tmp_path, caplog):
    folder = tmp_path / "cache"
    made(folder)
    for path in list(folder.iterdir()):
        damage(path)
    made(folder)
    assert "damaged" in caplog.text or "cannot be read" in caplog.text


def test_entry_in_a_folder_that_is_only_read_is_used(tmp_path, mounted, trt, monkeypatch):
    folder = mounted()
    make_engine(folder, tmp_path, trt, monkeypatch)
    if subprocess.run(["mount", "-o", "remount,ro", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("this system does not mount anew")
    trt.refusing.add("build")
    assert make_engine(folder, tmp_path, trt, monkeypatch) == b"plan of graph"


def test_timings_that_the_library_refuses_do_not_end_the_build(tmp_path, trt, monkeypatch, caplog):
    for step in ("create_timing_cache", "set_timing_cache"):
        trt.refusing = {step}
        assert make_engine(tmp_path / step, tmp_path, trt, monkeypatch) == b"plan of graph"
    assert caplog.text.count("refused its timing cache") == 2


def test_engine_is_on_the_disk_before_its_cache_is_touched(tmp_path, trt, monkeypatch):
    seen = []
    monkeypatch.setattr(Cache, "write", lambda self, name, content: seen.append((tmp_path / "x.trt").read_bytes()))
    make_engine(tmp_path / "cache", tmp_path, trt, monkeypatch)
    assert seen == [b"plan of graph"] * 2  # the plan and the timings


def test_engine_that_cannot_be_written_is_refused_before_it_is_built(tmp_path, trt, monkeypatch):
    (tmp_path / "x.trt").mkdir()
    trt.refusing.add("build")
    with pytest.raises(SinkError, match=r"cannot write .*x\.trt"):
        make_engine(tmp_path / "cache", tmp_path, trt, monkeypatch)


def test_engine_that_cannot_be_written_any_more_is_not_built_again(tmp_path, trt, monkeypatch):
    build = builder._build_with_progress

    def build_while_the_folder_changes(*arguments):
        built = build(*arguments)
        (tmp_path / "x.trt").mkdir()
        return built

    with monkeypatch.context() as changing:
        changing.setattr(builder, "_build_with_progress", build_while_the_folder_changes)
        with pytest.raises(SinkError, match=r"cannot write .*x\.trt"):
            make_engine(tmp_path / "cache", tmp_path, trt, monkeypatch)
    (tmp_path / "x.trt").rmdir()
    trt.refusing.add("build")
    assert make_engine(tmp_path / "cache", tmp_path, trt, monkeypatch) == b"plan of graph"


def test_user_without_a_home_has_no_cache(monkeypatch):
    monkeypatch.delenv("SNL_EDGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache_folder() is None
    cache = Cache.at(None)
    cache.write("x", b"content")
    cache.evict("", 0)
    assert cache.read("x") is None


def test_folder_and_entries_are_the_users_own(tmp_path):
    Cache(tmp_path / "cache").write("x", b"content")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / "x").stat().st_mode & 0o777 == 0o600


def test_eviction_drops_what_was_not_used_for_longest(tmp_path):
    cache = Cache(tmp_path)
    for age, name in enumerate(("c.trt", "b.trt", "a.trt", "other")):
        cache.write(name, bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert cache.read("a.trt") == bytes(100)  # used now
    cache.evict(".trt", 2 * 164)  # two entries of 64 bytes of hash and 100 of content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.trt", "c.trt", "other"]
