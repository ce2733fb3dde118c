"""Training images and test images never meet in one folder, and the table counts by hand what eight bits change."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for product in ("bolt", "nut"):
        for folder in ("train/good", "test/good", "test/scratch", "ground_truth/scratch"):
            path = tmp_path / "data" / product / folder
            path.mkdir(parents=True)
            (path / "0.png").write_bytes(PNG_START + f"{product} {folder}".encode())
    return tmp_path / "data"


def test_links_keep_training_and_test_images_apart(data, tmp_path):
    from benchmarks.int8_gate import link_images

    for _ in range(2):  # a second run finds them
        link_images(data, tmp_path / "work")
    read = {
        path.relative_to(tmp_path / "work").as_posix(): path.read_bytes().removeprefix(PNG_START).decode()
        for path in (tmp_path / "work").rglob("*.png")
    }
    assert {name.split("/")[0]: text.split()[1] for name, text in read.items() if name.startswith("ranges")} == {"ranges": "train/good"}
    assert all(text.split()[1].startswith("test/") for name, text in read.items() if not name.startswith("ranges"))
    assert sorted(name for name in read if name.startswith("bad")) == ["bad/bolt/scratch/0.png", "bad/nut/scratch/0.png"]
    assert len(read) == 2 * (1 + 2 + 1)


def test_table_counts_flips_and_the_largest_change():
    from benchmarks.int8_gate import Scores, TestImages, figures, summary, table

    generator = np.random.default_rng(0)
    maps = generator.uniform(0.2, 1.0, (4, 6, 6)).astype(np.float32)
    maps[:, 0, 0] = [1.0, 1.5, 2.0, 2.5]
    changed = maps.copy()
    changed[1, 0, 0] = 1.7  # crosses 1.6, stays within its band of 10 %, and moves by 0.2 of 1.5
    images = TestImages([Path(str(index)) for index in range(4)], np.array(["bolt"] * 4), np.array([False, False, True, True]))
    peaks = [Scores(values.max(axis=(1, 2)).astype(np.float64), values) for values in (maps, changed)]
    rows = figures(images, *peaks, {"bolt": 1.6})
    lowest = np.corrcoef(maps[1].ravel(), changed[1].ravel())[0, 1]
    assert table(rows).splitlines()[2] == f"| bolt | 4 | {lowest:.4f} | 1.0000 | {0.2 / 1.5:.4f} | 1.0000 | 1.0000 | 1 | 0 |"
    assert [row["product"] for row in rows] == ["bolt", "all"]
    assert rows[1]["flips"] == "no decision"  # a threshold belongs to one product
    assert summary(*peaks).startswith("On 1 images a map value moves by more than a tenth")


def test_rows_have_the_columns_of_the_committed_table_and_replace_their_own(tmp_path):
    from benchmarks.accuracy.tables import INT8, RESULTS, merge_rows, read_rows

    committed = (RESULTS / "int8.csv").read_bytes()
    copy = tmp_path / "int8.csv"
    copy.write_bytes(committed)
    rows = read_rows(copy, INT8)
    assert merge_rows(copy, INT8, rows[3:5]) == 0
    assert copy.read_bytes() == committed
    assert merge_rows(copy, INT8, [{**rows[3], "flips": "7"}]) == 1
    assert read_rows(copy, INT8) == [*rows[:3], {**rows[3], "flips": "7"}, *rows[4:]]
