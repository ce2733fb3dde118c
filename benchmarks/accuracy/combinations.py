"""``python -m benchmarks.accuracy.combinations``: one training with a student and a memory, their maps put together in several ways.

A model with both gives a map of the student and one of each remembered layer, each divided by its mean peak on good images that neither learned
from. The package adds them up, the student's doubled (``snl_train.scoring.score_features``); here the same maps are also taken alone, otherwise
weighted, multiplied, and by their maximum. Nothing is trained or fitted. Rows are told apart by protocol, so a checkpoint must lie where
``benchmarks.accuracy`` left it.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.accuracy.checkpoint_scores import (
    SCORED_AT_ONCE,
    ClassImages,
    Images,
    Maps,
    checkpoint_parser,
    map_figures,
    protocol_of,
    score_checkpoints,
)
from benchmarks.accuracy.protocol import known_protocols
from benchmarks.accuracy.tables import COMBINATIONS, RESULTS
from snl_runtime.cli.command import run_command
from snl_runtime.errors import ConfigError

PROGRAM = "benchmarks.accuracy.combinations"
TABLE = RESULTS / "combinations.csv"
_EXAMPLE = """
python -m benchmarks.accuracy.combinations --data realmix --checkpoints runs/accuracy/all256/snl-rd-best-and-memory-*.pt
"""

Rule: TypeAlias = Callable[[Maps], Maps]
"""(1 + L, n, H, W), the student's maps first and then those of each layer -> (n, H, W)."""

RULES: dict[str, Rule] = {
    "student alone": lambda maps: maps[0],
    "memory alone": lambda maps: maps[1:].sum(0),
    "sum": lambda maps: maps.sum(0),
    "sum, student doubled": lambda maps: 2 * maps[0] + maps[1:].sum(0),
    "sum, student halved": lambda maps: 0.5 * maps[0] + maps[1:].sum(0),
    "maximum of student and layers": lambda maps: maps.max(0),
    "maximum of student and mean of layers": lambda maps: np.maximum(maps[0], maps[1:].mean(0)),
    "product of student and memory": lambda maps: maps[0] * maps[1:].sum(0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = checkpoint_parser(PROGRAM, "Score checkpoints with student and memory by several rules.", example=_EXAMPLE, table=TABLE)
    options = parser.parse_args(argv)

    def run() -> int:
        check_protocols(options.checkpoints)
        return score_checkpoints(options, COMBINATIONS, _figures)

    return run_command(run, program=PROGRAM)


def check_protocols(checkpoints: Sequence[Path]) -> None:
    """Raise where a checkpoint's folder does not say what it was trained as.

    Raises:
        ConfigError: If so.
    """
    for path in checkpoints:
        if protocol_of(path) not in known_protocols():
            raise ConfigError(
                f"{path} lies in the folder {protocol_of(path)!r}, which is no protocol; give checkpoints where benchmarks.accuracy left them, "
                f"in a folder named {', '.join(known_protocols())}"
            )


def rules(layers: Sequence[int]) -> dict[str, Rule]:
    """Return the ways to put maps together by name, for a memory of some layers."""
    of_layers = {f"layer {layer} of the memory alone": _only(place) for place, layer in enumerate(layers, 1)}
    with_student = {f"sum of student and layer {layer}": _only(0, place) for place, layer in enumerate(layers, 1)}
    return {**RULES, **of_layers, **with_student}


def _only(*places: int) -> Rule:
    return lambda maps: maps[list(places)].sum(0)


def normalized_maps(model: Any, images: Images, config: Any) -> Maps:
    """Return (1 + L, n, H, W): the maps of student and layers, each divided by its mean peak on good images.

    Args:
        model: With student and memory, on the device where it runs.
        images: (n, H, W, 3) RGB.
        config: All settings of its training.
    """
    import torch

    from snl_train.features import exact_float32
    from snl_train.memory_fit import STUDENT_FACTOR
    from snl_train.scoring import memory_maps, student_map

    device, size_hw = model.mean.device, (images.shape[1], images.shape[2])
    weight = model.memory.student_weight / STUDENT_FACTOR
    parts = []
    with torch.inference_mode(), exact_float32(device):
        for start in range(0, len(images), SCORED_AT_ONCE):
            batch = torch.from_numpy(images[start : start + SCORED_AT_ONCE]).to(device)
            teacher, student = model(model.normalize(batch))
            of_student = student_map(teacher, student, size_hw, config.score, whitening=model.whitening)[:, 0] * weight
            parts.append(torch.stack([of_student, *memory_maps(model.memory, teacher, size_hw, config.score)]).cpu())
    maps: Maps = torch.cat(parts, 1).numpy()
    return maps


def _figures(checkpoint: Any, model: Any, images: ClassImages) -> dict[str, dict[str, float | None]]:
    if model.student is None or model.memory is None:
        raise ConfigError(
            f"the checkpoint of {checkpoint.config.model.method!r} with {checkpoint.config.memory.centers} centers has no student beside a memory; "
            "give one that was trained with both (--method snl-rd --set memory.centers=512)"
        )
    maps, top_k = normalized_maps(model, images.test, checkpoint.config), checkpoint.config.score.top_k
    return {name: map_figures(rule(maps), images.labels, images.masks, top_k=top_k) for name, rule in rules(model.memory.layers).items()}


if __name__ == "__main__":
    sys.exit(main())
