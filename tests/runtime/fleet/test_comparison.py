"""A comparison says within only where the changes do not contradict what calibration promised, and is never made of half a result."""

import base64
import itertools
import json
import re

import cv2
import numpy as np
import pytest

from snl_runtime.cli.compare import main
from snl_runtime.errors import DataError
from snl_runtime.fleet.archive import list_archive
from snl_runtime.fleet.comparison import Promise, allow_passed, allow_refused, binomial_tail, compare_results
from snl_runtime.fleet.results import begin_run, extend_plan, mark_success, plan_parts, write_part

pytest.importorskip("pyarrow")
stats = pytest.importorskip("scipy.stats")

ONE_PERCENT = Promise(max_frr=0.01, confidence=0.95)
REASONS = {"PASS": "below_threshold", "REVIEW": "above_pass_threshold", "REJECT": "above_reject_threshold", "ERROR": "frame_size"}


@pytest.mark.parametrize(
    ("count", "trials", "share"), [(0, 9, 0.1), (3, 10, 0.4), (10, 10, 0.5), (120, 10_000, 0.01), (80, 10_000, 0.01), (1, 5, 0.0)]
)
def test_tail_is_that_of_the_binomial_distribution(count, trials, share):
    assert binomial_tail(count, trials, share) == pytest.approx(stats.binom.sf(count - 1, trials, share), rel=1e-9, abs=1e-15)


def test_refused_parts_are_within_up_to_the_count_that_the_promise_reaches_in_one_case_in_twenty():
    counts = range(100)
    within = [allow_refused(count, 1000, ONE_PERCENT, ONE_PERCENT).is_within for count in counts]
    expected = [stats.binom.sf(count - 1, 1000, 0.01 / 0.99) >= 0.05 for count in counts]
    assert within == expected
    assert True in within
    assert False in within


def test_parts_that_pass_now_are_within_only_as_false_rejects_of_the_old_threshold():
    assert allow_passed(5, 995, ONE_PERCENT).is_within
    assert not allow_passed(50, 950, ONE_PERCENT).is_within
    assert not allow_passed(1, 995, None).is_within


@pytest.fixture
def write_results(tmp_path, parts):
    """Write the results of an inspection by hand: one verdict and score per image."""

    def write(name, verdicts, scores=(5.0,) * 9, *, finish=True, archive=parts, heat=None, **changes):
        out = tmp_path / name
        out.mkdir()
        decision = {"pass_threshold": 10.0, "reject_threshold": 12.0, "max_frr": 0.01, "confidence": 0.95, "fitted_at": "2026-01-01T00:00:00+00:00"}
        decision |= changes
        begin_run(out, {"schema": 1, "model_sha256": "a" * 64, "decisions": {"bottle": decision}, "maps": heat is not None})
        plan = plan_parts(list_archive(str(archive), product="bottle").rows, part_rows=4, only_product="bottle")
        extend_plan(out, plan)
        records = iter([{**record(verdict, score), "map": heat} for verdict, score in zip(verdicts, scores, strict=False)])
        for part in plan:
            write_part(out, part, list(itertools.islice(records, len(part.rows))), "a" * 64, maps=heat is not None)
        if finish:
            mark_success(out, plan, "a" * 64)
        return out

    def record(verdict, score):
        verdict, _, reason = verdict.partition(" ")
        region = {"box_xyxy": [1, 2, 9, 8], "score": score, "area_px": 48, "area_mm2": None}
        return {
            "verdict": verdict,
            "reason_code": reason or REASONS[verdict],
            "reason": "by hand",
            "score": score,
            "threshold": 10.0,
            "reject_threshold": 12.0,
            "ignored_share": 0.0,
            "regions": [] if verdict == "PASS" else [region],
            "model_sha256": "a" * 64,
        }

    return write


ALL_PASS = ["PASS"] * 9


def test_equal_results_are_within_and_exit_with_0(write_results, capsys):
    old, new = write_results("old", ALL_PASS), write_results("new", ALL_PASS)
    assert main([str(old), str(new)]) == 0
    assert "the changes are within" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "now", "is_within"),
    [
        (["PASS"] * 9, ["PASS"] * 9, True),
        (["PASS"] * 9, ["REJECT"] * 2 + ["PASS"] * 7, False),  # P(2 or more of 9 | 1 %) is 0.3 %
        (["PASS"] * 9, ["REVIEW"] + ["PASS"] * 8, True),  # P(1 or more of 9 | 1 %) is 8.7 %
        (["REJECT"] * 3 + ["PASS"] * 6, ["PASS"] * 9, False),
        (["REJECT"] * 3 + ["PASS"] * 6, ["REJECT"] * 3 + ["PASS"] * 6, True),
        (["PASS"] * 9, ["ERROR"] + ["PASS"] * 8, False),
        (["ERROR"] + ["PASS"] * 8, ["PASS"] * 9, False),
        (["ERROR timeout"] + ["PASS"] * 8, ["PASS"] * 9, True),  # of the moment: nothing to compare with
        (["PASS"] * 9, ["ERROR timeout"] + ["PASS"] * 8, False),
    ],
)
def test_change_is_within_where_no_promise_is_contradicted(write_results, before, now, is_within):
    comparison = compare_results(write_results("old", before), write_results("new", now))
    assert comparison.is_within is is_within
    (product,) = comparison.products
    assert sum(product.verdicts.values()) == product.rows == 9


@pytest.mark.parametrize(("before", "now", "is_within"), [(0.0, 0.0, True), (0.0, 0.1, False), (0.1, 0.2, False), (0.1, 0.0, True)])
def test_more_that_is_not_judged_is_beyond_what_calibration_allows_whatever_the_verdicts(write_results, capsys, before, now, is_within):
    old, new = write_results("old", ALL_PASS, ignored_share=before), write_results("new", ALL_PASS, ignored_share=now)
    assert main([str(old), str(new)]) == (0 if is_within else 4)
    printed, page = capsys.readouterr().out, (new / "_comparison.html").read_text(encoding="utf-8")
    assert ("not judged (ignore mask)" in printed) == ("was not judged before" in page) == bool(before or now)
    assert ("BEYOND" in printed) == (not is_within)


def test_parts_that_pass_now_come_first_then_changed_verdicts_then_scores(write_results):
    before = ["PASS", "REJECT", "PASS", "PASS"] + ["PASS"] * 5
    now = ["PASS", "PASS", "REJECT", "PASS"] + ["PASS"] * 5
    comparison = compare_results(write_results("old", before, [5.0] * 9), write_results("new", now, [5.0, 6.0, 13.0, 9.0] + [5.0] * 5))
    assert [(one.old_verdict, one.new_verdict) for one in comparison.most_changed] == [("REJECT", "PASS"), ("PASS", "REJECT"), ("PASS", "PASS")]
    assert comparison.products[0].score_changes[100] == pytest.approx(0.8)


def test_page_stands_alone_shows_the_changed_images_and_says_which_cannot_be_shown(write_results, capsys):
    now = ["REJECT"] + ["PASS"] * 7 + ["ERROR"]
    old, new = write_results("old", ALL_PASS), write_results("new", now)
    assert main([str(old), str(new), "--json"]) == 4
    report = json.loads(capsys.readouterr().out)
    assert (report["is_within"], report["products"][0]["new_errors"]) == (False, 1)
    page = (new / "_comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 1
    assert "c_cut.png" in page
    assert "truncated" in page or "copy it again" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def pictures_of(page):
    encoded = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).astype(int) for data in encoded]


def hot_in_column(column):
    """A map of 4 by 4 cells that is at twice the threshold in one column of the upper half."""
    cells = np.zeros((4, 4), "<f2")
    cells[:2, column] = 20.0
    return {"height": 4, "width": 4, "roi_xyxy": [0, 0, 32, 32], "cells": cells.tobytes()}


def redder_by(picture, plain):
    return picture[:, :, 2] - plain[:, :, 2]


def test_kept_maps_are_shown_as_heat_where_they_are_hot_before_and_now(write_results, parts):
    old, new = write_results("old", ALL_PASS, heat=hot_in_column(0)), write_results("new", ["REJECT"] + ["PASS"] * 8, heat=hot_in_column(3))
    main([str(old), str(new)])
    page = (new / "_comparison.html").read_text(encoding="utf-8")
    assert "not judged" not in page
    before, now = pictures_of(page)
    plain = cv2.imread(str(parts / "a_good0.png")).astype(int)
    left, right = np.s_[12:16, 0:4], np.s_[12:16, 28:32]
    assert redder_by(before, plain)[left].mean() > 40
    assert redder_by(now, plain)[right].mean() > 40
    assert abs(redder_by(before, plain)[right].mean()) < 10
    assert abs(redder_by(now, plain)[left].mean()) < 10


def test_what_an_ignore_mask_hides_is_dark_and_hatched_on_its_side_and_the_legend_says_so(write_results, parts):
    """The right half of the map is ignored now; before nothing was, and a folder whose rows say nothing of masks is the same."""
    ignored = np.zeros((4, 4), bool)
    ignored[:, 2:] = True
    masked = {**hot_in_column(0), "ignored": ignored.tobytes()}
    old, new = write_results("old", ALL_PASS, heat=hot_in_column(0)), write_results("new", ["REJECT"] + ["PASS"] * 8, heat=masked)
    main([str(old), str(new)])
    page = (new / "_comparison.html").read_text(encoding="utf-8")
    before, now = pictures_of(page)
    plain = cv2.imread(str(parts / "a_good0.png")).astype(int)
    hidden = np.s_[2:30, 18:30]
    assert abs(before[hidden].mean() - plain[hidden].mean()) < 8
    assert now[hidden].mean() < 0.7 * plain[hidden].mean()
    assert "Dark and hatched: not judged (ignore mask)." in page


@pytest.mark.parametrize("kept", ["old", "new"])
def test_side_without_maps_has_no_heat_and_the_page_says_so(write_results, parts, kept):
    old = write_results("old", ALL_PASS, heat=hot_in_column(0) if kept == "old" else None)
    new = write_results("new", ["REJECT"] + ["PASS"] * 8, heat=hot_in_column(0) if kept == "new" else None)
    main([str(old), str(new)])
    page = (new / "_comparison.html").read_text(encoding="utf-8")
    plain = cv2.imread(str(parts / "a_good0.png")).astype(int)
    hot = [redder_by(picture, plain)[12:16, 0:4].mean() > 40 for picture in pictures_of(page)]
    assert hot == [kept == "old", kept == "new"]
    assert f"only {'before' if kept == 'old' else 'now'}, the other inspection kept no maps" in page


def test_names_of_files_are_text_on_the_page(write_results, parts):
    (parts / "a_good0.png").rename(parts / "a_<script>.png")
    old, new = write_results("old", ALL_PASS), write_results("new", ["REJECT"] + ["PASS"] * 8)
    main([str(old), str(new)])
    page = (new / "_comparison.html").read_text(encoding="utf-8")
    assert "a_&lt;script&gt;.png" in page
    assert "<script>" not in page


def test_unfinished_results_are_refused(write_results, capsys):
    old, new = write_results("old", ALL_PASS), write_results("new", ALL_PASS, finish=False)
    assert main([str(old), str(new)]) == 2
    assert "new has no _SUCCESS: the inspection is not finished" in capsys.readouterr().err


def test_images_that_one_side_lacks_are_beyond(write_results, parts, capsys):
    old = write_results("old", ALL_PASS)
    (parts / "a_good5.png").unlink()
    new = write_results("new", ALL_PASS)
    assert main([str(old), str(new)]) == 4
    assert "not compared: 1 images in" in capsys.readouterr().out


def test_results_without_a_common_file_are_refused(write_results, tmp_path, parts):
    other = tmp_path / "elsewhere"
    parts_copy = parts.rename(other)
    old = write_results("old", ALL_PASS, archive=parts_copy)
    parts_copy.rename(parts)
    with pytest.raises(DataError, match="no file in common"):
        compare_results(old, write_results("new", ALL_PASS))
