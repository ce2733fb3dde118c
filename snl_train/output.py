"""What lies at ``--out`` before a training begins, and who may write there.

A training owns three files: the checkpoint ``x.pt``, its log ``x.metrics.jsonl`` and, until it is complete, its state ``x.resume.pt``. One that
replaces another sets the other's log and state aside, as ``x.replaced.metrics.jsonl`` and ``x.replaced.resume.pt``, until its own first save is
whole: it cannot be resumed into the other one, and the other one can still be resumed, as ``--out x.replaced.pt``.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from snl_runtime.errors import CheckpointError, ConfigError, SinkError
from snl_runtime.files import check_writable, exclusive_lock
from snl_train.checkpoint import Checkpoint, load_checkpoint
from snl_train.config import TrainConfig
from snl_train.metrics_log import metrics_path
from snl_train.resume import read_resume_point, resume_path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def claim_output(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold ``out`` against other trainings once it is sure that writing there loses nothing that the user did not give up.

    Args:
        out: Where the checkpoint will go.
        resume: The training that lies there is continued.
        overwrite: What lies there may be replaced.

    Raises:
        SinkError: If a file could not be written there, or another training writes there.
        ConfigError: If a training lies there and neither was said.
        CheckpointError: If a file lies there that no training wrote, or there is nothing to resume.
    """
    for path in (out, resume_path(out), metrics_path(out)):
        check_writable(path)
    with exclusive_lock(out, what="training", blocking=False):
        if resume:
            _require_resumable(out)
        else:
            _require_free(out, overwrite=overwrite)
        yield


def stored_config(out: Path) -> TrainConfig:
    """Return the settings of the training at ``out``, which ``--resume`` continues or, if it is complete, leaves as it is.

    Raises:
        CheckpointError: If there is none, or its files are damaged.
    """
    return load_checkpoint(out).config if is_finished(out) else read_resume_point(resume_path(out)).config


def is_finished(out: Path) -> bool:
    """Return whether a complete training lies at ``out`` with no state of another one beside it."""
    return out.exists() and not resume_path(out).exists() and load_checkpoint(out).unfinished is None


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[None]:
    """Train anew at ``out``: if the block raises before its first save, what lay there is as it was.

    Raises:
        ConfigError: If a training has to be set aside and another one lies there.
        SinkError: If a file cannot be moved.
    """
    if replaced_path(out).exists():
        if out.exists() or resume_path(out).exists():
            _require_room_aside(out)
        yield
        return
    try:
        _set_aside(out)
        yield
    except BaseException:  # Ctrl-C included
        _move_side_files(replaced_path(out), out)  # after a save there is nothing left to move
        raise


def drop_replaced(out: Path) -> None:
    """Remove what was set aside, once the new checkpoint is whole; not what has become a training of its own."""
    if not replaced_path(out).exists():
        _remove(*_side_files(replaced_path(out)))


def drop_state(out: Path) -> None:
    """Remove the training state beside a checkpoint that is complete and whole."""
    _remove(resume_path(out))


def replaced_path(out: Path) -> Path:
    """Return under which ``--out`` a training that is being replaced can be resumed: ``x.pt`` to ``x.replaced.pt``."""
    return out.with_name(f"{out.stem}.replaced{out.suffix}")


def _require_room_aside(out: Path) -> None:
    aside = replaced_path(out)
    if aside.exists():
        raise ConfigError(f"{aside} is a training of its own, and where the one at {out} would be set aside; move it away or name another --out")


def _set_aside(out: Path) -> None:
    aside = replaced_path(out)
    if not resume_path(out).exists() and any(path.exists() for path in _side_files(aside)):
        return  # a replacement was killed before its first save: what it set aside is the older training's, the log here its own
    _move_side_files(out, aside)


def _side_files(out: Path) -> tuple[Path, Path]:
    return resume_path(out), metrics_path(out)


def _remove(*paths: Path) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # the work is done and saved
            logger.warning("cannot remove %s, which is of no more use: %s", path, error.strerror or error)


def _move_side_files(source: Path, target: Path) -> None:
    for path, goal in zip(_side_files(source), _side_files(target), strict=True):
        try:
            with contextlib.suppress(FileNotFoundError):
                path.replace(goal)
        except OSError as error:
            raise SinkError(f"cannot move {path} to {goal}: {error.strerror or error}; check the folder and its permissions") from error


def _require_resumable(out: Path) -> None:
    aside = replaced_path(out)
    if resume_path(out).exists():
        _load_existing(out)
    elif any(path.exists() for path in _side_files(aside)):
        kept = f", or continue the older one: --out {aside} --resume" if resume_path(aside).exists() else ""
        raise CheckpointError(
            f"there is nothing to resume: the training that was to replace {out} ended before its first save; start it again with --overwrite{kept}"
        )
    elif not out.exists():
        raise CheckpointError(f"there is nothing to resume: {resume_path(out)} does not exist; start without --resume")
    elif not is_finished(out):
        raise CheckpointError(f"{_described(out)}, but {resume_path(out)} does not exist; copy it from where it was trained, or use --overwrite")


def _require_free(out: Path, *, overwrite: bool) -> None:
    found = _described(out)
    if found is None:
        return
    if overwrite:
        _require_room_aside(out)
        return
    also = "continue it with --resume, " if resume_path(out).exists() else ""
    raise ConfigError(f"{found}; {also}replace it with --overwrite, or name another --out")


def _described(out: Path) -> str | None:
    """Return what lies at ``out`` in a clause; None if there is no training."""
    checkpoint = _load_existing(out)
    state = resume_path(out)
    if checkpoint is None:
        return f"{state} holds {_described_state(state)}" if state.exists() else None
    facts = checkpoint.provenance
    steps = f"step {facts.get('steps_done')} of {facts.get('total_steps')}, saved {facts.get('saved_at')}"
    counted = f"{len(checkpoint.classes)} product{'' if len(checkpoint.classes) == 1 else 's'} ({', '.join(checkpoint.classes)})"
    what = "a finished model" if checkpoint.unfinished is None else "an unfinished training"
    other = f", and {state.name} {_described_state(state)}" if checkpoint.unfinished is None and state.exists() else ""
    return f"{out} holds {what} of {counted}, {steps}{other}"


def _described_state(path: Path) -> str:
    try:
        point = read_resume_point(path)
    except CheckpointError:
        return "a training state that cannot be read"
    return f"an unfinished training on {point.image_count} images, step {point.state.get('steps_done')}, begun {point.started_at}"


def _load_existing(out: Path) -> Checkpoint | None:
    """Return the checkpoint at ``out``, None if there is no file."""
    if not out.exists():
        return None
    try:
        return load_checkpoint(out)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it is not replaced: move it away or name another --out") from error
