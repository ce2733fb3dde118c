"""Where a figure comes from: commit, source, device, versions, command."""

import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_NOT_SCIENCE = ("cli/", "report", "plots_svg", "evaluation_table", "metrics_log")
_RUNTIME_SOURCES = ("images", "image_integrity", "preprocess", "opencv")


def source_sha256() -> str:
    """Return a hash of the sources that decide a figure: reading, preprocessing, networks, training, scoring, metrics.

    Two commits with the same hash give the same figures, so their runs may stand in one table; reports and command lines are left out.
    """
    package = ROOT / "snl_train"
    sources = [path for path in sorted(package.rglob("*.py")) if not path.relative_to(package).as_posix().startswith(_NOT_SCIENCE)]
    sources += [ROOT / "snl_runtime" / f"{name}.py" for name in _RUNTIME_SOURCES]
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
    from snl_train.training import package_versions

    return {
        "commit": commit_name,
        "source_sha256": source_sha256(),
        "device": device_name(device),
        "threads": threads,
        "versions": package_versions(),
        "command": command,
    }


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
