"""Where a figure comes from: commit, device, versions, command."""

import datetime
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Return the commit of the checkout, with ``+changes`` where sources differ from it, or ``unknown`` outside a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "snl_train", "snl_runtime", "benchmarks/accuracy")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def device_name(device: str) -> str:
    """Return the name of the processor or of the GPU that ``cpu`` or ``cuda`` means here."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU {_processor()}"


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as it can be repeated from the root of a checkout: absolute paths are written relative to it."""
    return shlex.join(["python", "-m", "benchmarks.accuracy", *(_relative(text) for text in arguments)])


def provenance(*, device: str, threads: int, command: str, commit_name: str) -> dict[str, Any]:
    """Return the facts that every record carries, as plain values."""
    from snl_train.saving import package_versions

    return {
        "commit": commit_name,
        "device": device_name(device),
        "threads": threads,
        "versions": package_versions(),
        "command": command,
    }


def origin(device: str, commit_name: str | None) -> dict[str, str]:
    """Return device, commit and day as columns of a table."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"device": device_name(device), "commit": commit_name or commit(), "date": today}


def _relative(text: str) -> str:
    return Path(os.path.relpath(text, ROOT)).as_posix() if Path(text).is_absolute() else text


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
