"""snl-records answers questions to a store while a station writes to it, and its exports are whole."""

import csv
import importlib.util
import json
import os
import sqlite3
from pathlib import Path

import pytest

from snl_runtime.cli.records import main
from snl_runtime.errors import ConfigError
from snl_runtime.line.record_query import parse_time
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.types import Verdict

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of, path = fixtures.frame_of, fixtures.result_of, fixtures.path

HOUR_0 = 1_700_000_000.0  # 2023-11-14T22:13:20Z
ROWS = [  # camera, hours after HOUR_0, product, verdict, reason code, part id
    ("top", 0, "bottle", Verdict.PASS, "below_threshold", "A"),
    ("top", 1, "bottle", Verdict.REJECT, "above_reject_threshold", "B"),
    ("top", 2, "bottle", Verdict.PASS, "below_threshold", "B"),  # inspected again: passed, but not at first
    ("left", 2, "bottle", Verdict.PASS, "below_threshold", "B"),
    ("top", 3, "cable", Verdict.ERROR, "frame_fault", None),
    ("top", 4, "cable", Verdict.PASS, "below_threshold", None),
    ("top", 5, None, Verdict.REVIEW, "above_pass_threshold", None),
]


@pytest.fixture
def written(path):
    """A store that a station still holds open."""
    with RecordStore(RecordStoreConfig(path=str(path))) as store:
        for trigger, (camera, hour, product, verdict, reason_code, part_id) in enumerate(ROWS, 1):
            frame = frame_of(trigger, captured_at=HOUR_0 + 3600 * hour, trigger_id=trigger, part_id=part_id)
            row = store.add(frame, result_of(verdict, product=product, reason_code=reason_code, reason="because,\nof this"), camera=camera)
            store.mark_answered(row)
        yield path


@pytest.fixture
def ask(written, capsys):
    def run(*flags):
        status = main(["--store", str(written), *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


CHOICES = [
    ([], [1, 2, 3, 4, 5, 6, 7]),
    (["--since", "2023-11-15T00:13:20Z"], [3, 4, 5, 6, 7]),
    (["--since", "2023-11-15T00:13:20", "--until", "2023-11-15T01:13:20"], [3, 4]),
    (["--since", "2023-11-15T01:13:20+01:00", "--until", "2023-11-15T02:13:20+01:00"], [3, 4]),
    (["--since", "2023-11-15"], [3, 4, 5, 6, 7]),
    (["--since", "2h"], []),
    (["--camera", "left"], [4]),
    (["--product", "cable"], [5, 6]),
    (["--product", "cable", "--product", "bottle", "--camera", "top"], [1, 2, 3, 5, 6]),
    (["--verdict", "REJECT", "--verdict", "ERROR"], [2, 5]),
    (["--reason", "frame_fault"], [5]),
    (["--part-id", "B"], [2, 3, 4]),
    (["--part-id", os.fsdecode(b"\xff")], []),
    (["--trigger", "6"], [6]),
    (["--limit", "2"], [6, 7]),
    (["--verdict", "PASS", "--limit", "2"], [4, 6]),
]


@pytest.mark.parametrize(("flags", "rows"), CHOICES, ids=[" ".join(map(ascii, flags)) for flags, _ in CHOICES])
def test_records_are_chosen_by_what_is_asked(ask, flags, rows):
    status, out, err = ask("--json", *flags)
    assert (status, err) == (0, "")
    assert [json.loads(line)["row"] for line in out.splitlines()] == rows


def test_json_line_is_the_record_with_row_camera_and_mark(ask, written):
    line = json.loads(ask("--json", "--trigger", "2")[1])
    with sqlite3.connect(f"file:{written}?mode=ro", uri=True) as database:
        (record,) = database.execute("SELECT record FROM records WHERE id = 2").fetchone()
    database.close()
    assert line == {"row": 2, "camera": "top", "answered": True, **json.loads(record)}


def test_table_shows_the_newest_and_says_what_it_left_out(ask):
    status, out, err = ask("--limit", "2")
    head, *rows = [line.split() for line in out.splitlines()]
    assert status == 0
    assert head[:3] == ["row", "captured_at", "camera"]
    assert [row[0] for row in rows] == ["6", "7"]
    assert rows[1][3:8] == ["7", "-", "-", "REVIEW", "above_pass_threshold"]
    assert err == "snl-records: 5 older records are not shown; --limit N shows more, --json or --csv FILE all\n"


def test_verdict_that_the_line_was_not_told_shows_and_is_no_good_part(written, capsys):
    with sqlite3.connect(written) as database:  # what kill -9 leaves between the record and the mark
        database.execute("UPDATE records SET answered = 0 WHERE id = 1")
    database.close()
    assert main(["--store", str(written), "--part-id", "A"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[6:9] == ["PASS", "below_threshold", "no"]
    assert main(["--store", str(written), "--product", "bottle", "--summary", "--json"]) == 0
    (bottle,) = json.loads(capsys.readouterr().out)["products"]
    assert (bottle["PASS"], bottle["parts"], bottle["first_pass_yield"]) == (3, 3, pytest.approx(1 / 3))


def test_nothing_chosen_is_said(ask):
    status, out, err = ask("--product", "none")
    assert (status, out, err.count("\n")) == (0, "", 1)
    assert "no record of" in err


def test_summary_counts_verdicts_and_takes_the_first_inspection_of_a_part(ask):
    products = {each.pop("product"): each for each in json.loads(ask("--summary", "--json")[1])["products"]}
    assert products["bottle"] == {"records": 4, "PASS": 3, "REVIEW": 0, "REJECT": 1, "ERROR": 0, "parts": 3, "first_pass_yield": pytest.approx(2 / 3)}
    assert products["cable"] == {"records": 2, "PASS": 1, "REVIEW": 0, "REJECT": 0, "ERROR": 1, "parts": 2, "first_pass_yield": 0.5}
    assert products[None]["first_pass_yield"] == 0
    lines = ask("--summary")[1].splitlines()
    assert lines[0].split() == ["product", "records", "PASS", "REVIEW", "REJECT", "ERROR", "parts", "first_pass_yield"]
    assert ["bottle", "4", "3", "0", "1", "0", "3", "66.67%"] in [line.split() for line in lines]


COLUMNS = [
    "row", "camera", "captured_at", "product", "verdict", "reason_code", "score", "threshold", "reject_threshold", "trigger_id", "part_id",
    "source_id", "latency_ms", "model_sha256", "reason", "answered", "record",
]  # fmt: skip


def test_csv_holds_every_record_with_its_columns(ask, tmp_path):
    file = tmp_path / "out.csv"
    status, out, _ = ask("--csv", str(file), "--product", "bottle")
    assert (status, out) == (0, f"4 records in {file}\n")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == COLUMNS
    assert [row["row"] for row in rows] == ["1", "2", "3", "4"]
    assert (rows[1]["verdict"], rows[1]["reason"], rows[1]["score"]) == ("REJECT", "because,\nof this", "0.5")
    assert json.loads(rows[1]["record"])["trigger_id"] == 2


def test_parquet_holds_the_same_with_types(ask, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "out.parquet"
    status, out, _ = ask("--parquet", str(file), "--json")
    assert (status, json.loads(out)) == (0, {"file": str(file), "records": 7})
    rows = parquet.read_table(file).to_pylist()
    assert list(rows[0]) == COLUMNS
    assert [(row["row"], row["camera"], row["trigger_id"], row["answered"], row["score"]) for row in rows] == [
        (number, camera, number, True, 0.5) for number, (camera, *_) in enumerate(ROWS, 1)
    ]


def test_parquet_without_its_package_is_one_line_before_anything_is_written(ask, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    file = tmp_path / "out.parquet"
    status, _, err = ask("--parquet", str(file))
    assert status == 2
    assert err == "snl-records: error: --parquet needs the package pyarrow: pip install pyarrow; --csv needs none\n"
    assert not file.exists()


ERRORS = [
    (["--since", "yesterday"], "--since must be a time such as"),
    (["--until", "99999999999w"], "--until must be a time such as"),
    (["--summary", "--verdict", "PASS"], "--summary counts every verdict"),
    (["--csv", "nowhere/x.csv"], "there is no folder"),
]


@pytest.mark.parametrize(("flags", "said"), ERRORS)
def test_errors_are_one_line(ask, flags, said):
    status, out, err = ask(*flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_export_over_the_store_itself_is_refused(ask, written):
    before = written.read_bytes()
    status, _, err = ask("--csv", str(written))
    assert status == 2
    assert "is the store itself" in err
    assert written.read_bytes() == before


def test_full_disk_leaves_no_half_export(ask, tmp_path, file_size_limit):
    file = tmp_path / "out.csv"
    file.write_text("old")
    with file_size_limit(5000):  # less than the records, more than what is probed
        status, _, err = ask("--csv", str(file))
    assert status == 2
    assert f"cannot write {file}" in err
    assert file.read_text() == "old"


@pytest.mark.parametrize("content", [None, b"no database at all, though long enough to be one"])
def test_file_that_is_no_store_is_one_line(tmp_path, capsys, content):
    file = tmp_path / "x.sqlite"
    if content:
        file.write_bytes(content * 100)
    assert main(["--store", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line


def test_store_in_a_folder_that_cannot_be_written_is_read(written, tmp_path, read_only, capsys):
    folder = tmp_path / "copied"
    folder.mkdir()
    with RecordStore(RecordStoreConfig(path=str(folder / "x.sqlite"))) as store:
        store.emit(frame_of(), result_of())
    read_only(folder)
    assert main(["--store", str(folder / "x.sqlite"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["row"] == 1


def test_reading_leaves_the_closed_store_as_it_was(tmp_path, capsys):
    file = tmp_path / "x.sqlite"
    with RecordStore(RecordStoreConfig(path=str(file))) as store:
        store.emit(frame_of(), result_of())
    before = file.read_bytes()
    assert main(["--store", str(file), "--json"]) == 0
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["", "2", "2 hours", "-2h", "2026-13-01", "nan"])
def test_time_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="must be a time"):
        parse_time(text, option="--since", now_s=HOUR_0)
