"""A model that is trained on tiles and the whole frame is exported, calibrated and run on both, and no command after the training is told so."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from snl_runtime.detector.detector import SnlDetector  # noqa: E402
from snl_runtime.images.preprocess import resize  # noqa: E402
from snl_runtime.model.manifest import TileGrid, read_manifest  # noqa: E402
from snl_train.checkpoint import load_checkpoint  # noqa: E402
from snl_train.evaluation import CheckpointScorer  # noqa: E402
from tolerances import EXPORTED_FP32_ABS  # noqa: E402

SIDE, TILE = 64, 32
STARTS = ((0, 0, 24), (16, 24, 40), (32, 40, 64))
"""By hand, along each axis: 1 + ceil((64 - 32) / (32 - 8)) = 3 tiles, each up to the middle of its overlaps."""


def good_part(seed: int) -> np.ndarray:
    """A disk with a label on a background, RGB; the noise differs."""
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    cv2.circle(image, (32, 32), 24, (170, 160, 120), -1)
    cv2.rectangle(image, (24, 40), (40, 48), (40, 60, 150), -1)
    return np.clip(image + np.random.default_rng(seed).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def ruined(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[20:40, 20:40, :2] = (0, 255)
    return image


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, exported and calibrated by the commands."""
    from snl_calibration.cli import main as calibrate
    from snl_export.cli import main as export
    from snl_train.cli.train import main as train

    root = tmp_path_factory.mktemp("whole")
    for folder, seeds in (("train/part", range(8)), ("good/part", range(100, 112)), ("bad/hole", range(200, 203))):
        (root / folder).mkdir(parents=True)
        for seed in seeds:
            image = ruined(good_part(seed)) if folder == "bad/hole" else good_part(seed)
            assert cv2.imwrite(str(root / folder / f"{seed}.png"), image[:, :, ::-1])
    flags = "--method memory --teacher resnet18 --teacher-weights random --set memory.centers=24 --device cpu --image-size 32"
    seen = ["--tile", str(TILE), "--overlap", "8", "--with-whole-frame"]
    assert train(["--data", str(root / "train"), "--out", str(root / "line.pt"), *flags.split(), *seen]) == 0
    assert export(["--ckpt", str(root / "line.pt"), "--out", str(root / "line.onnx"), "--engine", "none"]) == 0
    arguments = ["--engine", str(root / "line.onnx"), "--good", str(root / "good" / "part"), "--bad", str(root / "bad")]
    arguments += ["--max-frr", "0.2", "--confidence", "0.8", "--min-detection", "0.1"]
    # All are good; which ones lie far out depends on how this processor rounds.
    accepted = [word for seed in range(100, 112) for word in ("--accept-outlier", f"{seed}.png")]
    assert calibrate([*arguments, *accepted]) == 0
    return root


def test_grid_of_the_training_is_that_of_the_decision(line: Path):
    manifest = read_manifest(line / "line.json")
    expected = TileGrid(tile_px=TILE, overlap_px=8, map_hw=(SIDE, SIDE), count=10, with_whole_frame=True)
    assert manifest.decisions_for(manifest.model_sha256)["part"].tiles == expected
    assert manifest.training_tiles == (TILE, 8, True)


def test_detector_gives_what_the_checkpoint_gives_view_by_view(line: Path):
    scorer = CheckpointScorer(load_checkpoint(line / "line.pt"))
    with SnlDetector(line / "line.onnx") as detector:
        for frame in (good_part(300), ruined(good_part(301))):
            merged = np.zeros((SIDE, SIDE), np.float32)
            for top, first_row, end_row in STARTS:
                for left, first_column, end_column in STARTS:
                    (tile,) = scorer.score_inputs(frame[None, top : top + TILE, left : left + TILE])[1]
                    own = tile[first_row - top : end_row - top, first_column - left : end_column - left]
                    merged[first_row:end_row, first_column:end_column] = own
            (whole,) = scorer.score_inputs(resize(frame, (TILE, TILE))[None])[1]
            merged = np.maximum(merged, whole.repeat(2, axis=0).repeat(2, axis=1))
            result = detector.detect(frame, color="rgb", product="part")
            np.testing.assert_allclose(result.anomaly_map, merged, rtol=0, atol=EXPORTED_FP32_ABS * float(merged.max()))


def test_run_passes_a_good_part_and_not_a_ruined_one(line: Path, tmp_path: Path):
    from snl_runtime.cli.run import main as run

    frames = tmp_path / "frames"
    frames.mkdir()
    good = cv2.imread(str(line / "good" / "part" / "103.png"))
    assert good is not None
    for name, image in (("0.png", good), ("1.png", ruined(good))):
        assert cv2.imwrite(str(frames / name), image)
    records = tmp_path / "records.jsonl"
    run(["--engine", str(line / "line.onnx"), "--images", str(frames), "--product", "part", "--jsonl", str(records)])
    verdicts = [json.loads(text)["verdict"] for text in records.read_text(encoding="utf-8").splitlines()]
    assert verdicts[0] == "PASS"
    assert verdicts[1] in ("REJECT", "ERROR")


@pytest.mark.parametrize("model", [("--ckpt", "line.pt"), ("--engine", "line.onnx")], ids=["checkpoint", "exported"])
def test_evaluation_sees_images_as_trained_unless_it_is_told_otherwise(model: tuple[str, str], line: Path, tmp_path: Path, capsys):
    from snl_train.cli.evaluate import main as evaluate

    for folder, image in (("train/good", good_part(0)), ("test/good", good_part(400)), ("test/hole", ruined(good_part(401)))):
        path = tmp_path / "part" / folder / "0.png"
        path.parent.mkdir(parents=True)
        assert cv2.imwrite(str(path), image[:, :, ::-1])
    scores = {}
    for flags in ((), ("--tile", "32", "--overlap", "8", "--with-whole-frame"), ("--no-with-whole-frame",), ("--tile", "0")):
        capsys.readouterr()
        assert evaluate([model[0], str(line / model[1]), "--data", str(tmp_path), "--bootstrap", "0", "--json", *flags]) == 0
        scores[flags] = [entry["score"] for entry in json.loads(capsys.readouterr().out)["images"]]
    trained, same, tiles, whole = scores.values()
    assert trained == same
    assert trained == pytest.approx(np.maximum(tiles, whole), rel=1e-5)
