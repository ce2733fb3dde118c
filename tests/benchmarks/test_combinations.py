"""How maps of student and memory are put together: every rule by hand, and the sum is the package's own score."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy.combinations import RULES, normalized_maps, rules
from snl_train.config import ModelConfig, TrainConfig
from snl_train.memory_config import MemoryConfig
from snl_train.models import build_model
from snl_train.scoring import score_features

SIZE_HW = (64, 64)
# One image of 1 x 2 pixels: the student's map and those of two layers.
STUDENT, FIRST, SECOND = (1.0, 4.0), (2.0, 3.0), (6.0, 0.0)
MAPS = np.array([STUDENT, FIRST, SECOND], np.float32)[:, None, None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("student alone", (1, 4)),
        ("memory alone", (8, 3)),
        ("sum", (9, 7)),
        ("sum, student doubled", (10, 11)),
        ("sum, student halved", (8.5, 5)),
        ("maximum of student and layers", (6, 4)),
        ("maximum of student and mean of layers", (4, 4)),
        ("product of student and memory", (8, 12)),
        ("layer 1 of the memory alone", (2, 3)),
        ("layer 3 of the memory alone", (6, 0)),
        ("sum of student and layer 1", (3, 7)),
        ("sum of student and layer 3", (7, 4)),
    ],
)
def test_a_rule_is_what_its_name_says(name: str, expected: tuple[float, float]):
    found = rules((1, 3))
    assert len(found) == 12
    np.testing.assert_array_equal(found[name](MAPS), np.array(expected, np.float32)[None, None])


@pytest.fixture(scope="module")
def both():
    """A model with student and memory, and its settings; centers and weights are drawn."""
    torch.manual_seed(0)
    config = TrainConfig(model=ModelConfig(method="fd", teacher="resnet18", teacher_weights="random"), memory=MemoryConfig(centers=5))
    model = build_model(config.model, config.memory).eval()
    model.memory.take_centers([torch.nn.functional.normalize(torch.randn(5, channels)) for channels in (64, 128)])
    for codebook, weight in zip(model.memory.books, (3.0, 0.5), strict=True):
        codebook.weight.fill_(weight)
    model.memory.student_weight.fill_(7.0)
    return model, config


def test_the_sum_is_the_score_of_the_package(both):
    model, config = both
    images = np.random.default_rng(0).integers(0, 256, (3, *SIZE_HW, 3), dtype=np.uint8)
    with torch.no_grad():
        teacher, student = model(model.normalize(torch.from_numpy(images)))
        expected, scores = score_features(teacher, student, SIZE_HW, config.score, whitening=model.whitening, memory=model.memory)
        of_student, _ = score_features(teacher, student, SIZE_HW, config.score, whitening=model.whitening)
        of_memory, _ = score_features(teacher, [], SIZE_HW, config.score, memory=model.memory)
    maps = normalized_maps(model, images, config)
    assert maps.shape == (3, 3, *SIZE_HW)
    np.testing.assert_allclose(RULES["sum, student doubled"](maps), expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(RULES["sum, student doubled"](maps).reshape(3, -1).max(1), scores, rtol=1e-5)
    np.testing.assert_allclose(RULES["student alone"](maps), 3.5 * of_student[:, 0], rtol=1e-5)
    np.testing.assert_allclose(RULES["memory alone"](maps), of_memory[:, 0], rtol=1e-5)


@pytest.fixture(scope="module")
def checkpoints(one_thread: None, two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training with student and memory and one without a student, where the benchmark leaves them."""
    from benchmarks.accuracy.protocol import expand, parse_protocol
    from benchmarks.accuracy.session import Job, Session

    out = tmp_path_factory.mktemp("both")
    base = {"epochs": 1, "batch_size": 4, "golden_samples": 2, "model": {"teacher": "resnet18", "teacher_weights": "random"}, "memory.centers": 4}
    variants = {name: {"overrides": {"model.method": method}} for name, method in (("both", "fd"), ("alone", "memory"))}
    protocol = parse_protocol("tiny", {"base": base, "image_sizes": [32], "seeds": [0], "variants": variants})
    session = Session(Job(protocol=protocol, data=two_classes, out=out, classes=("cap", "nut")))
    for run in expand(protocol, ["cap", "nut"]):
        assert session.perform(run) == "finished"
    return {name: out / "tiny" / f"{name}_32_all_multi_s0.pt" for name in variants}


def test_the_sum_in_the_table_has_the_figures_of_the_run(checkpoints, two_classes: Path, tmp_path: Path, capsys):
    from benchmarks.accuracy.combinations import main
    from benchmarks.accuracy.records import read_record
    from benchmarks.accuracy.tables import COMBINATIONS, read_rows

    path, table = checkpoints["both"], tmp_path / "combinations.csv"
    assert main(["--data", str(two_classes), "--checkpoints", str(path), "--out", str(table), "--commit", "abc"]) == 0
    assert f"{table}: 24 rows, 0 in place of other figures" in capsys.readouterr().out  # 12 rules, two classes
    found = {(row["scoring"], row["class"]): row for row in read_rows(table, COMBINATIONS)}
    assert {(row["protocol"], row["model"], row["seed"]) for row in found.values()} == {("tiny", "both_32_all_multi", "0")}
    classes = read_record(path.with_suffix(".json"))["evaluation"]["classes"]
    assert float(found["sum, student doubled", "nut"]["image_auroc"]) == pytest.approx(classes["nut"]["metrics"]["image_auroc"]["value"], abs=1e-6)
    assert float(found["sum, student doubled", "nut"]["pixel_auroc"]) == pytest.approx(classes["nut"]["metrics"]["pixel_auroc"]["value"], abs=1e-4)
    assert found["sum, student doubled", "cap"]["pixel_auroc"] == ""  # no masks


def test_a_memory_without_a_student_is_refused(checkpoints, two_classes: Path, tmp_path: Path, capsys):
    from benchmarks.accuracy.combinations import main

    table = tmp_path / "combinations.csv"
    assert main(["--data", str(two_classes), "--checkpoints", str(checkpoints["alone"]), "--out", str(table)]) == 2
    assert "the checkpoint of 'memory' with 4 centers has no student beside a memory" in capsys.readouterr().err
    assert not table.exists()


def test_a_checkpoint_outside_its_protocol_s_folder_is_refused(two_classes: Path, tmp_path: Path, capsys):
    from benchmarks.accuracy.combinations import main

    assert main(["--data", str(two_classes), "--checkpoints", str(tmp_path / "mine" / "x.pt"), "--out", str(tmp_path / "t.csv")]) == 2
    assert "x.pt lies in the folder 'mine', which is no protocol" in capsys.readouterr().err
