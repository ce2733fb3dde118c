"""``python -m benchmarks.accuracy.baselines``: anomalib's methods on the same images, size, teacher weights and metrics.

Runs in an environment of its own (``baselines-requirements.txt``). The package's networks, losses, optimizers and scoring are used as they are,
trained by its own engine; only these are ours: the prepared images, the local file that the teacher's weights come from, the metrics and, if asked
for, the search for PatchCore's coreset. Image scores are each method's own (PatchCore weighs its maximum by the neighborhood), not the maximum of
the map.

Batch size, epochs and precision are the protocol's; STFPM and Reverse Distillation get more epochs where that is less than ``--min-steps``
optimizer steps, because a class of 28 images has so few that a method would be judged untrained. PatchCore needs one pass; choosing its coreset
takes time with the square of the number of images, hours on a CPU for several hundred of them (``--settings one-class`` leaves the multi-class bank
out). With glibc it also takes 8 MB more at every chosen point (17 GB for 100 images of 128 px) unless ``MALLOC_MMAP_THRESHOLD_=1000000`` is set:
then 1 GB. ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` beside it makes choosing two to three times as fast on Linux: 13 points a second by its
progress bar instead of 5, for 237 images of 256 px on one core. ``--compile-coreset`` has PyTorch compile the package's own update of the
distances, so that each point takes one pass over the features, on a GPU too. ``--bounded-coreset`` chooses by the same rule with bounds that leave
out most of that pass (``farthest.py``), on a CPU: 727 points a second by the progress bar for those 237 images.
"""

import argparse
import contextlib
import functools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import provenance
from benchmarks.accuracy.command import DEFAULT_OUT, ONLY_HELP, chosen_runs, seed_list
from benchmarks.accuracy.protocol import Protocol, Run, expand, known_protocols, load_protocol, train_config
from benchmarks.accuracy.records import SCHEMA, RunFiles, write_record
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import BackendUnavailableError, ConfigError
from snl_runtime.files import sha256_file
from snl_train.config import TrainConfig

PROGRAM = "benchmarks.accuracy.baselines"
BASELINES = ("PatchCore", "STFPM", "Reverse Distillation")
_SCORED_AT_ONCE = 8
_EXAMPLE = """
baselines-venv/bin/python -m benchmarks.accuracy.baselines --protocol reduced --data realmix --weights resnet18.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    return run_command(lambda: _run(options, arguments), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(PROGRAM, "Train and measure anomalib's methods as a protocol says; what is done is not done again.", example=_EXAMPLE)
    parser.add_argument("--protocol", metavar="NAME", required=True, help=f"{', '.join(known_protocols())}, or a .yaml file")
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="images in the layout of MVTec AD or VisA")
    parser.add_argument("--weights", metavar="FILE", required=True, help="weights of the teacher; nothing is downloaded")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help=f"one JSON per run goes here (default: {DEFAULT_OUT})")
    parser.add_argument("--settings", default="one-class,multi-class", metavar="A,B", help="one-class, multi-class or both (default: both)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help=ONLY_HELP)
    parser.add_argument("--seeds", type=seed_list, metavar="A,B", help="only runs with these seeds, of those that --only leaves")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of STFPM and Reverse Distillation (default: the protocol's, see --min-steps)")
    parser.add_argument("--min-steps", type=int, default=500, metavar="N", help="more epochs where they are fewer optimizer steps (default: 500)")
    faster = parser.add_mutually_exclusive_group()
    faster.add_argument("--compile-coreset", action="store_true", help="choose PatchCore's coreset with compiled code: the same rule, faster")
    faster.add_argument("--bounded-coreset", action="store_true", help="choose it on a CPU with bounds on distances: the same rule")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train and measure (default: cpu)")
    parser.add_argument("--budget-s", type=float, default=float("inf"), metavar="S", help="start no run that would end after S seconds")
    parser.add_argument("--list", action="store_true", help="print the runs and whether they are done, and stop")
    parser.add_argument("--commit", metavar="TEXT", help="commit to record where the sources are no checkout (default: asked from git)")
    return parser


def baseline_runs(protocol: Protocol, classes: Sequence[str], settings: Sequence[str]) -> list[Run]:
    """Return the runs of the baselines: all methods, sizes, class sets and seeds of a protocol; PatchCore too, whose coreset depends on the seed.

    Raises:
        ConfigError: If a setting is unknown.
    """
    unknown = sorted(set(settings) - {"one-class", "multi-class"})
    if unknown:
        raise ConfigError(f"--settings must be one-class, multi-class or both, got {unknown[0]!r}")
    found: list[Run] = []
    for baseline in BASELINES:
        for setting in ("one-class", "multi-class"):
            if setting in settings:
                found += _runs_of(protocol, baseline, setting, classes)
    return found


def _runs_of(protocol: Protocol, baseline: str, setting: Any, classes: Sequence[str]) -> list[Run]:
    import dataclasses

    from benchmarks.accuracy.protocol import Variant

    return expand(dataclasses.replace(protocol, variants={baseline: Variant()}, settings=(setting,)), classes)


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from benchmarks.accuracy.data import class_names

    started_s = time.monotonic()
    if options.bounded_coreset and options.device != "cpu":
        raise ConfigError(f"--bounded-coreset works on a CPU only, got --device {options.device}; give --compile-coreset there")
    protocol = load_protocol(options.protocol)
    runs = chosen_runs(baseline_runs(protocol, class_names(options.data), options.settings.split(",")), options.only, options.seeds)
    if options.list:
        for run in runs:
            print("done " if _files(options.out, run).record.exists() else "open ", run.name)
        return EXIT_OK
    baselines = _Baselines(options, protocol, runs, provenance.command_line(arguments).replace("benchmarks.accuracy", PROGRAM, 1))
    open_runs = [run for run in runs if not _files(options.out, run).record.exists()]
    longest_s = 0.0
    for number, run in enumerate(open_runs, 1):
        begun_s = time.monotonic()
        if begun_s - started_s + longest_s > options.budget_s:
            break
        print(f"{run.name}: {baselines.perform(run)} ({number} of {len(open_runs)})", flush=True)
        longest_s = max(longest_s, time.monotonic() - begun_s)
    left = sum(not _files(options.out, run).record.exists() for run in runs)
    print(f"not finished: {len(runs) - left} of {len(runs)} runs are done; the same command goes on" if left else f"finished: all {len(runs)} runs")
    return EXIT_OK


def _files(out: Path, run: Run) -> RunFiles:
    return RunFiles(out / run.protocol, f"baseline-{run.name}")


class _Baselines:
    """Does runs of the baselines; images are read once."""

    def __init__(self, options: argparse.Namespace, protocol: Protocol, runs: Sequence[Run], command: str) -> None:
        from benchmarks.accuracy.data import load_dataset

        self._options = options
        self._protocol = protocol
        self._source = f"anomalib {_anomalib_version()}"
        self._command = command
        classes = sorted({name for run in runs for name in run.classes})
        cache_mib = self._config(runs[0]).data.cache_mib
        self._dataset = load_dataset(options.data, classes, protocol.image_sizes, cache_mib=cache_mib, threads=None)

    def _config(self, run: Run) -> TrainConfig:
        """Return the protocol's settings: teacher, epochs, batch size and images are taken from them, the rest is the package's."""
        variant = next(iter(self._protocol.variants))
        return train_config(self._protocol, variant, image_size=run.image_size, seed=run.seed, weights=self._options.weights)

    def perform(self, run: Run) -> str:
        """Train, measure, write the record and return the result in words."""
        import torch
        from lightning import seed_everything

        from benchmarks.accuracy.coreset import coreset_choice
        from snl_train.evaluation import evaluate
        from snl_train.measures import Bootstrap

        config = self._config(run)
        data = self._dataset.training_data(run.classes, config)
        images = data.inputs.read(data.samples)
        seed_everything(run.seed, verbose=False)
        options = self._options
        asked = None if run.variant == "PatchCore" else options.epochs
        epochs = asked or baseline_epochs(run.variant, len(images), config, min_steps=options.min_steps)
        begun_s = time.monotonic()
        with coreset_choice(compiled=options.compile_coreset, bounded=options.bounded_coreset):
            model = _trained(run.variant, images, config, epochs=epochs, device=options.device)
        trained_s = time.monotonic() - begun_s
        scorer = BaselineScorer(model, config.image_size, self._options.device)
        evaluation = evaluate(
            scorer, self._dataset.test_samples(run.classes), batch_size=_SCORED_AT_ONCE, bootstrap=Bootstrap(resamples=self._protocol.resamples)
        )
        plain = evaluation.to_plain(relative_to=self._dataset.index.root)
        self._write(run, config, plain, epochs=epochs, trained_s=trained_s, threads=torch.get_num_threads())
        value = evaluation.mean.measures["image_auroc"].value
        return f"image AUROC {value:.3f}" if value is not None else "no image AUROC"

    def _write(self, run: Run, config: TrainConfig, evaluation: dict[str, Any], *, epochs: int, trained_s: float, threads: int) -> None:
        from benchmarks.accuracy.data import fingerprint
        from benchmarks.accuracy.session import run_facts, timestamp

        options = self._options
        facts = provenance.provenance(
            device=options.device, threads=threads, command=self._command, commit_name=options.commit or provenance.commit()
        )
        facts["versions"] |= {name: metadata.version(name) for name in ("anomalib", "timm", "lightning")}
        facts["finished_at"] = timestamp()
        facts["teacher_weights"] = {"name": Path(options.weights).name, "sha256": sha256_file(options.weights)}
        test = self._dataset.test_samples(run.classes)
        samples = self._dataset.training_data(run.classes, config).samples
        precision, rest = baseline_precision(run.variant, config, options.device), "defaults of the package"
        record = {
            **run_facts(run),
            "record": SCHEMA,
            "source": self._source,
            "config": {"teacher": config.model.teacher, "epochs": epochs, "batch_size": config.batch_size, "precision": precision, "rest": rest},
            "data": {
                "name": self._dataset.index.root.name,
                "train_sha256": fingerprint(samples),
                "test_sha256": {name: fingerprint([one for one in test if one.class_name == name]) for name in run.classes},
                "training_images": {name: sum(one.class_name == name for one in samples) for name in run.classes},
            },
            "training": {"epochs_done": epochs, "seconds": round(trained_s, 2)},
            "evaluation": evaluation,
            "provenance": facts,
            "slices": [],
        }
        files = _files(options.out, run)
        files.folder.mkdir(parents=True, exist_ok=True)
        write_record(files.record, record)


def baseline_epochs(baseline: str, image_count: int, config: TrainConfig, *, min_steps: int) -> int:
    """Return the passes over the training images: one for PatchCore, else the protocol's or what ``min_steps`` optimizer steps take."""
    if baseline == "PatchCore":
        return 1
    per_epoch = max(1, image_count // config.batch_size)  # Lightning drops the last batch
    return max(config.epochs or -(-config.total_steps(per_epoch) // per_epoch), -(-min_steps // per_epoch))


def baseline_precision(baseline: str, config: TrainConfig, device: str) -> str:
    """Return Lightning's name of the precision to train in: the one that the protocol's own rows have on this machine.

    PatchCore trains nothing; its features stay float32.
    """
    import torch

    from snl_train.device import half_precision

    half = None if baseline == "PatchCore" else half_precision(torch.device(device), config)
    return {None: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}[half]


class BaselineScorer:
    """Scores prepared images with a trained model of anomalib, without its thresholds and its normalization of scores."""

    def __init__(self, model: Any, size_hw: tuple[int, int], device: str) -> None:
        self._model = model.model.to(device).eval()
        self._device = device
        self.size_hw = size_hw

    def score_inputs(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return scores (N,) and maps (N, H, W), float32, of prepared images (N, H, W, 3) uint8 RGB."""
        import torch

        from snl_train.features import exact_float32

        with torch.inference_mode(), exact_float32(torch.device(self._device)):  # as the own rows are measured
            answer = self._model(_normalized(_as_tensor(images)).to(self._device))
        scores = answer.pred_score.reshape(-1).float().cpu().numpy()
        return scores, answer.anomaly_map.reshape(len(images), *self.size_hw).float().cpu().numpy()


@contextlib.contextmanager
def local_teacher(weights: str) -> Iterator[None]:
    """Give every pretrained timm model the weights of a local file, so that nothing is downloaded.

    anomalib's TimmFeatureExtractor calls ``timm.create_model(backbone, pretrained=True, features_only=True, ...)``; timm names the tensors of a
    ResNet as torchvision does.

    Raises:
        ConfigError: If the weights do not fit.
    """
    import timm

    from snl_train.models.weights import load_state, read_state

    original = timm.create_model
    state = read_state(weights)

    @functools.wraps(original)
    def create_model(name: str, *args: Any, pretrained: bool = False, **kwargs: Any) -> Any:
        model = original(name, *args, pretrained=False, **kwargs)
        if pretrained:
            load_state(model, state, weights)
        return model

    timm.create_model = create_model
    try:
        yield
    finally:
        timm.create_model = original


def _trained(baseline: str, images: npt.NDArray[np.uint8], config: TrainConfig, *, epochs: int, device: str) -> Any:
    """Return a model of anomalib, trained by its engine on prepared images (N, H, W, 3) uint8 RGB."""
    from anomalib.engine import Engine
    from torch.utils.data import DataLoader

    _be_quiet()
    with local_teacher(config.model.teacher_weights):
        model = _model(baseline, config)
    is_trained = baseline != "PatchCore"
    # A last batch of one image has no batch statistics to learn from.
    drops_last = is_trained and len(images) > config.batch_size
    loader = DataLoader(_as_tensor(images), batch_size=config.batch_size, shuffle=is_trained, drop_last=drops_last, collate_fn=_batch)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            max_epochs=epochs,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            precision=baseline_precision(baseline, config, device),
        )
        engine.fit(model, train_dataloaders=loader)
    return model


def _model(baseline: str, config: TrainConfig) -> Any:
    from anomalib.models import Patchcore, ReverseDistillation, Stfpm
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    # The resize leaves prepared images as they are; Reverse Distillation reads its input size from it.
    transform = Compose([Resize(config.image_size, antialias=True), Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])])
    models: dict[str, Callable[..., Any]] = {"PatchCore": Patchcore, "STFPM": Stfpm, "Reverse Distillation": ReverseDistillation}
    return models[baseline](
        backbone=config.model.teacher, pre_processor=PreProcessor(transform=transform), post_processor=False, evaluator=False, visualizer=False
    )


def _as_tensor(images: npt.NDArray[np.uint8]) -> Any:
    """Return (N, 3, H, W) float32 in 0..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _normalized(images: Any) -> Any:
    import torch

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / deviation[:, None, None]


def _batch(items: Sequence[Any]) -> Any:
    import torch
    from anomalib.data import ImageBatch

    return ImageBatch(image=torch.stack(list(items)), gt_label=torch.zeros(len(items), dtype=torch.bool))


def _anomalib_version() -> str:
    try:
        return metadata.version("anomalib")
    except metadata.PackageNotFoundError as error:
        raise BackendUnavailableError(
            "the baselines need the package anomalib in an environment of their own: python -m venv baselines-venv && "
            "baselines-venv/bin/pip install -r benchmarks/accuracy/baselines-requirements.txt"
        ) from error


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "anomalib"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
