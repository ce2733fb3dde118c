"""A Ray cluster for as long as it is needed: an existing one, or one on this machine that reports to nobody and leaves nothing behind."""

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snl_runtime.errors import BackendError
from snl_runtime.fleet.packages import load_package

LOOPBACK = "127.0.0.1"
STORE_BYTES = 128 << 20
"""Shared memory of a local cluster. Images never go through it, only names of files and counts."""
_LONGEST_TEMPORARY = 20
"""Characters of the temporary folder that leave room for the names of Ray's sockets: a Unix socket's path holds 107."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # the driver says what failed; Ray's own processes would write between its lines
}


@contextlib.contextmanager
def ray_cluster(address: str | None, *, cpus: int | None = None) -> Iterator[Any]:
    """Yield the module ``ray``, connected.

    A local cluster listens on the loopback address only, has no dashboard, sends no usage statistics, and its folder of logs and sockets is removed.

    Args:
        address: ``host:port`` of a cluster, ``auto`` or ``ray://...``; None starts one here.
        cpus: Cores of a local cluster; None for all.

    Raises:
        BackendError: If no cluster can be had; also where Ray is not installed.
    """
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    ray = load_package("ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as opened:
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if address is None:
            folder = _temporary_folder()
            opened.callback(shutil.rmtree, folder, ignore_errors=True)
            local = {"include_dashboard": False, "object_store_memory": STORE_BYTES, "_temp_dir": str(folder), "_node_ip_address": LOOPBACK}
            common |= {**local, "num_cpus": cpus}
        try:
            with _signals_kept():
                ray.init(address=address or "local", **common)
        except Exception as error:
            where = "a local cluster cannot be started" if address is None else f"the cluster {address} cannot be reached"
            raise BackendError(f"{where}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
        opened.callback(ray.shutdown)
        yield ray


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give signals back to whom they belong: Ray takes SIGTERM for itself, and a service manager's stop would end in a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _temporary_folder() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="snl-ray-", dir=base if len(base) <= _LONGEST_TEMPORARY else "/tmp"))
