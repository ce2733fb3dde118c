"""The command that measures cost against size, batch, cameras, products and threads measures every value it was asked for."""

import csv
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.speed import scaling
from benchmarks.speed.models import tiny_model, untrained_graph

VALUES = {"size_px": [32], "batch": [1, 3], "cameras": [1, 2], "products": [1, 4], "threads": [1]}
FLAGS = {"size_px": "--sizes"}


@pytest.fixture
def out(tmp_path):
    """A folder in which the graph of 32 px lies already: the tiny one, which needs no export."""
    tiny = tiny_model()
    assert tiny.SIZE == 32
    tiny.write_stub_onnx(tmp_path / "best-resnet18-32-rows.onnx")
    return tmp_path


def test_graph_that_lies_in_the_folder_is_not_exported_again(out):
    before = (out / "best-resnet18-32-rows.onnx").read_bytes()
    assert untrained_graph(out, "best", 32).read_bytes() == before


def test_every_value_of_every_axis_is_in_table_file_and_plot(out, capsys):
    flags = [word for axis, values in VALUES.items() for word in (FLAGS.get(axis, f"--{axis}"), *map(str, values))]
    assert scaling.main(["--out", str(out), "--size-px", "32", "--seconds", "0.001", "--backend", "onnxruntime", *flags]) == 0
    with (out / "scaling.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["axis"], int(row["value"])) for row in rows] == [(axis, value) for axis, values in VALUES.items() for value in values]
    assert all(int(row["rounds"]) >= scaling.LEAST_ROUNDS and float(row["p50_ms"]) > 0 for row in rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if "| onnxruntime |" in line]
    assert len(lines) == len(rows)
    root = ElementTree.fromstring((out / "scaling.svg").read_text(encoding="utf-8"))
    plots = [group for group in root if group.get("class") == "plot"]
    assert [len(list(plot.iter("{http://www.w3.org/2000/svg}circle"))) for plot in plots] == [len(values) for values in VALUES.values()]


def test_folder_that_cannot_be_written_is_one_line(out, capsys):
    (out / "scaling.csv").mkdir()
    assert scaling.main(["--out", str(out), "--axes", "products"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "cannot write" in captured.err
