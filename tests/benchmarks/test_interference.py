"""Mixtures of classes are made as said, from images that no model has seen, and separation is an AUROC that a known scorer gives by hand."""

from pathlib import Path

import numpy as np
import pytest

from snl_runtime.errors import DataError


def images(value: int, count: int = 4) -> np.ndarray:
    return np.full((count, 32, 32, 3), value, np.uint8)


class BrightnessScorer:
    """Scores an image by its brightest pixel; the map is the brightness."""

    def score_inputs(self, batch):
        maps = batch.astype(np.float32).mean(axis=3)
        return maps.max(axis=(1, 2)), maps


def test_mixup_is_the_mean_of_two_images():
    from benchmarks.accuracy.interference import mixed

    first, second = (np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8) for seed in (0, 1))
    for (y, x, c), value in np.ndenumerate(mixed(first, second)):
        assert value == (int(first[y, x, c]) + int(second[y, x, c]) + 1) // 2


def test_paste_is_one_square_of_the_other_image():
    from benchmarks.accuracy.interference import pasted

    sides = set()
    for seed in range(50):
        result, mask = pasted(images(0)[0], images(200)[0], np.random.default_rng(seed))
        assert (result[mask] == 200).all()
        assert (result[~mask] == 0).all()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert len(rows) == len(columns) == rows[-1] - rows[0] + 1
        assert mask.sum() == len(rows) ** 2
        sides.add(len(rows))
    assert (min(sides), max(sides)) == (8, 16)  # a quarter and a half of 32


def test_separation_of_a_known_scorer():
    from benchmarks.accuracy.interference import separation

    found = separation(BrightnessScorer(), {"dark": images(0), "light": images(100)}, per_pair=5, seed=0)
    # mixup: brightness 50 against good_images 0 (below) and 100 (above): half of the pairs are in order
    assert found["mixup"] == {"mean": 0.5, "of": {"dark + light": 0.5}}
    # paste of light on dark is brighter than dark: 1; of dark on light it leaves the maximum at 100, a tie: .5
    assert found["paste"] == {"mean": 0.75, "of": {"dark": 1.0, "light": 0.5}}
    # and the pasted pixels are the brighter ones, or the darker ones
    assert found["paste_pixel"]["of"] == {"dark": 1.0, "light": 0.0}


def test_every_model_sees_the_same_mixtures():
    from benchmarks.accuracy.interference import separation

    seen: list[bytes] = []

    class Recorder(BrightnessScorer):
        def score_inputs(self, batch):
            seen.append(batch.tobytes())
            return super().score_inputs(batch)

    good_images = {name: np.random.default_rng(number).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8) for number, name in enumerate("abc")}
    for _ in range(2):
        separation(Recorder(), good_images, per_pair=3, seed=7)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_one_class_alone_cannot_interfere():
    from benchmarks.accuracy.interference import separation

    with pytest.raises(DataError, match="two classes, got dark"):
        separation(BrightnessScorer(), {"dark": images(0)}, per_pair=5, seed=0)


def test_command_adds_figures_of_every_model_to_the_table(two_classes: Path, tmp_path: Path, quick_files: None, capsys):
    from benchmarks.accuracy import interference, overlays
    from benchmarks.accuracy.protocol import expand, load_protocol
    from benchmarks.accuracy.session import Job, Session
    from benchmarks.accuracy.tables import MIXTURES, read_rows

    protocol = load_protocol("tiny")
    session = Session(Job(protocol=protocol, data=two_classes, out=tmp_path, classes=("cap", "nut")))
    for run in expand(protocol, ["cap", "nut"]):
        if run.setting == "multi-class" and run.seed == 0:
            assert session.perform(run) == "finished"
    checkpoints = [str(tmp_path / "tiny" / f"{name}_32_all_multi_s0.pt") for name in ("fd", "snl-fd")]
    arguments = ["--data", str(two_classes), "--checkpoints", *checkpoints, "--device", "cpu"]
    table = tmp_path / "new" / "mixtures.csv"
    assert interference.main([*arguments, "--out", str(table), "--per-pair", "3", "--commit", "abc"]) == 0
    written = read_rows(table, MIXTURES)
    assert {row["model"] for row in written} == {"fd_32_all_multi", "snl-fd_32_all_multi"}
    assert all(0 <= float(row["auroc"]) <= 1 and row["commit"] == "abc" for row in written)
    assert len(written) == 2 * (1 + 2 + 2)  # a pair of classes, pastes on two classes and their pixels, for each model
    assert f"{table}: 10 rows, 0 in place of other figures" in capsys.readouterr().out
    page, sheet = tmp_path / "a.html", tmp_path / "a.png"
    status = overlays.main([*arguments, "--classes", "nut", "--per-class", "2", "--out", str(page), "--png", str(sheet)])
    assert status == 0
    assert "not for publication: nut" in capsys.readouterr().out
    assert page.read_text().count("<img") == 2 * 3  # two images, each with its defect and the maps of two models
    from snl_runtime.images.files import read_image

    assert read_image(sheet).shape == (2 * 160, 3 * 160, 3)
