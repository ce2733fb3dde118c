"""A file that flips one verdict is refused with exit status 3 and the figures, however small the difference; within the review band it is not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from snl_export.cli import main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.files import sha256_file
from snl_runtime.images.files import read_image, write_image
from snl_runtime.images.listing import list_images
from snl_runtime.model.manifest import Decision, manifest_path, read_manifest, write_manifest
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_normalization, write_map_file
from snl_runtime.scorer import Scorer

DEVIATION = 5e-5
"""Half of what an fp32 export may differ by: no figure but the flip can refuse it."""


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    generator = np.random.default_rng(8)
    for index in range(6):
        cells = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        write_image(folder / f"{index}.png", cells.repeat(9, 0).repeat(11, 1))
    return folder


def scores_of(model: Path, frames: Path) -> dict[str, float]:
    """Return every frame's score, golden samples included."""
    with Scorer(model) as scorer:
        golden, _ = scorer.score_inputs(scorer.bundle.golden.images)
        named = {f"golden {index}": float(score) for index, score in enumerate(golden)}
        return named | {path.name: scorer.score(read_image(path), "rgb").score for path in list_images(frames).taken}


@pytest.fixture
def add_decision(make_decision: Callable[..., Decision]) -> Callable[..., None]:
    """Replace the decisions of a model; ``normalization`` is the value of a constant normalization map."""

    def add(model: Path, pass_threshold: float, band: float = 0.0, normalization: float | None = None) -> None:
        manifest = read_manifest(manifest_path(model))
        file = None
        if normalization is not None:
            file, data = encode_normalization(model, "bolt", NormalizationMap(np.full(manifest.size_hw, normalization, np.float32)))
            write_map_file(model, file, data)
        thresholds = {"pass_threshold": pass_threshold, "reject_threshold": pass_threshold * (1 + band), "floor": 0.0}
        decision = make_decision(product="bolt", model_sha256=manifest.model_sha256, normalization=file, **thresholds)
        write_manifest(manifest_path(model), dataclasses.replace(manifest, decisions=[decision]))

    return add


def deviate(model: onnx.ModelProto) -> None:
    """Plant a reference whose map, and with it the score, is larger by a hair."""
    for node in model.graph.node:
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                if name == "anomaly_map":
                    side[index] = "honest_map"
    node = next(node for node in model.graph.node if "anomaly_score" in node.output)
    node.output[list(node.output).index("anomaly_score")] = "honest_score"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1 + DEVIATION), "hair"))
    for name in ("map", "score"):
        model.graph.node.append(onnx.helper.make_node("Mul", [f"honest_{name}", "hair"], [f"anomaly_{name}"]))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("band", "status", "normalization"), [(0.0, 3, None), (0.1, 0, None), (0.0, 3, 0.5)])
def test_one_flip_refuses_a_twin_that_every_other_figure_accepts(
    band: float,
    status: int,
    normalization: float | None,
    checkpoint_path: Path,
    earlier: Path,
    frames: Path,
    ready_made: Callable[..., None],
    add_decision: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    highest, second = sorted(scores_of(earlier, frames).values())[:-3:-1]
    threshold = highest * (1 + DEVIATION / 2)
    assert second * (1 + DEVIATION) < threshold  # one frame can cross it, and no other
    add_decision(earlier, threshold * (normalization or 1), band, normalization)
    before = contents(earlier.parent)
    ready_made(deviate)
    arguments = ["--ckpt", str(checkpoint_path), "--out", str(earlier), "--frames", str(frames), "--engine", "none"]
    assert main(arguments) == status
    printed = capsys.readouterr()
    if status == 0:
        assert "0 flips" in printed.out
        return
    last = printed.err.strip().splitlines()[-1]
    assert ": 1 frames change between PASS and REJECT, allowed are 0; over 9 frames maps correlate by 1.0000 or more (median 1.0000)" in last
    assert "1 verdicts flip" in last
    assert contents(earlier.parent) == before


def test_int8_that_flips_one_verdict_is_refused_with_the_figures(
    checkpoint_path: Path,
    earlier: Path,
    frames: Path,
    tmp_path: Path,
    ready_made: Callable[..., None],
    add_decision: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is planted: the threshold lies between what the float file and its quantized reference give for one real frame."""
    ready_made()
    arguments = ["--ckpt", str(checkpoint_path), "--frames", str(frames), "--engine", "none", "--out"]
    quantize = ["--int8", "--calib-data", str(frames), "--int8-parts", "student"]
    quantized = tmp_path / "first" / "line.onnx"
    assert main([*arguments, str(quantized), *quantize]) == 0
    before, after = scores_of(earlier, frames), scores_of(quantized, frames)
    gaps = {name: sorted((before[name], after[name])) for name in before}
    alone = [
        (low + high) / 2
        for name, (low, high) in gaps.items()
        if not any(other[0] <= (low + high) / 2 <= other[1] for key, other in gaps.items() if key != name)
    ]
    assert alone, "no threshold separates one frame from the others; change the seed"
    add_decision(earlier, alone[0])
    files = contents(earlier.parent)
    capsys.readouterr()
    assert main([*arguments, str(earlier), *quantize]) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "line.onnx does not score like checkpoint line.pt: 1 frames change between PASS and REJECT, allowed are 0; over 9 frames maps correlate"
        in last
    )
    assert "1 verdicts flip" in last
    assert contents(earlier.parent) == files


def test_decision_of_another_checkpoint_is_no_yardstick(
    checkpoint_path: Path, earlier: Path, frames: Path, ready_made: Callable[..., None], add_decision: Callable[..., None]
) -> None:
    add_decision(earlier, max(scores_of(earlier, frames).values()) * (1 + DEVIATION / 2))
    path = manifest_path(earlier)
    manifest = read_manifest(path)
    write_manifest(path, dataclasses.replace(manifest, training={**manifest.training, "checkpoint_sha256": "f" * 64}))
    ready_made(deviate)
    assert main(["--ckpt", str(checkpoint_path), "--out", str(earlier), "--frames", str(frames), "--engine", "none"]) == 0


def test_normalization_map_of_a_decision_stays_and_applies_when_the_same_file_is_exported_again(
    checkpoint_path: Path,
    earlier: Path,
    frames: Path,
    ready_made: Callable[..., None],
    add_decision: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_decision(earlier, max(scores_of(earlier, frames).values()), normalization=0.5)
    ready_made()
    arguments = ["--ckpt", str(checkpoint_path), "--out", str(earlier), "--frames", str(frames), "--engine", "none"]
    assert main(arguments) == 0
    with SnlDetector(earlier) as detector:
        assert detector.products == ("bolt",)
    (normalization,) = earlier.parent.glob("*.normalization.*")
    normalization.unlink()
    assert main(arguments) == 2
    assert "the normalization map of product 'bolt'" in capsys.readouterr().err
