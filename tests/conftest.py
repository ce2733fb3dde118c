"""What holds for every test."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests on a GPU take models and images, see tests/gpu/conftest.py; pytest reads options from here only."""
    group = parser.getgroup("snl-edge")
    group.addoption("--gpu-model", action="append", default=[], help="exported, calibrated model for -m gpu, at most two (default: made here)")
    group.addoption("--gpu-images", help="folder of images for --gpu-model, in one folder per product")


def pytest_configure() -> None:
    """Let Ctrl-C work in tests and in processes they start: background jobs of a shell begin with SIGINT ignored, and their children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Let no file of this process grow beyond a size, which a program sees as it sees a full disk: each write fails, whatever was probed before."""
    resource = pytest.importorskip("resource", reason="needs the limits of a POSIX system")

    @contextlib.contextmanager
    def limit(size_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Make a folder read-only until the test ends: by permissions, or as root, whom they do not hold back, by mounting it so."""
    if sys.platform == "win32":
        pytest.skip("needs the permissions of a POSIX system")
    with contextlib.ExitStack() as undone:

        def make(folder: Path) -> None:
            if os.geteuid() != 0:
                undone.callback(folder.chmod, folder.stat().st_mode)
                folder.chmod(0o555)
                return
            if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
                pytest.skip("this root may not mount")
            undone.callback(subprocess.run, ["umount", folder], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

        yield make
