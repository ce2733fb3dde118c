"""How long a new process takes to its first verdict, and how much memory it has needed by then."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snl_runtime.bench.memory import ProcessMemory
from snl_runtime.errors import DataError
from snl_runtime.station.config import ModelConfig
from snl_runtime.types import Image

_PROGRAM = "snl_runtime.bench.first_verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What one process needed until its first verdict.

    Attributes:
        elapsed_s: From its start, the interpreter's own included, to the verdict.
        processor_s: Time of its threads on processors, which other work hardly changes.
        memory: At the verdict; None where the system does not state it.
    """

    elapsed_s: float
    processor_s: float
    memory: ProcessMemory | None


def time_start(config: ModelConfig, frame: Image, *, product: str | None = None) -> Start:
    """Let a process of its own import the runtime, open the model (golden samples included where it has some) and judge one frame.

    Args:
        config: The model; ``rebuild`` is ignored, an engine must fit.
        frame: (H, W, 3) uint8 or uint16 RGB.
        product: Product of the frame; None for the detector's own.

    Raises:
        DataError: If the process gives no verdict, or one without a score, whose time would mean nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame_file = Path(folder) / "frame.npy"
        np.save(frame_file, frame)
        elapsed_s, line = _first_line([sys.executable, "-m", _PROGRAM, json.dumps(_asked(config, frame_file, product))], config.file)
    said = json.loads(line)
    if said["reason"] is not None:
        raise DataError(f"{config.file} cannot score a frame in a new process, so its start means nothing: {said['reason']}")
    memory = None if said["memory"] is None else ProcessMemory(resident_bytes=said["memory"][0], peak_bytes=said["memory"][1])
    return Start(elapsed_s=elapsed_s, processor_s=said["processor_s"], memory=memory)


def _asked(config: ModelConfig, frame_file: Path, product: str | None) -> dict[str, Any]:
    options = {name: getattr(config, name) for name in ("backend", "device", "threads", "timeout_ms", "cuda_graphs")}
    return {"model": config.file, "options": options, "public_key_file": config.public_key_file, "frame": str(frame_file), "product": product}


def _first_line(command: list[str], model: str) -> tuple[float, str]:
    """Return after how many seconds a process wrote its first line, and the line; it has ended by then."""
    with tempfile.TemporaryFile() as messages:  # a pipe that nobody reads could fill up and stop it
        started_s = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                elapsed_s = time.perf_counter() - started_s
                process.wait()
            except BaseException:
                process.kill()
                raise
        if line and process.returncode == 0:
            return elapsed_s, line
        messages.seek(0)
        said = messages.read().decode("utf-8", "replace").strip().splitlines() or [f"exit status {process.returncode}"]
    raise DataError(f"{model} gives no verdict in a new process: {said[-1]}")
