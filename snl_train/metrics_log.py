"""``x.metrics.jsonl``: how a training went, one JSON object per line."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from snl_runtime.errors import SinkError
from snl_runtime.files import atomic_write_text


def metrics_path(checkpoint_path: Path) -> Path:
    """Return where the log of a training lies: ``x.pt`` to ``x.metrics.jsonl``."""
    return checkpoint_path.with_name(f"{checkpoint_path.stem}.metrics.jsonl")


class MetricsLog:
    """Averages losses over a few steps and appends them as a line.

    A line holds ``step`` and ``epoch`` (both count what is done), ``learning_rate``, ``images_per_s`` since the line before, ``seconds`` since this
    process began to train, and ``loss``: the mean of each term since the line before. ``validation_loss`` is there where early
    stopping measured it: the loss of good images that are not learned from.

    Args:
        path: Lines of later steps than ``steps_done`` are removed from an existing file: a resumed training writes them again. None writes nothing,
            where another process of the training does.
        steps_done: Where the training starts; 0 begins a new file.
        steps_per_epoch: For ``epoch``.

    Raises:
        SinkError: If the file cannot be written.
    """

    def __init__(self, path: Path | None, *, steps_done: int, steps_per_epoch: int) -> None:
        self._path = path or Path(os.devnull)
        self._steps_per_epoch = steps_per_epoch
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0
        self._started_s = self._line_s = time.monotonic()
        self.last_losses: dict[str, float] = {}
        if path is not None:
            kept = _lines_up_to(path, steps_done) if steps_done else []
            atomic_write_text(path, "".join(line + "\n" for line in kept))
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise SinkError(f"cannot write {self._path}: {error.strerror or error}") from error

    def add(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Take in one step; the losses stay on their device."""
        for name, loss in losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss
        self._steps += 1
        self._images += images

    def write(self, step: int, learning_rate: float, *, validation_loss: float | None = None) -> None:
        """Append a line about the steps since the last one; does nothing if there were none.

        Raises:
            SinkError: If the file cannot be written.
        """
        if not self._steps:
            return
        self.last_losses = {name: total.item() / self._steps for name, total in self._sums.items()}  # waits for the GPU; only on logged steps
        now_s = time.monotonic()
        line: dict[str, object] = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 4),
            "learning_rate": learning_rate,
            "images_per_s": round(self._images / max(now_s - self._line_s, 1e-9), 2),
            "seconds": round(now_s - self._started_s, 2),
            "loss": {name: value if math.isfinite(value) else None for name, value in self.last_losses.items()},
        }
        if validation_loss is not None:
            line["validation_loss"] = validation_loss
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise SinkError(f"cannot write {self._path}: {error.strerror or error}; check the free space") from error
        self._sums, self._steps, self._images, self._line_s = {}, 0, 0, now_s

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()


def _lines_up_to(path: Path, steps_done: int) -> list[str]:
    """Return the whole lines of an earlier run; a line torn by a crash ends the list."""
    kept: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return kept
    for line in lines:
        try:
            if json.loads(line)["step"] > steps_done:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    return kept
