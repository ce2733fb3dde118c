"""The rows of docs/effects.md about snl-calibrate: the decisions come last, all or none, and no failure before them leaves one."""

import dataclasses
import subprocess
import sys

import pytest

from snl_calibration import appending
from snl_calibration.appending import append_decisions
from snl_calibration.calibrate import calibrate
from snl_calibration.cli import main
from snl_calibration.options import CalibrationOptions
from snl_runtime.errors import SinkError
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_normalization

PROBED_BYTES = 5000
"""More than what is probed, less than any page."""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def arguments(station, *more):
    return [str(argument) for argument in ("--engine", station.model, "--good", station.good, "--max-frr", 0.1, *more)]


@pytest.fixture
def two_products(station):
    station.write_good("disk", count=30)
    station.write_good("ring", count=30, seed=3)
    return station


def test_unreadable_image_of_a_later_product_leaves_the_manifest_alone(two_products, capsys):
    (two_products.good / "ring" / "029.png").write_bytes(b"torn")
    before = contents(two_products.root)
    assert main(arguments(two_products)) == 2
    assert "029.png" in capsys.readouterr().err
    assert contents(two_products.root) == before


def test_decisions_of_all_products_appear_in_one_change(two_products, monkeypatch):
    written = []
    real = appending.update_manifest
    monkeypatch.setattr(appending, "update_manifest", lambda path, change: written.append(real(path, change)))
    two_products.fit_all()
    assert [[decision.product for decision in manifest.decisions] for manifest in written] == [["disk", "ring"]]


@pytest.mark.parametrize("fault", ["no folder", "folder is a file", "read-only", "page is a folder"])
def test_page_that_cannot_be_written_is_one_line_before_an_image_is_read(two_products, capsys, read_only, fault):
    (two_products.good / "disk" / "000.png").write_bytes(b"would be named, if it were read")
    page = two_products.root / "pages" / "page.html"
    if fault == "folder is a file":
        page.parent.write_text("a file")
    elif fault != "no folder":
        (page if fault == "page is a folder" else page.parent).mkdir(parents=True)
    if fault == "read-only":
        read_only(page.parent)
    before = contents(two_products.root)
    assert main(arguments(two_products, "--report", page)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"cannot write {page}" in captured.err
    assert captured.err.count("\n") == 1
    assert contents(two_products.root) == before


def test_page_that_finds_no_room_after_the_fit_leaves_no_decision(two_products, capsys, file_size_limit):
    before = contents(two_products.root)
    with file_size_limit(PROBED_BYTES):
        assert main(arguments(two_products, "--report", two_products.root / "page.html")) == 2
    assert "page.html: File too large" in capsys.readouterr().err
    assert contents(two_products.root) == before


def test_standard_output_that_is_full_leaves_no_decision(two_products):
    before = contents(two_products.root)
    code = f"import sys; from snl_calibration.cli import main; sys.exit(main({arguments(two_products, '--json')!r}))"
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert contents(two_products.root) == before


def test_manifest_that_cannot_be_written_is_refused_before_an_image_is_read(two_products, capsys, read_only):
    (two_products.good / "disk" / "000.png").write_bytes(b"would be named, if it were read")
    before = contents(two_products.root)
    read_only(two_products.root)
    assert main(arguments(two_products)) == 2
    assert "cannot write" in capsys.readouterr().err
    assert contents(two_products.root) == before


@pytest.mark.parametrize(
    ("earlier", "limit_bytes", "named"), [(0, PROBED_BYTES, ".normalization.disk."), (40, 30_000, "line.json")], ids=["normalization", "manifest"]
)
def test_normalization_map_and_decision_appear_together_or_not_at_all(station, tools, file_size_limit, earlier, limit_bytes, named):
    station.write_good(count=30)
    decision = station.fit_one().decision
    append_decisions(station.model, [(dataclasses.replace(decision, product=f"p{index}"), ()) for index in range(earlier)])
    assert (len((station.root / "line.json").read_bytes()) > limit_bytes) == bool(earlier)
    normalization = NormalizationMap(tools.noise_map())
    before = contents(station.root)
    with file_size_limit(limit_bytes), pytest.raises(SinkError, match="File too large") as caught:
        append_decisions(station.model, [(decision, [encode_normalization(station.model, "disk", normalization)])])
    assert named in str(caught.value)
    assert contents(station.root) == before


def test_interruption_before_the_decisions_leaves_none(two_products):
    def interrupt(fits):
        assert [fit.decision is not None for fit in fits] == [True, True]
        raise KeyboardInterrupt

    before = contents(two_products.root)
    with pytest.raises(KeyboardInterrupt):
        calibrate(two_products.model, two_products.good, CalibrationOptions(max_frr=0.1), before_writing=interrupt)
    assert contents(two_products.root) == before


# --accept-outlier


@pytest.fixture
def same_outliers(station, tools):
    """An outlier called 500.png in both products."""
    for seed, product in enumerate(("disk", "ring")):
        station.write_good(product, count=60, seed=seed)
        tools.save(station.good / product / "500.png", tools.bad_frame(seed))
    return station


def test_file_name_that_several_products_have_is_refused(same_outliers, capsys):
    before = contents(same_outliers.root)
    assert main(arguments(same_outliers, "--accept-outlier", "500.png")) == 2
    assert "--accept-outlier 500.png fits 2 good images: disk/500.png, ring/500.png" in capsys.readouterr().err
    assert contents(same_outliers.root) == before


def test_product_and_name_accept_one_of_them(same_outliers):
    disk, ring = same_outliers.fit_all(accept_outliers=("disk/500.png",))
    assert disk.decision.accepted_outliers == ["disk/500.png"]
    assert "--accept-outlier ring/500.png" in ring.refusal
    disk, ring = same_outliers.fit_all(accept_outliers=("disk/500.png", "ring/500.png"))
    assert (disk.decision.accepted_outliers, ring.decision.accepted_outliers) == (["disk/500.png"], ["ring/500.png"])


@pytest.mark.parametrize("name", ["500.png", "disk/500.png"])
def test_one_match_is_accepted_by_either_form_when_the_folder_is_the_products(same_outliers, name):
    fit = same_outliers.fit_one(same_outliers.good / "disk", accept_outliers=(name,))
    assert fit.decision.accepted_outliers == ["500.png"]


def test_name_that_only_the_other_product_has_is_taken_from_it(same_outliers):
    (same_outliers.good / "ring" / "500.png").rename(same_outliers.good / "ring" / "501.png")
    disk, ring = same_outliers.fit_all(accept_outliers=("500.png", "501.png"))
    assert (disk.decision.accepted_outliers, ring.decision.accepted_outliers) == (["disk/500.png"], ["ring/501.png"])
