"""One process's work: train a run with the product's own training, measure it with its own evaluation, write one JSON."""

import datetime
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from benchmarks.accuracy.data import Dataset, fingerprint, load_dataset
from benchmarks.accuracy.protocol import Protocol, Run, train_config
from benchmarks.accuracy.provenance import provenance
from benchmarks.accuracy.records import SCHEMA, RunFiles, read_records, read_slices, run_files, write_record, write_slices
from benchmarks.accuracy.refit import fitted_anew, training_settings
from snl_runtime.errors import ConfigError, DataError, TrainingDivergedError
from snl_runtime.files import sha256_file
from snl_runtime.progress import Progress
from snl_train.checkpoint import load_checkpoint, save_checkpoint
from snl_train.config import Device, TrainConfig, to_plain
from snl_train.data.dataset import TrainingData
from snl_train.evaluation import CheckpointScorer, Evaluation, measure, score_samples
from snl_train.measures import Bootstrap
from snl_train.resume import resume_path
from snl_train.training import train
from snl_train.training_result import TrainingResult, finished_result

Outcome: TypeAlias = Literal["finished", "stopped"]

SAVE_RESERVE_S = 15.0
"""Time kept for writing the training state before a budget ends; a tenth of the budget if that is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process needs to know to do any run of a protocol; travels to worker processes."""

    protocol: Protocol
    data: Path
    out: Path
    classes: tuple[str, ...]
    weights: str | None = None
    device: Device = "cpu"
    threads: int = 1
    deadline_s: float = math.inf
    """On ``time.monotonic``'s clock, which the processes of a machine share."""
    reserve_s: float = SAVE_RESERVE_S
    command: str = ""
    commit: str = "unknown"


class OutOfTimeError(Exception):
    """The budget ended in the middle of a measurement, which starts again in the next slice."""


@dataclass(slots=True)
class _Clock:
    job: Job
    is_asked_to_stop: Callable[[], bool]

    def is_training_over(self) -> bool:
        """Whether a training must save now."""
        return self.is_asked_to_stop() or time.monotonic() >= self.job.deadline_s - self.job.reserve_s

    def check(self, *_: object) -> None:
        """Leave a measurement when the time is up."""
        if self.is_asked_to_stop() or time.monotonic() >= self.job.deadline_s:
            raise OutOfTimeError

    def has(self, seconds: float) -> bool:
        """Whether so much time is left."""
        return time.monotonic() + seconds < self.job.deadline_s


@dataclass
class Session:
    """Does runs one after the other; images are read at the first one and kept.

    Args:
        job: What is the same for all runs.
        is_asked_to_stop: Asked after every step and every batch.
    """

    job: Job
    is_asked_to_stop: Callable[[], bool] = lambda: False
    _seconds_per_image: dict[int, float] = field(default_factory=dict)

    @cached_property
    def dataset(self) -> Dataset:
        """The images, read once."""
        protocol = self.job.protocol
        sizes = protocol.image_sizes
        cache_mib = max(self._config(name, sizes[0], 0).data.cache_mib for name in protocol.variants)
        return load_dataset(self.job.data, self.job.classes, sizes, cache_mib=cache_mib, threads=self.job.threads)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Provenance of what this process does."""
        job = self.job
        facts = provenance(device=job.device, threads=job.threads, command=job.command, commit_name=job.commit)
        return {**facts, "teacher_weights": _weights_facts(job.weights)}

    def perform(self, run: Run) -> Outcome:
        """Train or go on training, then measure and write the record.

        Raises:
            ConfigError: If a stopped training has other settings, or measuring takes longer than a whole budget.
            DataError: If an image cannot be used.
        """
        job = self.job
        clock = _Clock(job, self.is_asked_to_stop)
        if clock.is_training_over():
            return "stopped"
        files = run_files(job.out, run)
        files.folder.mkdir(parents=True, exist_ok=True)
        data = self.dataset.training_data(run.classes, self._config(run.variant, run.image_size, run.seed))
        try:
            result = self._trained_before(run, data, files) or self._train(run, data, files, clock)
        except TrainingDivergedError as error:
            self._finish(run, data, files, {"failure": str(error), "evaluation": None, "training": {}})
            return "finished"
        if not result.is_complete:
            return "stopped"
        return self._measure(run, data, files, clock, result)

    def _config(self, variant: str, image_size: int, seed: int) -> TrainConfig:
        job = self.job
        return train_config(job.protocol, variant, image_size=image_size, seed=seed, weights=job.weights, device=job.device)

    def _trained_before(self, run: Run, data: TrainingData, files: RunFiles) -> TrainingResult | None:
        """Return the finished training that lies there without a record, if it is this run's but for what is fitted after a training.

        Its checkpoint is written anew with this run's score and whitening: these are compared without training again.
        """
        if resume_path(files.checkpoint).exists() or not files.checkpoint.exists() or not read_slices(files.slices):
            return None
        stored = load_checkpoint(files.checkpoint)
        config = self._config(run.variant, run.image_size, run.seed)
        before, now = (training_settings(recorded_config(one)) for one in (stored.config, config))
        is_same_data = stored.training_image_sha256 == sorted({sample.pixel_sha256 for sample in data.samples})
        if before != now or not is_same_data or not stored.provenance.get("is_complete"):
            return None
        if recorded_config(stored.config) != recorded_config(config):
            save_checkpoint(files.checkpoint, fitted_anew(stored, config, data))
        return finished_result(stored, files.checkpoint)

    def _train(self, run: Run, data: TrainingData, files: RunFiles, clock: _Clock) -> TrainingResult:
        is_resumed = resume_path(files.checkpoint).exists()
        slices = [*(read_slices(files.slices) if is_resumed else []), {**self.facts, "started_at": timestamp(), "to_step": None, "seconds": None}]
        write_slices(files.slices, slices)  # before the work: a killed slice has left its mark in the weights too
        config = self._config(run.variant, run.image_size, run.seed)
        try:
            result = train(config, data, files.checkpoint, resume=is_resumed, should_stop=clock.is_training_over, progress=Progress)
        except ConfigError as error:
            hint = f"; to begin this run anew, remove {resume_path(files.checkpoint)}" if is_resumed else ""
            raise ConfigError(f"{run.name}: {error}{hint}") from error
        slices[-1] |= {
            "to_step": result.steps_done,
            "seconds": round(result.seconds, 2),
            "images_per_s": round(result.images_per_s, 2),
            "losses": {name: value if math.isfinite(value) else None for name, value in result.losses.items()},
        }
        write_slices(files.slices, slices)
        return result

    def _measure(self, run: Run, data: TrainingData, files: RunFiles, clock: _Clock, result: TrainingResult) -> Outcome:
        samples = self.dataset.test_samples(run.classes)
        estimate_s = 1.2 * len(samples) * self._known_seconds_per_image(run.image_size)
        is_fresh = result.images_per_s == 0  # nothing was trained in this slice, so waiting for the next one gains nothing
        if not is_fresh and not clock.has(estimate_s):
            return "stopped"
        started_s = time.monotonic()
        try:
            evaluation = self._evaluate(files, samples, clock)
        except OutOfTimeError:
            if is_fresh and not self.is_asked_to_stop():
                raise ConfigError(f"{run.name}: measuring takes longer than the whole budget; give a larger --budget-s") from None
            return "stopped"
        seconds = time.monotonic() - started_s
        self._seconds_per_image[run.image_size] = seconds / len(samples)
        training = {"epochs_done": result.epochs_done, "steps_done": result.steps_done}
        facts = {"training": training, "evaluation": evaluation.to_plain(relative_to=self.dataset.index.root), "evaluation_s": round(seconds, 2)}
        self._finish(run, data, files, facts)
        return "finished"

    def _evaluate(self, files: RunFiles, samples: list[Any], clock: _Clock) -> Evaluation:
        protocol = self.job.protocol
        checkpoint = load_checkpoint(files.checkpoint)
        scorer, tiles = CheckpointScorer(checkpoint, self.job.device), checkpoint.config.data.tiles
        images, left_out = score_samples(scorer, samples, batch_size=protocol.batch_size, tiles=tiles, on_images=clock.check)
        return measure(images, scorer.size_hw, bootstrap=Bootstrap(resamples=protocol.resamples), left_out=left_out, on_group=clock.check)

    def _finish(self, run: Run, data: TrainingData, files: RunFiles, results: Mapping[str, Any]) -> None:
        """Write the record and remove what only an unfinished run needs."""
        record = {
            **run_facts(run),
            "source": "snl-edge",
            "config": recorded_config(self._config(run.variant, run.image_size, run.seed)),
            "data": self._data_facts(run, data),
            **results,
            "provenance": {**self.facts, "finished_at": timestamp()},
            "slices": read_slices(files.slices),
        }
        write_record(files.record, record)
        resume_path(files.checkpoint).unlink(missing_ok=True)
        if not self.job.protocol.keep_checkpoints:
            files.checkpoint.unlink(missing_ok=True)

    def _data_facts(self, run: Run, data: TrainingData) -> dict[str, Any]:
        test = self.dataset.test_samples(run.classes)
        return {
            "name": self.dataset.index.root.name,
            "train_sha256": fingerprint(data.samples),
            "test_sha256": {name: fingerprint([one for one in test if one.class_name == name]) for name in run.classes},
            "training_images": {name: sum(one.class_name == name for one in data.samples) for name in run.classes},
        }

    def _known_seconds_per_image(self, image_size: int) -> float:
        """Return how long measuring took before, or 0 where that is not known yet."""
        if image_size not in self._seconds_per_image:
            for record in read_records(self.job.out / self.job.protocol.name):
                if record["image_size"] == image_size and "evaluation_s" in record:  # neither of a baseline nor of a failed run
                    counts = [group["good"] + group["anomalous"] for group in record["evaluation"]["classes"].values()]
                    per_image = record["evaluation_s"] / sum(counts)
                    self._seconds_per_image[image_size] = max(per_image, self._seconds_per_image.get(image_size, 0.0))
        return self._seconds_per_image.get(image_size, 0.0)


def run_facts(run: Run) -> dict[str, Any]:
    """Return what a run is as plain values, the first fields of its record."""
    return {
        "record": SCHEMA,
        "protocol": run.protocol,
        "variant": run.variant,
        "setting": run.setting,
        "class_set": run.class_set,
        "classes": list(run.classes),
        "image_size": run.image_size,
        "seed": run.seed,
    }


def recorded_config(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as plain values without what differs between machines: the device and the folder of the teacher's weights."""
    plain = to_plain(config)
    plain["model"]["teacher_weights"] = Path(plain["model"]["teacher_weights"]).name
    del plain["device"]
    return plain


def is_finished(files: RunFiles, run: Run, config: TrainConfig) -> bool:
    """Return whether a run has its record.

    Raises:
        ConfigError: If the record was made with other settings.
        DataError: If the file is no record.
    """
    if not files.record.exists():
        return False
    try:
        record = json.loads(files.record.read_text(encoding="utf-8"))
        stored = {key: record[key] for key in ("config", "classes", "seed", "image_size")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{files.record} is not a result of this benchmark; remove it and run again") from error
    changed = changed_settings(stored, run, config)
    if changed:
        raise ConfigError(f"{files.record} was made with other settings ({', '.join(changed)}); remove it, or give another --out")
    return True


def changed_settings(record: Mapping[str, Any], run: Run, config: TrainConfig) -> list[str]:
    """Return in words what a run would do otherwise today than its record says.

    A field that configurations gained since then had its default: defaults keep what was done before there was a choice.
    """
    now = {"config": recorded_config(config), "classes": list(run.classes), "seed": run.seed, "image_size": run.image_size}
    after, defaults = (_flat(json.loads(json.dumps(plain))) for plain in (now, {"config": recorded_config(TrainConfig())}))
    before = {key: defaults[key] for key in after if key in defaults} | _flat({key: record[key] for key in now})
    return [f"{key} was {before[key]} and is {after.get(key)}" for key in before if before[key] != after.get(key)]


def use_threads(count: int) -> None:
    """Set the processor threads of this process."""
    torch.set_num_threads(count)


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _weights_facts(weights: str | None) -> dict[str, str] | None:
    if weights is None or not Path(weights).is_file():
        return None
    return {"name": Path(weights).name, "sha256": sha256_file(weights)}


def timestamp() -> str:
    """Return the time (UTC) as records have it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
