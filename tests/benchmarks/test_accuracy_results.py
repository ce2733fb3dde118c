"""Finished runs become rows of the tables, nothing is lost or mixed on the way, and the committed tables hold to their protocols and limits."""

import json
from pathlib import Path

import pytest

from snl_runtime.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
NOT_OF_A_PROTOCOL = ("combinations", "contamination", "int8", "latency", "line", "mixtures", "scoring")
TABLES = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))


def write_record(out: Path, variant: str, seed: int, *, image: float = 0.8, **changes) -> None:
    """A record by hand: class cap without masks, class nut with."""

    def group(value: float, pixel: float | None) -> dict:
        metrics = {"image_auroc": value, "pixel_auroc": pixel, "aupro": pixel}
        return {
            "good": 10,
            "anomalous": 20,
            "metrics": {name: {"value": one, "interval": None if one is None else [one - 0.05, one + 0.02]} for name, one in metrics.items()},
        }

    plain = {
        "record": 1,
        "protocol": "tiny",
        "variant": variant,
        "setting": "multi-class",
        "class_set": "all",
        "classes": ["cap", "nut"],
        "image_size": 32,
        "seed": seed,
        "source": "snl-edge",
        "data": {"test_sha256": {"cap": "c" * 64, "nut": "d" * 64}},
        "evaluation": {"classes": {"cap": group(image, None), "nut": group(0.9, 0.7)}},
        "provenance": {"commit": "abc", "device": "CPU one", "finished_at": "2026-11-27T10:00:00+00:00"},
        "slices": [{"commit": "abc", "device": "CPU one"}],
        **changes,
    }
    (out / "tiny").mkdir(parents=True, exist_ok=True)
    (out / "tiny" / f"{variant}_{seed}.json").write_text(json.dumps(plain))


def table(results: Path) -> list[dict[str, str]]:
    from benchmarks.accuracy.results import ACCURACY
    from benchmarks.accuracy.tables import read_rows

    return read_rows(results / "tiny.csv", ACCURACY)


def exported(out: Path, results: Path, command, *arguments: object) -> tuple[int, str, str]:
    return command("--export", "--out", out, "--results", results, *arguments)


def test_a_run_becomes_a_row_per_class(tmp_path: Path, command):
    write_record(tmp_path / "runs", "FD", 0)
    assert exported(tmp_path / "runs", tmp_path, command) == (0, f"{tmp_path / 'tiny.csv'}: 2 rows of 1 runs\n", "")
    cap, nut = table(tmp_path)
    expected = {"class": "cap", "seed": "0", "good": "10", "anomalous": "20", "device": "CPU one", "commit": "abc", "date": "2026-11-27"}
    assert expected.items() <= cap.items()
    assert (cap["image_auroc"], cap["image_auroc_low"], cap["image_auroc_high"], cap["pixel_auroc"]) == ("0.80000000", "0.75000000", "0.82000000", "")
    assert (nut["aupro"], nut["test_images"]) == ("0.70000000", "d" * 12)


def test_export_keeps_earlier_rows_and_tells_which_it_replaces(tmp_path: Path, command):
    write_record(tmp_path / "runs", "FD", 0)
    exported(tmp_path / "runs", tmp_path, command)
    once = (tmp_path / "tiny.csv").read_bytes()
    assert exported(tmp_path / "runs", tmp_path, command)[:2] == (0, f"{tmp_path / 'tiny.csv'}: 2 rows of 1 runs\n")
    assert (tmp_path / "tiny.csv").read_bytes() == once
    write_record(tmp_path / "others", "FD", 1)
    write_record(tmp_path / "others", "FD", 0, image=0.7)
    _, out, _ = exported(tmp_path / "others", tmp_path, command)
    assert "4 rows of 2 runs, 1 in place of other figures" in out
    assert [(row["seed"], row["class"], row["image_auroc"]) for row in table(tmp_path)] == [
        ("0", "cap", "0.70000000"),
        ("0", "nut", "0.90000000"),
        ("1", "cap", "0.80000000"),
        ("1", "nut", "0.90000000"),
    ]


def test_a_run_on_two_devices_names_both_and_a_diverged_one_has_no_figures(tmp_path: Path, command):
    pieces = [{"commit": "abc", "device": "CPU one"}, {"commit": "def", "device": "GPU two"}]
    write_record(tmp_path / "runs", "FD", 0, slices=pieces, failure="the loss is no longer finite", evaluation=None)
    assert exported(tmp_path / "runs", tmp_path, command)[0] == 0
    cap, _ = table(tmp_path)
    assert (cap["device"], cap["commit"], cap["good"], cap["image_auroc"]) == ("CPU one and GPU two", "abc def", "", "")


def test_other_test_images_are_refused(tmp_path: Path, command):
    write_record(tmp_path / "runs", "FD", 0)
    exported(tmp_path / "runs", tmp_path, command)
    before = (tmp_path / "tiny.csv").read_bytes()
    write_record(tmp_path / "others", "FD", 1, data={"test_sha256": {"cap": "c" * 64, "nut": "e" * 64}})
    status, _, err = exported(tmp_path / "others", tmp_path, command)
    assert (status, "different test images of class 'nut'" in err, err.count("\n")) == (2, True, 1)
    assert (tmp_path / "tiny.csv").read_bytes() == before


@pytest.mark.parametrize(("arguments", "status"), [(("--protocol", "tiny"), 0), (("--protocol", "reduced"), 2)])
def test_export_of_one_protocol_leaves_the_others_alone(arguments: tuple[str, ...], status: int, tmp_path: Path, command):
    write_record(tmp_path / "runs", "FD", 0)
    found, _, err = exported(tmp_path / "runs", tmp_path, command, *arguments)
    assert (found, "there are no finished runs" in err) == (status, status == 2)


def test_record_that_lacks_something_is_named(tmp_path: Path, command):
    write_record(tmp_path / "runs", "FD", 0, provenance={"commit": "abc", "device": "CPU one"})
    status, _, err = exported(tmp_path / "runs", tmp_path, command)
    assert (status, err.count("\n")) == (2, 1)
    assert "the record of FD, seed 0, of tiny lacks 'finished_at'; run it again" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant,seed\nFD,0\n", "has the columns variant, seed, expected"),
        ("{header}\nFD,snl-edge\n", "line 2 does not have 22 fields"),
        ("{header}\n{row}\n{row}\n", "has two rows of FD"),
    ],
)
def test_a_table_that_is_none_is_refused_and_left_alone(text: str, message: str, tmp_path: Path, command):
    from benchmarks.accuracy.results import ACCURACY

    write_record(tmp_path / "runs", "FD", 0)
    text = text.format(header=",".join(ACCURACY.columns), row=",".join(["FD"] * len(ACCURACY.columns)))
    (tmp_path / "tiny.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        table(tmp_path)
    assert exported(tmp_path / "runs", tmp_path, command)[0] == 2
    assert (tmp_path / "tiny.csv").read_text() == text


# Committed tables


def test_committed_results_stay_small():
    assert 0 < len(TABLES) <= 24
    assert sum(path.stat().st_size for path in TABLES) <= 1_000_000


def test_every_committed_table_is_shown_by_one_marker():
    from benchmarks.accuracy.render import MARKER, PAGES

    shown = [name for page in PAGES.glob("*.md") for name in MARKER.findall(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == [path.stem for path in TABLES]


@pytest.mark.parametrize("path", [path for path in TABLES if path.stem not in NOT_OF_A_PROTOCOL], ids=lambda path: path.stem)
def test_rows_of_a_protocol_are_runs_that_it_stands_for(path: Path):
    from benchmarks.accuracy.protocol import expand, load_protocol
    from benchmarks.accuracy.results import ACCURACY, check_test_images
    from benchmarks.accuracy.tables import read_rows

    protocol = load_protocol(path.stem)
    (classes,) = protocol.class_sets.values()
    known = {(run.variant, run.setting, str(run.image_size), str(run.seed)) for run in expand(protocol, classes)}
    found = read_rows(path, ACCURACY)
    own = {(row["variant"], row["setting"], row["image_size"], row["seed"]) for row in found if row["source"] == "snl-edge"}
    assert own
    assert own <= known
    assert {row["class"] for row in found} <= set(classes)
    check_test_images(path, [])


def held_out(protocol: str, variant: str) -> str:
    """Means over the held-out classes, then over three seeds of one device, straight from the file."""
    from benchmarks.accuracy.protocol import load_protocol
    from benchmarks.accuracy.results import ACCURACY
    from benchmarks.accuracy.tables import read_rows

    classes = load_protocol(protocol).held_out
    found = [row for row in read_rows(ROOT / "benchmarks" / "results" / f"{protocol}.csv", ACCURACY) if row["variant"] == variant]
    assert {row["device"] for row in found} in ({"CPU AMD EPYC"}, {"NVIDIA H200"})
    means = []
    for metric in ("image_auroc", "pixel_auroc"):
        seeds = [[float(row[metric]) for row in found if row["seed"] == seed and row["class"] in classes and row[metric]] for seed in ("0", "1", "2")]
        means.append(sum(sum(values) / len(values) for values in seeds) / 3)
    return f"{means[0]:.3f} / {means[1]:.3f}"


@pytest.mark.parametrize(
    ("protocol", "variant", "expected"),
    [
        ("reduced256", "RD with the rest of best", "0.898 / 0.967"),
        ("reduced256", "SNL(RD) best", "0.898 / 0.967"),
        ("full", "SNL(RD)", "0.867 / 0.940"),
        ("full", "RD", "0.864 / 0.945"),
        ("parts", "best", "0.886 / 0.949"),
        ("parts", "without synthetic anomalies", "0.865 / 0.929"),
        ("long256", "SNL(RD) best", "0.901 / 0.963"),
        ("full", "RD, constant learning rate, 24 epochs", "0.803 / 0.942"),
    ],
)
def test_figures_in_the_accuracy_page_are_those_of_the_tables(protocol: str, variant: str, expected: str):
    assert held_out(protocol, variant) == expected
    assert expected in (ROOT / "docs" / "results" / "accuracy.md").read_text(encoding="utf-8")


def test_headline_of_the_accuracy_page_is_that_of_the_tables():
    text = " ".join((ROOT / "docs" / "results" / "accuracy.md").read_text(encoding="utf-8").split())
    for variant, words in (
        ("SNL(RD) best", "image AUROC {} and pixel AUROC {} on the four held-out classes"),
        ("RD, trained and smoothed as best", "Reverse distillation trained alike reaches {} and {}"),
    ):
        assert words.format(*held_out("all256", variant).split(" / ")) in text


def test_a_table_of_an_unknown_protocol_is_not_made(tmp_path: Path):
    from benchmarks.accuracy.results import export

    write_record(tmp_path / "runs", "FD", 0)
    (tmp_path / "runs" / "tiny").rename(tmp_path / "runs" / "mine")
    with pytest.raises(ConfigError, match="there is no protocol 'mine'"):
        export(tmp_path / "runs", tmp_path)
    assert not list(tmp_path.glob("*.csv"))
