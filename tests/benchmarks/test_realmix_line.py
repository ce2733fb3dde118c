"""Verdicts on test images become rows of the committed table; a product without a threshold gets none."""

from benchmarks.accuracy.tables import INT8, LATENCY, LINE, RESULTS, merge_rows, read_rows
from benchmarks.realmix_line import rows_of

BOTTLE = {"product": "bottle", "decision": {"pass_threshold": 1.10414}, "evidence": {"detection_rate": 0.8125}}
REFUSED = {"product": "pcb", "decision": None, "evidence": None}


def record(product, folder, verdict):
    return {"product": product, "source_id": f"{product}/test/{folder}/0.png", "verdict": verdict}


def test_row_counts_good_parts_that_did_not_pass_and_bad_ones_that_did():
    records = [
        *(record("bottle", "good", verdict) for verdict in ("PASS", "PASS", "REVIEW", "ERROR")),
        *(record("bottle", "broken", verdict) for verdict in ("REJECT", "PASS", "ERROR")),
    ]
    (row,) = rows_of([BOTTLE, REFUSED], records, normalization_map=True)
    assert row == {
        "product": "bottle",
        "normalization_map": "yes",
        "pass_threshold": "1.1041",
        "synthetic_defects_detected": "81 %",
        "good": "4",
        "good_not_passed": "2",
        "bad": "3",
        "bad_passed": "1",
    }


def test_new_row_replaces_its_own_and_leaves_the_others(tmp_path):
    copy = tmp_path / "line.csv"
    copy.write_bytes((RESULTS / "line.csv").read_bytes())
    before = read_rows(copy, LINE)
    origin = {"device": "CPU", "commit": "abc", "date": "2026-11-28"}
    (row,) = rows_of([BOTTLE], [], normalization_map=False)
    assert merge_rows(copy, LINE, [row | origin]) == 1
    assert read_rows(copy, LINE) == [row | origin, *before[1:]]


def test_committed_tables_have_the_columns_that_the_commands_write():
    for name, layout in (("line", LINE), ("int8", INT8), ("latency", LATENCY)):
        assert read_rows(RESULTS / f"{name}.csv", layout)
