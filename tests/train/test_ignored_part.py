"""What an ignore mask hides counts in no metric; a bad part whose defect it hides stays a bad part, and the command says so."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from snl_runtime.errors import DataError
from snl_runtime.images.files import read_image
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.images.views import Tiles
from snl_runtime.model.frame_range import FrameSizes
from snl_train import metrics
from snl_train.cli.evaluate import main
from snl_train.data.layouts import read_dataset
from snl_train.data.samples import Sample
from snl_train.evaluation import measure, score_samples
from snl_train.evaluation_table import format_tables
from snl_train.ignored_part import IgnoredPart, ignored_part_of_file
from snl_train.measures import Bootstrap, ScoredImage, measure_groups
from snl_train.report_html import HeatScale, heat_images
from station_process import model_fixtures
from tolerances import FLOAT32_ABS

IMAGE_HW = (40, 48)
SIDE = 20
"""Of the fake network: its maps have cells of 2 x 2.4 image pixels."""
DEFECT = np.s_[4:9, 6:12]
"""Where the labeled defects of the generated dataset are, in image pixels."""
NO_BOOTSTRAP = Bootstrap(resamples=0)


class BrightnessScorer:
    """The map is the red channel: what it gives for a file can be derived from the file."""

    size_hw = (SIDE, SIDE)

    def score_inputs(self, images):
        maps = images[..., 0].astype(np.float32) / 255
        return maps.max(axis=(1, 2)), maps


def part_of(box, image_hw=IMAGE_HW):
    ignored = np.zeros(image_hw, bool)
    ignored[box] = True
    return IgnoredPart(ignored=ignored, image_sizes=FrameSizes(seen_hw=[image_hw], any_size=False), source="a test")


def red_map(sample, map_hw=(SIDE, SIDE)):
    return prepare(read_image(sample.path), "rgb", InputSpec(size_hw=map_hw))[..., 0] / np.float32(255)


def cells(box, map_hw=(SIDE, SIDE)):
    """By loops: the cells that lie on ignored pixels only."""
    ignored = part_of(box).ignored
    scale = [side / count for side, count in zip(IMAGE_HW, map_hw)]
    found = np.zeros(map_hw, bool)
    for row, column in np.ndindex(*map_hw):
        top, left = int(row * scale[0]), int(column * scale[1])
        bottom, right = int(np.ceil((row + 1) * scale[0])), int(np.ceil((column + 1) * scale[1]))
        found[row, column] = ignored[top:bottom, left:right].all()
    return found


def test_metrics_are_those_of_the_judged_pixels(mvtec_root):
    samples = [sample for sample in read_dataset(mvtec_root).test if sample.class_name == "nut"]
    box = np.s_[0:7, :]  # the upper part of every defect, and much that is normal
    images, _ = score_samples(BrightnessScorer(), samples, ignored={"nut": part_of(box)})
    evaluation = measure(images, (SIDE, SIDE), bootstrap=NO_BOOTSTRAP)
    hidden = cells(box)
    judged = [np.where(hidden, 0, red_map(sample)) for sample in samples]
    flags = [sample.is_anomalous for sample in samples]
    defect = np.zeros((SIDE, SIDE), bool)
    defect[2:5, 2:5] = True  # rows 4 to 8 and columns 6 to 11 of the image, any coverage
    truth = np.stack([defect & flag for flag in flags])
    (nut,) = evaluation.classes
    assert [image.score for image in images] == pytest.approx([one.max() for one in judged], abs=FLOAT32_ABS)
    assert nut.measures["image_auroc"].value == pytest.approx(roc_auc_score(flags, [one.max() for one in judged]), abs=1e-12)
    pixels = roc_auc_score(truth[:, ~hidden].ravel(), np.stack(judged)[:, ~hidden].ravel())
    assert nut.measures["pixel_auroc"].value == pytest.approx(pixels, abs=1e-12)
    assert nut.hidden == 0
    assert evaluation.ignored_share == {"nut": pytest.approx(hidden.mean())}


def random_images(count=14):
    """Images whose judged part is a block of columns: the same metrics must come from maps that were cut to it."""
    sample = Sample(path=Path("x.png"), class_name="nut", split="test")
    generator = np.random.default_rng(4)
    for index in range(count):
        mask = np.zeros((16, 24), bool)
        if index % 2:
            mask[3 : 5 + index // 2, 4:20] = True
            mask[14, 2:9] = True
        one = (generator.gamma(2.0, size=mask.shape) + mask).astype(np.float32)
        yield dataclasses.replace(sample, is_anomalous=bool(index % 2)), one, mask


def test_every_metric_and_interval_equals_that_of_maps_cut_to_the_judged_part():
    judged = np.zeros((16, 24), bool)
    judged[:, :15] = True
    whole, cut = [], []
    for sample, one, mask in random_images():
        score = float(one[judged].max())
        whole.append(ScoredImage(sample=sample, score=score, anomaly_map=one, mask=mask & judged, judged=judged))
        cut.append(ScoredImage(sample=sample, score=score, anomaly_map=one[:, :15], mask=mask[:, :15]))
    bootstrap = Bootstrap(resamples=50)
    (under_mask,), _, _ = measure_groups(whole, bootstrap)
    (expected,), _, _ = measure_groups(cut, bootstrap)
    assert under_mask.measures == expected.measures
    everything = metrics.aupro([image.anomaly_map for image in whole], [image.mask for image in whole])
    assert under_mask.measures["aupro"].value != everything


def test_bad_part_whose_defect_is_hidden_counts_as_bad(mvtec_root):
    samples = [sample for sample in read_dataset(mvtec_root).test if sample.class_name == "nut"]
    images, _ = score_samples(BrightnessScorer(), samples, ignored={"nut": part_of(np.s_[2:12, 4:16])})
    evaluation = measure(images, (SIDE, SIDE), bootstrap=NO_BOOTSTRAP)  # under it lie 5 x 4 of 400 cells
    (nut,) = evaluation.classes
    assert [image.is_hidden for image in images] == [sample.is_anomalous for sample in samples]
    assert (nut.anomalous, nut.hidden, evaluation.pooled.hidden) == (2, 2, 2)
    assert nut.measures["image_auroc"].value is not None
    assert nut.measures["pixel_auroc"].value is None, "no defect pixel is judged"
    assert evaluation.to_plain()["classes"]["nut"]["hidden"] == 2
    assert "Not judged: 5 % of nut (ignore mask); 2 of 2 bad images have their defect wholly under it and count as bad." in format_tables(evaluation)


def test_image_seen_in_tiles_is_judged_before_its_map_is_reduced(mvtec_root):
    samples = read_dataset(mvtec_root).test[:3]
    box = np.s_[0:21, 0:31]
    tiles = Tiles(tile_px=20, overlap_px=4, with_whole_frame=False)
    images, _ = score_samples(BrightnessScorer(), samples, tiles=tiles, ignored={"cap": part_of(box), "nut": part_of(box)})
    for sample, scored in zip(samples, images, strict=True):
        frame = read_image(sample.path)[..., 0] / np.float32(255)  # tiles of the network's size: the merged map has the image's pixels
        frame[box] = 0
        assert scored.score == pytest.approx(frame.max(), abs=FLOAT32_ABS)
        np.testing.assert_allclose(scored.anomaly_map[~cells(box)], upsample_map(frame, (SIDE, SIDE))[~cells(box)], atol=FLOAT32_ABS)
        assert not scored.anomaly_map[cells(box)].any()


def test_mask_of_another_resolution_hides_no_cell_that_is_partly_judged():
    coarse = part_of(np.s_[0:3, 0:3], (6, 6))
    fine = coarse.on((18, 18)).values == 0
    assert fine[:9, :9].all()
    assert fine.sum() == 81
    odd = coarse.on((5, 5)).values == 0
    assert odd.sum() == 4, "rows 0 and 1 of five lie on the first three of six, row 2 only in part"


def test_mask_that_ignores_everything_is_refused(tmp_path):
    assert cv2.imwrite(str(tmp_path / "white.png"), np.full((4, 4), 255, np.uint8))
    with pytest.raises(DataError, match="ignores everything; white is ignored, black is judged"):
        ignored_part_of_file(tmp_path / "white.png")


@pytest.fixture
def line(tmp_path):
    """A calibrated model and labeled test images of its product; the scratch of bad frames lies in rows 10 and 11."""
    tools = model_fixtures()
    folder = tools.ModelFolder(tmp_path)
    folder.write(decisions=[{"frame_sizes": FrameSizes(seen_hw=[(tools.SIZE, tools.SIZE)], any_size=False)}])
    for seed in range(3):
        write(tmp_path / "data/bottle/test/good" / f"{seed}.png", tools.good_frame(seed))
        write(tmp_path / "data/bottle/test/scratch" / f"{seed}.png", tools.bad_frame(seed))
        truth = np.zeros((tools.SIZE, tools.SIZE), np.uint8)
        truth[10:12, 8:14] = 255
        write(tmp_path / "data/bottle/ground_truth/scratch" / f"{seed}_mask.png", truth)
    return folder, tools


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def ignored_scratch(tools):
    ignored = np.zeros((tools.SIZE, tools.SIZE), bool)
    ignored[6:16, 4:20] = True
    return ignored


def evaluated(capsys, folder, *arguments):
    line = ["--engine", folder.model, "--data", folder.model.parent / "data", "--bootstrap", "0", "--json", *arguments]
    assert main([str(argument) for argument in line]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_mask_of_a_file_and_of_the_decision_give_the_same(line, capsys, tmp_path):
    folder, tools = line
    plain, _ = evaluated(capsys, folder)
    assert plain["ignored_share"] == {}
    path = write(tmp_path / "mask.png", ignored_scratch(tools).astype(np.uint8) * 255)
    by_file, told = evaluated(capsys, folder, "--ignore-mask", path)
    assert f"snl-eval: bottle: measured under the ignore mask {path}" in told
    mask = folder.give_ignore_mask(ignored_scratch(tools))
    by_decision, told = evaluated(capsys, folder)
    assert f"snl-eval: bottle: measured under the ignore mask {mask.name} of the decision of 2024-05-01" in told
    assert by_decision["classes"] == by_file["classes"]
    assert by_decision["ignored_share"] == {"bottle": pytest.approx(160 / 1024)}
    assert by_decision["classes"]["bottle"]["hidden"] == 3
    assert by_decision["classes"]["bottle"]["metrics"]["image_auroc"]["value"] < plain["classes"]["bottle"]["metrics"]["image_auroc"]["value"] == 1
    for image in by_decision["images"]:
        frame = read_image(folder.model.parent / "data" / image["path"])
        expected = np.where(ignored_scratch(tools), 0, tools.reference_map(frame)).max()
        assert image["score"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"roi_xyxy": (0, 0, 32, 32)}, "it lies on a region of interest"), ({"frame_sizes": FrameSizes(seen_hw=[(64, 64)], any_size=False)}, "32x32")],
)
def test_mask_of_a_decision_that_does_not_fit_the_images_is_not_used_and_that_is_said(line, capsys, change, why):
    folder, tools = line
    folder.write(decisions=[change])
    folder.give_ignore_mask(ignored_scratch(tools))
    result, told = evaluated(capsys, folder)
    assert result["ignored_share"] == {}
    assert "is NOT used" in told
    assert why in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ignore-mask", "cap=mask.png"], "'cap' is not measured; expected one of bottle"),
        (["--ignore-mask", "mask.png", "--ignore-mask", "bottle=mask.png"], "names two files for 'bottle'"),
        (["--ignore-mask", "small.png"], "0.png has 32x32, the mask is for 30x32 pixels; draw it on one of them"),
        (["--ignore-mask", "gone.png"], "gone.png"),
    ],
)
def test_mask_that_fits_nothing_is_one_line(line, capsys, monkeypatch, arguments, message):
    folder, tools = line
    monkeypatch.chdir(folder.model.parent)
    write(folder.model.with_name("mask.png"), ignored_scratch(tools).astype(np.uint8) * 255)
    write(folder.model.with_name("small.png"), ignored_scratch(tools)[:, :30].astype(np.uint8) * 255)
    assert main(["--engine", "line.onnx", "--data", "data", *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in error


def test_mask_needs_its_product_where_several_are_measured(mvtec_root, line, capsys):
    folder, _ = line
    assert main(["--engine", str(folder.model), "--data", str(mvtec_root), "--ignore-mask", "m.png"]) == 2
    assert "--ignore-mask m.png must name its product, one of cap, nut: --ignore-mask cap=m.png" in capsys.readouterr().err


def test_report_hatches_what_is_not_judged_and_says_its_share(line, capsys, tmp_path):
    folder, tools = line
    folder.give_ignore_mask(ignored_scratch(tools))
    evaluated(capsys, folder, "--report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not judged: 15.6 % (ignore mask, hatched in the heat maps); 3 bad images have their defect wholly under it and count as bad." in page
    frame, ignored = tools.good_frame(0), ignored_scratch(tools)
    _, heat = heat_images(frame, np.zeros_like(frame[..., 0], np.float32), HeatScale(0.0, 1.0), ignored=ignored)
    assert (heat[~ignored] == frame[~ignored]).all()
    assert (heat[ignored] != frame[ignored]).all()
