"""How a session of ONNX Runtime is opened; every session of this SDK, and every import of the library, goes through here."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from snl_runtime.backends.base import one_line, path_or_bytes
from snl_runtime.errors import BackendError, BackendUnavailableError, ConfigError

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_LOG_NOTHING = 4  # errors reach the caller as exceptions; the library would print them as well
_GRAPH_OF_RUN = "gpu_graph_id"
_NO_GRAPH = -1


def load_onnxruntime() -> Any:
    """Return the module ``onnxruntime``; every import of it goes through here.

    Releases for Linux from 1.32 on collect telemetry: opening a model writes a device number and a database of events below the user's cache folder.
    It is switched off unless the environment says otherwise; the variable must be set before the import.

    Raises:
        BackendUnavailableError: If the package is missing or its libraries do not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"backend 'onnxruntime' needs the package onnxruntime: pip install 'snl-edge[cpu]', on a GPU 'snl-edge[gpu]' ({one_line(error)})"
        ) from error
    return onnxruntime


def open_session(
    model_path: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None, stream: int | None = None, capture: bool = False
) -> Any:
    """Return an ``InferenceSession`` of an ``.onnx`` file on one device.

    On a GPU the library's process-wide log is silenced, too: its CUDA code logs there, past the session's own level, and in color.

    Args:
        model_path: The ``.onnx`` file.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads for one call; None for the physical cores this process may use.
        stream: CUDA stream that the work goes onto; None for one of the session's own. Only on a GPU.
        capture: Let runs record CUDA graphs, see :func:`graph_run_options`. Only on a GPU, and only for bound inputs and outputs.

    Raises:
        BackendUnavailableError: If the package or its CUDA provider is missing, or the GPU cannot be used.
        BackendError: If the file cannot be loaded; with ``capture`` also if a node has no kernel on the GPU.
        ConfigError: If ``device`` or ``threads`` means nothing here.
    """
    library = load_onnxruntime()
    providers, options = _providers(library, device, stream, capture=capture), _session_options(library, threads)
    if device != "cpu":
        _prepare_cuda(library)
    try:
        session = library.InferenceSession(path_or_bytes(Path(model_path)), sess_options=options, providers=providers)
    except Exception as error:  # the library's exception classes share no base
        remedy = "" if capture else "; export the model again: snl-export --ckpt x.pt"
        raise BackendError(f"onnxruntime cannot load {Path(model_path)} on {device}: {one_line(error)}{remedy}") from error
    if device != "cpu" and session.get_providers()[0] != CUDA:  # it falls back to the CPU silently
        raise BackendUnavailableError(
            f"onnxruntime could not start device '{device}'; check the driver, install CUDA with pip install 'snl-edge[gpu]', or use device cpu"
        )
    return session


def device_index(device: str) -> int:
    """Return N of ``cuda:N``, 0 of ``cuda``.

    Raises:
        ConfigError: If it is neither.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ConfigError(f"backend 'onnxruntime' has no device '{device}'; use cpu, cuda or cuda:N")
    return int(index or "0")


def graph_run_options(graph: int | None) -> Any:
    """Return the ``RunOptions`` for a run of a session that captures.

    Args:
        graph: Number above 0 of the CUDA graph that the run records, once the library has made the runs that it wants before, or replays. A graph
            holds for one shape, for the addresses that were bound when it was recorded, and for the thread that recorded it; the library checks
            none of the three. None for a run as in a session that does not capture.
    """
    options = load_onnxruntime().RunOptions()
    options.add_run_config_entry(_GRAPH_OF_RUN, str(_NO_GRAPH if graph is None else graph))
    return options


def cuda_options(index: int, stream: int | None = None, *, capture: bool = False) -> dict[str, str]:
    """Return the options of the CUDA provider, the same for every session on a GPU but for where it works; the library takes text only.

    Args:
        index: Which GPU.
        stream: Handle of the stream to work on; None for one of the session's own.
        capture: Let runs record CUDA graphs.
    """
    options = {
        "device_id": str(index),
        # With TF32, the library's default from Ampere on, maps differ from the CPU's by more than golden samples may: the model would be refused.
        "use_tf32": "0",
        # EXHAUSTIVE, the default, times several algorithms at every start and takes the quickest, so that a score could depend on the start.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles the arena at every growth; sizes are fixed here, so it would only hold memory that other processes need.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if stream is not None:
        options["user_compute_stream"] = str(stream)
    if capture:
        options["enable_cuda_graph"] = "1"
    return options


def _providers(library: Any, device: str, stream: int | None, *, capture: bool) -> list[Any]:
    if device == "cpu":
        return [CPU]
    index = device_index(device)
    if CUDA not in library.get_available_providers():
        raise BackendUnavailableError("device 'cuda' needs the package onnxruntime-gpu instead of onnxruntime: pip install 'snl-edge[gpu]'")
    return [(CUDA, cuda_options(index, stream, capture=capture)), CPU]


def _prepare_cuda(library: Any) -> None:
    """Silence the library's own log, and load the CUDA libraries that pip installed beside it, where its loader would not look for them."""
    library.set_default_logger_severity(_LOG_NOTHING)
    preload = getattr(library, "preload_dlls", None)  # builds for Jetson may be older than 1.21
    if preload is None:
        return
    # It prints what it did not find, and standard output belongs to records. What is really missing, the session says.
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(Exception):
        preload()


def _session_options(library: Any, threads: int | None) -> Any:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads or _default_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_NOTHING
    # Idle threads that spin take a core from the camera; at 10 frames/s: 0.55 instead of 0.76 CPU seconds per second, the same latency.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _default_threads() -> int:
    """Return 0, which lets the library count physical cores, unless the process is pinned to some of them."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    usable = len(os.sched_getaffinity(0))
    return 0 if usable == os.cpu_count() else usable
