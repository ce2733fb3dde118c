"""Pages are made from the tables alone: means, range and interval by class set, never a mean over two devices."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from snl_runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def row(variant: str, seed: int, name: str, image: float | None, pixel: float | None = None, **changes: str) -> dict[str, str]:
    """A row of a table by hand; ``image`` None for a diverged training."""
    figures = {}
    for metric, value in (("image_auroc", image), ("pixel_auroc", pixel), ("aupro", pixel)):
        ends = ("", "", "") if value is None else (f"{value}", f"{value - 0.05:.3f}", f"{value + 0.02:.3f}")
        figures |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), ends, strict=True))
    counts = dict.fromkeys(("good", "anomalous"), "") if image is None else {"good": "10", "anomalous": "20"}
    origin = {"device": "CPU one", "commit": "abc", "date": "2026-11-27", "test_images": "t"}
    scope = {"source": "snl-edge", "setting": "multi-class", "image_size": "32", "class_set": "all"}
    return {"variant": variant, "seed": str(seed), "class": name, **scope, **counts, **figures, **origin, **changes}


def rendered(folder: Path, *rows: dict[str, str], name: str = "tiny") -> dict[str, str]:
    """The files of a page with one marker, for a table of these rows."""
    from benchmarks.accuracy.render import rendered as render
    from benchmarks.accuracy.results import ACCURACY
    from benchmarks.accuracy.tables import merge_rows

    merge_rows(folder / "results" / f"{name}.csv", ACCURACY, rows)
    (folder / "pages").mkdir(exist_ok=True)
    (folder / "pages" / "page.md").write_text(f"# Page\n\n<!-- table: {name} -->\n\nThe end.\n")
    return render(folder / "pages", folder / "results")


def both_classes(variant: str, seed: int, image: float, **changes: str) -> list[dict[str, str]]:
    return [row(variant, seed, "cap", image, **changes), row(variant, seed, "nut", image + 0.1, 0.9, **changes)]


def test_summary_equals_student_s_t_of_scipy():
    from benchmarks.accuracy.statistics import summarize

    for count in (2, 3, 5, 12):
        values = np.random.default_rng(count).uniform(0.7, 0.75, count).tolist()
        low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
        found = summarize(values)
        assert found.interval == pytest.approx((max(low, 0), min(high, 1)), abs=2e-4)
        assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
        assert found.seed_range == pytest.approx(max(values) - min(values), abs=1e-6)


def test_single_seed_has_no_interval_and_no_range():
    from benchmarks.accuracy.statistics import summarize

    assert summarize([0.9]) == (0.9, None, None, 1)


def test_tables_show_mean_interval_and_range_per_class_set(tmp_path: Path):
    text = rendered(tmp_path, *both_classes("FD", 0, 0.80), *both_classes("FD", 1, 0.84))["page.md"]
    # cap: mean .82, range .04; t(1) = 12.706, sd = .0283, so .82 -+ .254
    assert "| FD | 2 | 0.820 [0.566, 1.000] | 0.040 | – | – | – | – |" in text
    # held out (nut): .92; all: mean of .90 and .94 and of the pixel metrics where there are masks
    assert "| FD | 2 | 0.920 [0.666, 1.000] | 0.040 | 0.900 [0.900, 0.900] | 0.000 |" in text
    assert "| FD | 2 | 0.870 [0.616, 1.000] | 0.040 | 0.900 [0.900, 0.900] | 0.000 |" in text
    assert text.index("Held-out classes: nut") < text.index("Development classes: cap") < text.index("All classes: cap, nut")
    assert "Multi-class, 32 px, CPU one, measured 2026-11-27, commits abc." in text
    assert "For tests; its figures mean nothing." in text  # the reduction is stated with the figures
    assert text.startswith("# Page\n")
    assert text.endswith("The end.\n")


def test_page_of_classes_shows_intervals_over_images_counts_and_ranges(tmp_path: Path):
    text = rendered(tmp_path, *both_classes("FD", 0, 0.80), *both_classes("FD", 1, 0.84))["tiny.md"]
    assert "| image AUROC | cap (10 + 20) | nut (10 + 20) |" in text
    assert "| FD | 0.820 (0.770–0.840) | 0.920 (0.870–0.940) |" in text
    assert "| FD | 0.040 | 0.040 |" in text
    assert "| pixel AUROC | nut (10 + 20) |" in text  # a class without masks has no column


def test_seeds_of_two_devices_are_two_rows(tmp_path: Path):
    text = rendered(tmp_path, *both_classes("FD", 0, 0.80), *both_classes("FD", 1, 0.84, device="GPU two"))["page.md"]
    assert "| FD | CPU one | 1 of 2 | 0.850 | – |" in text
    assert "| FD | GPU two | 1 of 2 | 0.890 | – |" in text


def test_one_class_runs_of_a_seed_make_one_row_and_a_seed_that_lacks_a_class_does_not_count(tmp_path: Path):
    whole = [row("FD", 0, "cap", 0.8, setting="one-class"), row("FD", 0, "nut", 0.9, 0.7, setting="one-class")]
    text = rendered(tmp_path, *whole, row("FD", 1, "cap", 0.7, setting="one-class"))["page.md"]
    assert "| FD | 1 of 2 | 0.850 | – | 0.700 |" in text


def test_row_that_lacks_classes_of_a_set_stands_with_the_others_alone(tmp_path: Path):
    text = rendered(tmp_path, *both_classes("FD", 0, 0.8), row("SNL(FD)", 0, "cap", 0.7))["page.md"]
    assert text.count("| SNL(FD) | 1 of 2 | 0.700 | – |") == 1  # with the development class; neither with the held-out one nor with all


def test_diverged_seed_is_named(tmp_path: Path):
    text = rendered(tmp_path, *both_classes("FD", 0, 0.8), row("FD", 1, "cap", None), row("FD", 1, "nut", None))["page.md"]
    assert "| FD | 1 of 2, diverged: 1 | 0.850 | – |" in text


def test_baselines_stand_below_with_their_package(tmp_path: Path):
    text = rendered(tmp_path, *both_classes("PatchCore", 0, 0.85, source="anomalib 2.7.0"), *both_classes("FD", 0, 0.8))["page.md"]
    own = text.index("| FD | 1 of 2 | 0.850 |")
    assert own < text.index("| PatchCore (anomalib 2.7.0) | 1 of 2 | 0.900 |")


def test_plot_has_a_dot_per_seed_at_its_mean_over_the_held_out_classes(tmp_path: Path):
    plot = ElementTree.fromstring(rendered(tmp_path, *both_classes("FD", 0, 0.80), *both_classes("FD", 1, 0.84))["tiny.svg"])
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert [dot.findtext("svg:title", namespaces=names) for dot in plot.findall("svg:circle", names)] == ["0.900", "0.940"]
    assert plot.findtext("svg:line[@class='mean']/svg:title", namespaces=names) == "mean 0.920"
    assert "FD" in [label.text for label in plot.findall("svg:text", names)]


def test_scoring_ablation_is_the_mean_over_classes_then_seeds(tmp_path: Path):
    from benchmarks.accuracy.render import rendered as render
    from benchmarks.accuracy.tables import SCORING, merge_rows

    common = {"model": "m", "scoring": "plain", "device": "CPU", "commit": "abc", "date": "2026-11-27"}
    figures = [("0", "bottle", "0.8", ""), ("0", "cookie", "0.6", "0.5"), ("1", "bottle", "0.9", ""), ("1", "cookie", "0.7", "0.5")]
    found = [{**common, "seed": seed, "class": name, "image_auroc": image, "pixel_auroc": pixel} for seed, name, image, pixel in figures]
    merge_rows(tmp_path / "scoring.csv", SCORING, found)
    (tmp_path / "page.md").write_text("<!-- table: scoring -->\n")
    assert "| plain | 0.8500 | – | 0.6500 | 0.5000 |" in render(tmp_path, tmp_path)["page.md"]


def test_combinations_are_shown_per_protocol_with_its_own_class_sets(tmp_path: Path):
    from benchmarks.accuracy.render import rendered as render
    from benchmarks.accuracy.tables import COMBINATIONS, merge_rows

    common = {"model": "m", "scoring": "sum", "device": "CPU", "commit": "abc", "date": "2026-11-28", "pixel_auroc": ""}
    figures = [("all256", "0", "bottle", "0.8"), ("all256", "1", "bottle", "0.9"), ("pill_bottle256", "0", "bottle", "0.6")]
    found = [{**common, "protocol": protocol, "seed": seed, "class": name, "image_auroc": image} for protocol, seed, name, image in figures]
    merge_rows(tmp_path / "combinations.csv", COMBINATIONS, found)
    (tmp_path / "page.md").write_text("<!-- table: combinations -->\n")
    text = render(tmp_path, tmp_path)["page.md"]
    assert "`all256`, `m`, seeds 0, 1, CPU, commit abc, 2026-11-28." in text
    assert "| sum | 0.8500 | – | – | – |" in text  # a development class of realmix
    assert "| scoring | held-out, image | held-out, pixel |" in text  # nothing was chosen on pill and bottle
    assert "| sum | 0.6000 | – |" in text


def test_contamination_is_the_mean_over_classes_then_seeds_by_share_and_support(tmp_path: Path):
    from benchmarks.accuracy.render import rendered as render
    from benchmarks.accuracy.tables import CONTAMINATION, merge_rows

    common = {"protocol": "p", "variant": "memory", "images_per_center": "2", "device": "CPU", "commit": "abc", "date": "2026-11-28"}
    figures = [("0", "0", "a", "0.9", ""), ("10", "0", "a", "0.7", "0.5"), ("10", "0", "b", "0.8", "0.7"), ("10", "1", "a", "0.6", "0.4")]
    found = [
        {**common, "bad_percent": percent, "seed": seed, "class": name, "image_auroc": image, "moved_auroc": moved, "moved_auroc_without": moved}
        | {"good": "4", "bad": "1", "pixel_auroc": ""}
        for percent, seed, name, image, moved in figures
    ]
    merge_rows(tmp_path / "contamination.csv", CONTAMINATION, found)
    (tmp_path / "page.md").write_text("<!-- table: contamination -->\n")
    text = render(tmp_path, tmp_path)["page.md"]
    assert "| 0 % | 2 | 1 | 0.900 | – | – | – |" in text
    assert "| 10 % | 2 | 2 | 0.675 | – | 0.500 | 0.500 |" in text  # (0.75 + 0.6) / 2 and (0.6 + 0.4) / 2


def test_mixtures_are_the_mean_over_pairs_then_seeds(tmp_path: Path):
    from benchmarks.accuracy.render import rendered as render
    from benchmarks.accuracy.tables import KINDS, MIXTURES, merge_rows

    common = {"model": "m", "device": "CPU", "commit": "abc", "date": "2026-11-27"}
    found = [
        {**common, "seed": seed, "kind": kind, "of": of, "auroc": value}
        for kind in KINDS
        for seed, of, value in (("0", "a", "0.7"), ("0", "b", "0.8"), ("1", "a", "0.75"), ("1", "b", "0.75"))
    ]
    merge_rows(tmp_path / "mixtures.csv", MIXTURES, found)
    (tmp_path / "page.md").write_text("<!-- table: mixtures -->\n")
    assert "| m | 2 | 0.750 [0.750, 0.750] | 0.000 |" in render(tmp_path, tmp_path)["page.md"]


def test_marker_without_a_table_is_refused(tmp_path: Path):
    from benchmarks.accuracy.render import rendered as render

    (tmp_path / "page.md").write_text("<!-- table: nothing -->\n")
    with pytest.raises(ConfigError, match=re.escape("page.md shows the table 'nothing', and there is no ")):
        render(tmp_path, tmp_path)


def test_committed_pages_are_rendered_without_torch(tmp_path: Path):
    code = (
        "import sys; from benchmarks.accuracy.render import main; "
        f"status = main(['--out', {str(tmp_path / 'new')!r}]); sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<!-- table" not in (tmp_path / "new" / "accuracy.md").read_text()
