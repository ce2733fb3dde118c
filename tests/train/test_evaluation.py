"""Evaluation reads images as the line does, measures at network resolution, and leaves out what is not known instead of guessing it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from snl_runtime.errors import BackendUnavailableError, ConfigError, DataError, InferenceError
from snl_runtime.images.files import read_image
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.images.views import Tiles
from snl_runtime.types import AnomalyMap
from snl_train import metrics
from snl_train.checkpoint import Checkpoint
from snl_train.config import ModelConfig, TrainConfig
from snl_train.data.layouts import read_dataset
from snl_train.data.samples import Sample
from snl_train.evaluation import CheckpointScorer, evaluate, score_samples
from snl_train.evaluation_table import format_measure, format_tables
from snl_train.measures import METRICS, Bootstrap, Measure, ScoredImage, measure_groups
from snl_train.models import build_model
from snl_train.scoring import anomaly_map
from tolerances import FLOAT32_ABS

NO_BOOTSTRAP = Bootstrap(resamples=0)


class BrightnessScorer:
    """The map is the red channel: what it gives for a file can be derived from the file."""

    size_hw = (20, 24)

    def __init__(self):
        self.seen = []

    def score_inputs(self, images):
        self.seen += list(images)
        maps = images[..., 0].astype(np.float32) / 255
        return maps.max(axis=(1, 2)), maps


def test_images_reach_the_model_as_on_the_line(mvtec_root):
    scorer = BrightnessScorer()
    index = read_dataset(mvtec_root)
    evaluation = evaluate(scorer, index.test, batch_size=3, bootstrap=NO_BOOTSTRAP)
    assert [image.sample.path for image in evaluation.images] == [sample.path for sample in index.test]
    for sample, seen in zip(index.test, scorer.seen):
        np.testing.assert_array_equal(seen, prepare(read_image(sample.path), "rgb", InputSpec(size_hw=(20, 24))))


def test_image_seen_in_tiles_has_the_largest_score_of_any_and_its_map_at_the_networks_size(mvtec_root):
    class Square(BrightnessScorer):
        size_hw = (20, 20)

    scorer = Square()
    samples = read_dataset(mvtec_root).test[:3]
    images, _ = score_samples(scorer, samples, batch_size=4, tiles=Tiles(20, 4, with_whole_frame=False))
    for sample, scored in zip(samples, images):
        frame = read_image(sample.path)
        assert scored.score == pytest.approx(frame[..., 0].max() / 255)
        assert scored.mask is None or scored.mask.shape == (20, 20)
        np.testing.assert_allclose(scored.anomaly_map, upsample_map(frame[..., 0] / np.float32(255), (20, 20)), atol=FLOAT32_ABS)
    assert all(seen.shape == (20, 20, 3) for seen in scorer.seen)


def test_image_seen_in_tiles_and_as_a_whole_has_the_larger_score_of_both(mvtec_root):
    """A scorer that marks the one view which is the reduced image, or all others."""

    class Marking(BrightnessScorer):
        size_hw = (20, 20)
        marks_whole = True

        def score_inputs(self, images):
            marked = np.array([np.array_equal(image, self.whole) == self.marks_whole for image in images])
            maps = np.where(marked, 5, 1)[:, None, None] * np.ones((1, *self.size_hw), np.float32)
            return maps.max(axis=(1, 2)), maps

    (sample,) = read_dataset(mvtec_root).test[:1]
    scorer = Marking()
    scorer.whole = prepare(read_image(sample.path), "rgb", InputSpec(size_hw=(20, 20)))
    for whole, marks_whole, expected in ((True, True, 5), (True, False, 5), (False, True, 1)):
        scorer.marks_whole = marks_whole
        (scored,), _ = score_samples(scorer, [sample], batch_size=4, tiles=Tiles(20, 4, with_whole_frame=whole))
        assert scored.score == expected
        assert np.allclose(scored.anomaly_map, expected, atol=FLOAT32_ABS)


def test_image_score_is_what_the_model_says_and_auroc_is_scikit_learns(mvtec_root):
    evaluation = evaluate(BrightnessScorer(), read_dataset(mvtec_root).test, bootstrap=NO_BOOTSTRAP)
    for image in evaluation.images:
        assert image.score == image.anomaly_map.max()
    flags = [image.sample.is_anomalous for image in evaluation.images]
    expected = roc_auc_score(flags, [image.score for image in evaluation.images])
    assert evaluation.pooled.measures["image_auroc"].value == pytest.approx(expected, abs=1e-12)


def test_a_mask_cell_is_anomalous_at_any_coverage(mvtec_root):
    # Masks cover rows 4..8 and columns 6..11 of 40 x 48; at half size that touches rows 2..4 and columns 3..5.
    evaluation = evaluate(BrightnessScorer(), read_dataset(mvtec_root).test, bootstrap=NO_BOOTSTRAP)
    (mask, *_) = [image.mask for image in evaluation.images if image.sample.class_name == "nut" and image.sample.is_anomalous]
    expected = np.zeros((20, 24), bool)
    expected[2:5, 3:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_class_without_masks_has_no_pixel_metrics_and_stays_out_of_the_pooled_ones(mvtec_root):
    evaluation = evaluate(BrightnessScorer(), read_dataset(mvtec_root).test, bootstrap=NO_BOOTSTRAP)
    cap, nut = evaluation.classes
    assert (cap.name, cap.good, cap.anomalous, cap.masked) == ("cap", 2, 2, 0)
    assert (nut.name, nut.good, nut.anomalous, nut.masked) == ("nut", 2, 2, 2)
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"):
        assert cap.measures[name].value is None
        assert nut.measures[name].value is not None
        assert evaluation.mean.measures[name].value == evaluation.pooled.measures[name].value == nut.measures[name].value
    assert evaluation.mean.measures["image_auroc"].value == np.mean([cap.measures["image_auroc"].value, nut.measures["image_auroc"].value])


def scored(name: str, is_anomalous: bool, score: float, anomaly_map: AnomalyMap, mask=None) -> ScoredImage:
    sample = Sample(path=Path(f"{name}.png"), class_name=name, split="test", is_anomalous=is_anomalous)
    return ScoredImage(sample=sample, score=score, anomaly_map=anomaly_map, mask=mask)


def random_class(name: str, seed: int, offset: float = 0.0, count: int = 12) -> list[ScoredImage]:
    generator = np.random.default_rng(seed)
    images = []
    for index in range(count):
        mask = np.zeros((16, 16), bool)
        if index % 2:
            mask[3 : 6 + index // 3, 2:9] = True
        one = (generator.normal(size=(16, 16)) + mask + offset).astype(np.float32)
        images.append(scored(name, bool(index % 2), float(one.max()), one, mask))
    return images


def test_group_metrics_equal_the_metrics_of_its_pixels():
    images = random_class("a", 1) + random_class("b", 2)
    (first, _), _, pooled = measure_groups(images, NO_BOOTSTRAP)
    maps, masks = np.stack([image.anomaly_map for image in images]), np.stack([image.mask for image in images])
    assert first.measures["pixel_auroc"].value == pytest.approx(roc_auc_score(masks[:12].ravel(), maps[:12].ravel()), abs=1e-12)
    assert first.measures["aupro"].value == metrics.aupro(maps[:12], masks[:12])
    assert pooled.measures["pixel_auroc"].value == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_pooled_metrics_show_what_the_mean_over_classes_hides():
    # Each class is separated well, but the good images of one score above the bad images of the other.
    images = random_class("a", 1) + random_class("b", 1, offset=50.0)
    _, mean, pooled = measure_groups(images, NO_BOOTSTRAP)
    assert pooled.measures["image_auroc"].value < mean.measures["image_auroc"].value


def test_bad_images_without_a_mask_count_for_the_image_metrics_only():
    images = random_class("a", 1)
    unmasked = scored("a", True, 99.0, np.full((16, 16), 99, np.float32))
    (without,), _, _ = measure_groups(images, NO_BOOTSTRAP)
    (group,), _, _ = measure_groups([*images, unmasked], NO_BOOTSTRAP)
    assert (group.anomalous, group.masked) == (7, 6)
    assert group.measures["aupro"] == without.measures["aupro"]
    assert group.measures["image_auroc"].value > without.measures["image_auroc"].value


def test_a_group_with_one_kind_of_image_has_no_value_and_is_left_out_of_the_mean():
    good_only = [image for image in random_class("b", 2) if not image.sample.is_anomalous]
    (first, second), mean, _ = measure_groups(random_class("a", 1) + good_only, Bootstrap(resamples=20))
    assert all(measure == Measure(value=None) for measure in second.measures.values())
    assert second.reference_score is None
    assert mean.measures["image_auroc"].value == first.measures["image_auroc"].value
    assert mean.measures["image_auroc"].interval == first.measures["image_auroc"].interval


def test_intervals_enclose_their_value_and_follow_the_seed():
    images = random_class("a", 1, count=40)
    (group,), _, _ = measure_groups(images, Bootstrap(resamples=200, seed=4))
    (again,), _, _ = measure_groups(images, Bootstrap(resamples=200, seed=4))
    (other,), _, _ = measure_groups(images, Bootstrap(resamples=200, seed=5))
    assert group == again
    assert group != other
    for name in METRICS:
        low, high = group.measures[name].interval
        assert low <= group.measures[name].value <= high
        assert high - low < 0.6


def test_a_class_keeps_its_interval_whatever_is_measured_beside_it():
    alone, _, _ = measure_groups(random_class("b", 2), Bootstrap(resamples=30))
    together, _, _ = measure_groups(random_class("a", 1) + random_class("b", 2), Bootstrap(resamples=30))
    assert alone[0] == together[1]


def test_the_mean_of_two_classes_is_surer_than_either():
    groups, mean, _ = measure_groups(random_class("a", 1, count=40) + random_class("b", 2, count=40), Bootstrap(resamples=400))

    def width(group):
        low, high = group.measures["image_auroc"].interval
        return high - low

    assert width(mean) < max(width(group) for group in groups)


def test_two_images_of_each_kind_are_needed_for_an_interval():
    images = random_class("a", 1)[:3]
    (group,), _, _ = measure_groups(images, Bootstrap(resamples=30))
    assert group.measures["image_auroc"].value is not None
    assert group.measures["image_auroc"].interval is None


def test_an_unreadable_image_stops_or_is_listed(mvtec_root):
    index = read_dataset(mvtec_root)
    broken = index.test[1].path
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=broken.name):
        evaluate(BrightnessScorer(), index.test, bootstrap=NO_BOOTSTRAP)
    evaluation = evaluate(BrightnessScorer(), index.test, bootstrap=NO_BOOTSTRAP, skip_unreadable=True)
    assert [path for path, _ in evaluation.left_out] == [broken]
    assert len(evaluation.images) == len(index.test) - 1


def test_no_sample_at_all_is_an_error():
    with pytest.raises(DataError, match="no labeled test images"):
        evaluate(BrightnessScorer(), [])


def test_a_model_that_gives_nan_is_an_error_that_names_the_image(mvtec_root):
    class NanScorer(BrightnessScorer):
        def score_inputs(self, images):
            scores, maps = super().score_inputs(images)
            return scores, np.full_like(maps, np.nan)

    with pytest.raises(InferenceError, match=r"no finite anomaly map for .*\.png"):
        evaluate(NanScorer(), read_dataset(mvtec_root).test)


def test_progress_counts_every_image_and_group(mvtec_root):
    counts, groups = [], []
    evaluate(
        BrightnessScorer(),
        read_dataset(mvtec_root).test,
        batch_size=3,
        bootstrap=NO_BOOTSTRAP,
        on_images=counts.append,
        on_group=lambda: groups.append(1),
    )
    assert sum(counts) == 8
    assert max(counts) == 3
    assert len(groups) == 3


def make_checkpoint() -> Checkpoint:
    torch.manual_seed(5)
    config = TrainConfig(model=ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights="random", centers=4), image_size=(32, 48))
    return Checkpoint(
        config=config,
        state_dict=build_model(config.model).state_dict(),
        classes=["nut"],
        seed=5,
        epochs_done=0,
        training_image_sha256=[],
        golden_images=np.zeros((0, 32, 48, 3), np.uint8),
        golden_classes=[],
    )


def test_checkpoint_scorer_gives_the_papers_map_and_its_maximum():
    checkpoint = make_checkpoint()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    scores, maps = CheckpointScorer(checkpoint, "cpu").score_inputs(images)
    assert (scores.dtype, scores.shape, maps.dtype, maps.shape) == (np.float32, (3,), np.float32, (3, 32, 48))
    np.testing.assert_array_equal(scores, maps.max(axis=(1, 2)))
    # Second derivation: normalized by hand, one image at a time, the literal map of the paper.
    model = checkpoint.build_model()
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for image, one in zip(images, maps):
        normalized = torch.from_numpy(((image / 255 - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32))
        with torch.no_grad():
            expected = anomaly_map(*model(normalized), (32, 48))[0, 0]
        np.testing.assert_allclose(one, expected.numpy(), rtol=1e-4, atol=1e-5)  # float32, other order of operations


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_does_not_exist_is_a_one_line_error(device):
    with pytest.raises(BackendUnavailableError, match=device) as caught:
        CheckpointScorer(make_checkpoint(), device)
    assert "\n" not in str(caught.value)


def test_full_gpu_is_one_sentence_that_says_what_to_do(monkeypatch):
    def full(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = CheckpointScorer(make_checkpoint())
    monkeypatch.setattr(scorer.model, "forward", full)
    with pytest.raises(ConfigError, match="the GPU has too little memory for batches of 3; lower the batch size, or take --device cpu"):
        scorer.score_inputs(np.zeros((3, 32, 48, 3), np.uint8))


def test_tables_show_a_dash_where_a_metric_is_not_defined(mvtec_root):
    text = format_tables(evaluate(BrightnessScorer(), read_dataset(mvtec_root).test, bootstrap=Bootstrap(resamples=20)))
    images, pixels, footnote = text.split("\n\n")
    assert [line.split()[0].strip("-") for line in images.splitlines()] == ["images", "", "cap", "nut", "mean", "pooled"]
    (cap,) = [line for line in pixels.splitlines() if line.startswith("cap")]
    assert cap.split() == ["cap", "0", "-", "-", "-", "-"]
    assert "20 resamples" in footnote
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_measure_reads_as_value_and_interval():
    assert format_measure(Measure(value=0.91234, interval=metrics.Interval(0.88, 0.9412))) == "0.912 [0.880, 0.941]"
    assert format_measure(Measure(value=1.0)) == "1.000"
    assert format_measure(Measure(value=None)) == "-"


def test_plain_values_hold_null_and_relative_paths(mvtec_root):
    index = read_dataset(mvtec_root)
    plain = evaluate(BrightnessScorer(), index.test, bootstrap=NO_BOOTSTRAP).to_plain(relative_to=index.root)
    assert plain["classes"]["cap"]["metrics"]["aupro"] == {"value": None, "interval": None}
    assert plain["images"][0]["path"] == "cap/test/good/000.png"
    assert {entry["class"] for entry in plain["images"]} == {"cap", "nut"}


def test_gray_pictures_are_evaluated_too(tmp_path):
    for split, value in (("good", 10), ("dent", 240)):
        for index in range(2):
            folder = tmp_path / "test" / split
            folder.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / f"{index}.png"), np.full((9, 9), value + index, np.uint8))
    index = read_dataset(tmp_path, require_train=False)
    evaluation = evaluate(BrightnessScorer(), index.test, bootstrap=NO_BOOTSTRAP)
    assert evaluation.pooled.measures["image_auroc"].value == 1.0
