"""``x.resume.pt``: what an interrupted training needs to go on, beside the checkpoint that it is writing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snl_runtime.errors import CheckpointError, ConfigError, DataError, SnlError
from snl_runtime.files import atomic_path
from snl_train.checkpoint import Checkpoint, dump_checkpoint, dump_tensors, read_tensors
from snl_train.config import TrainConfig, from_plain, to_plain

SCHEMA = 1
_KIND = "snl-edge training state"
_MAY_DIFFER = frozenset({"device", "preset", "data.cache_mib", "data.skip_unreadable", "steps", "epochs"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ResumePoint:
    """A training between two steps.

    Attributes:
        config: Resolved settings.
        data_fingerprint: Hash of the training images in their order.
        image_count: Number of training images.
        state: What ``Trainer.state_dict`` gave.
        started_at: When the training first began, ISO 8601, UTC.
    """

    config: TrainConfig
    data_fingerprint: str
    image_count: int
    state: Mapping[str, Any]
    started_at: str


def resume_path(checkpoint_path: Path) -> Path:
    """Return where the training state of a checkpoint lies: ``x.pt`` to ``x.resume.pt``."""
    return checkpoint_path.with_name(f"{checkpoint_path.stem}.resume.pt")


def write_resume_point(path: Path, point: ResumePoint) -> None:
    """Write the training state atomically.

    Raises:
        SinkError: If the file cannot be written.
    """
    stored = {
        "kind": _KIND,
        "schema": SCHEMA,
        "config": to_plain(point.config),
        "data_fingerprint": point.data_fingerprint,
        "image_count": point.image_count,
        "state": dict(point.state),
        "started_at": point.started_at,
    }
    with atomic_path(path) as temporary:
        dump_tensors(temporary, stored)


def save_unfinished(out: Path, checkpoint: Checkpoint, point: ResumePoint) -> None:
    """Write the checkpoint of an unfinished training and its state: neither, if one of them cannot be written.

    The state appears first: of a process that is killed between the two, the older checkpoint is left with the newer state, which continues it.

    Raises:
        SinkError: If a file cannot be written; both are then as they were.
    """
    with atomic_path(out) as temporary:
        dump_checkpoint(temporary, checkpoint)
        write_resume_point(resume_path(out), point)


def read_resume_point(path: Path) -> ResumePoint:
    """Return what ``write_resume_point`` wrote.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another schema.
    """
    if not path.exists():
        raise CheckpointError(f"there is nothing to resume: {path} does not exist; start without --resume")
    stored = read_tensors(path, kind=_KIND, schema=SCHEMA)
    try:
        return ResumePoint(
            config=from_plain(stored["config"]),
            data_fingerprint=str(stored["data_fingerprint"]),
            image_count=int(stored["image_count"]),
            state=dict(stored["state"]),
            started_at=str(stored["started_at"]),
        )
    except (KeyError, TypeError, ValueError, SnlError) as error:
        raise CheckpointError(f"{path} does not hold a whole training state ({error}); start without --resume") from error


def check_same_config(stored: TrainConfig, wanted: TrainConfig) -> None:
    """Refuse to continue a training with settings under which it would not have come here; the budget is left to :func:`check_same_budget`.

    Raises:
        ConfigError: Naming every setting that differs.
    """
    before, now = _flat(to_plain(stored)), _flat(to_plain(wanted))
    changed = [f"{name} was {before[name]} and is {now[name]}" for name in before if before[name] != now.get(name) and name not in _MAY_DIFFER]
    if changed:
        raise ConfigError(f"cannot resume with other settings: {', '.join(changed)}; give the same ones or start without --resume")


def check_same_budget(stored: TrainConfig, wanted: TrainConfig, *, batches_per_epoch: int) -> None:
    """Refuse to continue a training with another number of steps.

    More steps are allowed where nothing depends on their number: a constant learning rate and no average over the last steps.

    Raises:
        ConfigError: If the number differs and is not allowed.
    """
    before, now = stored.total_steps(batches_per_epoch), wanted.total_steps(batches_per_epoch)
    if now == before or (now > before and stored.optim.is_open_ended):
        return
    raise ConfigError(
        f"cannot resume with another budget: it was {before} steps and is {now}; give the same --steps or --epochs, more of them with a "
        "constant learning rate (optim.schedule=constant), or start without --resume"
    )


def check_same_data(point: ResumePoint, *, fingerprint: str, image_count: int, root: Path) -> None:
    """Refuse to continue a training on other images.

    Raises:
        DataError: If any training image, its class or the order differs.
    """
    if point.data_fingerprint != fingerprint:
        counts = f"{image_count} images now, {point.image_count} then"
        raise DataError(f"cannot resume: the training images in {root} are not those it began with ({counts}); start without --resume")


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
