"""A worker writes each part whole, with a row for whatever it was given, and is not killed twice too often by one file."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil

import cv2
import numpy as np
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.files import sha256_file
from snl_runtime.fleet.archive import list_archive
from snl_runtime.fleet.deaths import MOST_DEATHS, DeathWatch
from snl_runtime.fleet.inspector import PartInspector, WorkerSettings, describe_decisions
from snl_runtime.fleet.maps import unpack_map
from snl_runtime.fleet.results import (
    Part,
    begin_run,
    extend_plan,
    is_whole,
    mark_success,
    plan_parts,
    read_plan,
    read_results,
    require_same_run,
)
from snl_runtime.images.files import read_frame
from snl_runtime.model.manifest import read_manifest, update_manifest
from snl_runtime.station.config import ModelConfig

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def settings_of(engine, out, **changes):
    sha256 = sha256_file(engine)
    decisions = json.dumps(describe_decisions(read_manifest(engine.with_suffix(".json")), sha256))
    return WorkerSettings(
        **{"model": ModelConfig(file=str(engine), threads=1), "model_sha256": sha256, "decisions": decisions, "out": str(out), **changes}
    )


@pytest.fixture
def inspector(engine, out):
    worker = PartInspector(settings_of(engine, out))
    yield worker
    worker._detector.close()


@pytest.fixture
def inspector_with_maps(engine, out):
    worker = PartInspector(settings_of(engine, out, maps=True))
    yield worker
    worker._detector.close()


def planned(data, part_rows=4):
    return plan_parts(list_archive(str(data), product="bottle").rows, part_rows=part_rows, only_product="bottle")


def judge(inspector, out, parts):
    extend_plan(out, parts)
    for part in parts:
        inspector.inspect(part)
    mark_success(out, parts, inspector._settings.model_sha256)
    return read_results(out, ["row_id", "file", "row", "verdict", "reason_code", "reason", "score"]).sort_by("row_id").to_pylist()


def test_rows_have_the_verdicts_of_a_detector_and_an_unreadable_file_is_one_of_them(inspector, out, parts, engine):
    rows = judge(inspector, out, planned(parts))
    assert [row["file"] for row in rows] == sorted(map(str, parts.iterdir()))
    with SnlDetector(engine, threads=1) as detector:
        for row in rows[:-1]:
            result = detector.detect(read_frame(row["file"]), color="rgb", product="bottle")
            assert (row["verdict"], row["score"]) == (result.verdict.value, float(result.score))
    assert (rows[-1]["verdict"], rows[-1]["reason_code"], rows[-1]["score"]) == ("ERROR", "frame_fault", None)
    assert "c_cut.png" in rows[-1]["reason"]
    assert not any(math.isnan(row["score"]) for row in rows[:-1])


def test_rows_of_a_table_score_as_the_files_they_came_from_and_a_bad_one_names_file_and_row(inspector, out, parts, tmp_path):
    files = sorted(parts.iterdir())
    images = [file.read_bytes() for file in files] + [None]
    table = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"image": images}), table, row_group_size=3)
    from_files = judge(inspector, out, planned(parts))
    other = out.with_name("other")
    other.mkdir()
    inspector._out = other
    from_table = judge(inspector, other, planned(table))
    assert [(row["verdict"], row["score"]) for row in from_table[:-1]] == [(row["verdict"], row["score"]) for row in from_files]
    assert [row["row"] for row in from_table] == list(range(len(images)))
    assert from_table[-1]["reason"] == f"{table}#row={len(files)} holds no image in the column 'image'"
    assert f"{table}#row={len(files) - 1}" in from_table[-2]["reason"]  # the truncated one


def test_kept_maps_are_those_of_a_detector_and_change_no_verdict(inspector_with_maps, out, parts, engine):
    judge(inspector_with_maps, out, planned(parts))
    rows = read_results(out, ["row_id", "file", "verdict", "score", "map"]).sort_by("row_id").to_pylist()
    with SnlDetector(engine, threads=1) as detector:
        for row in rows[:-1]:
            result = detector.detect(read_frame(row["file"]), color="rgb", product="bottle")
            assert (row["verdict"], row["score"]) == (result.verdict.value, float(result.score))
            assert np.array_equal(unpack_map(row["map"]), result.anomaly_map.astype(np.float16).astype(np.float32))
            assert row["map"]["roi_xyxy"] == list(result.roi_xyxy)
    assert rows[-1]["map"] is None  # cannot be read


def test_part_that_is_written_twice_is_there_once(inspector, out, parts):
    plan = planned(parts)
    for part in plan[:1] * 2:
        inspector.inspect(part)
    assert [path.name for path in out.rglob("*.parquet")] == ["part-000000.parquet"]


def test_part_of_other_rows_or_of_another_model_is_not_whole(inspector, out, parts):
    first, second, *_ = planned(parts)
    inspector.inspect(first)
    sha256 = inspector._settings.model_sha256
    assert is_whole(out, first, sha256)
    assert not is_whole(out, first, "0" * 64)
    assert not is_whole(out, dataclasses.replace(first, rows=second.rows), sha256)
    first.path(out).write_bytes(first.path(out).read_bytes()[:-9])
    assert not is_whole(out, first, sha256)


def test_results_are_neither_marked_nor_read_before_every_part_is_whole(inspector, out, parts):
    plan = planned(parts)
    extend_plan(out, plan)
    for part in plan[:-1]:
        inspector.inspect(part)
    with pytest.raises(DataError, match=f"1 parts of .* are not whole, the first is part {plan[-1].number}"):
        mark_success(out, plan, inspector._settings.model_sha256)
    with pytest.raises(DataError, match="has no _SUCCESS: the inspection is not finished"):
        read_results(out, ["verdict"])


def test_results_that_lost_a_part_later_are_not_read(inspector, out, parts):
    plan = planned(parts)
    judge(inspector, out, plan)
    plan[0].path(out).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_results(out, ["verdict"])


def test_folder_of_another_model_is_refused(out):
    require_same_run(out, {"schema": 1, "model_sha256": "a"})  # new
    begin_run(out, {"schema": 1, "model_sha256": "a"})
    require_same_run(out, {"schema": 1, "model_sha256": "a"})
    with pytest.raises(ConfigError, match="model_sha256 was a and is now b; name another folder"):
        require_same_run(out, {"schema": 1, "model_sha256": "b"})


def test_plan_survives_names_that_are_not_utf_8(out, parts, model):
    name = os.fsdecode(b"part_\xff.png")
    cv2.imwrite(str(parts / "x.png"), model.good_frame(0))
    (parts / "x.png").rename(parts / name)
    plan = planned(parts)
    extend_plan(out, plan)
    assert read_plan(out) == plan
    assert any(row.file.endswith(name) for part in plan for row in part.rows)


def test_parts_hold_every_row_once_and_one_product_and_day_each(parts):
    rows = list_archive(str(parts), product=None).rows
    mixed = [dataclasses.replace(row, product="cap" if index % 3 else None, day=f"2026-01-0{1 + index % 2}") for index, row in enumerate(rows)]
    plan = plan_parts(mixed, part_rows=2, only_product="bottle")
    assert sorted(row_id for part in plan for row_id in part.ids) == list(range(len(rows)))
    for part in plan:
        assert {(row.product or "bottle", row.day) for row in part.rows} == {(part.product, part.day)}
        assert len(part.rows) <= 2


def test_failure_of_the_model_is_answered_and_names_it(tmp_path, out):
    worker = PartInspector(WorkerSettings(model=ModelConfig(file=str(tmp_path / "none.onnx")), model_sha256="a", decisions="{}", out=str(out)))
    part = Part(number=3, product=None, day="2026-01-01", ids=(), rows=())
    answer = worker({"part": [json.dumps(part.to_plain())]})
    assert answer["number"].tolist() == [3]
    name, message = json.loads(answer["failure"][0])
    assert name == "ManifestError"
    assert "none.onnx" in message


def test_worker_that_has_other_decisions_than_the_run_judges_nothing(engine, out, parts, tmp_path):
    """One calibrated while the run was on; the files are the same, and rows of two thresholds in one folder could not be told apart."""
    for path in engine.parent.glob(f"{engine.stem}.*"):
        shutil.copy2(path, tmp_path / path.name)
    copied = tmp_path / engine.name
    settings = settings_of(copied, out)
    again = dataclasses.replace(read_manifest(copied.with_suffix(".json")).decisions[0], fitted_at="2024-06-01T12:00:00+00:00")
    update_manifest(copied.with_suffix(".json"), lambda manifest: manifest.with_decision(again))
    (part, *_) = planned(parts)
    answer = PartInspector(settings)({"part": [json.dumps(part.to_plain())]})
    assert "has other decisions on a worker" in json.loads(answer["failure"][0])[1]
    assert not is_whole(out, part, settings.model_sha256)


def _die_at(out, part, row_id):
    watch = DeathWatch(out, part)
    if watch.fault_of(row_id, "x.png") is None:
        watch.begin(row_id)
        os._exit(9)


def test_row_on_which_workers_die_becomes_an_error_that_names_it(inspector, out, parts):
    (part, *_) = planned(parts)
    context = multiprocessing.get_context("spawn")
    for _ in range(MOST_DEATHS):
        process = context.Process(target=_die_at, args=(out, part.number, part.ids[1]))
        process.start()
        process.join(60)
        assert process.exitcode == 9
    rows = judge(inspector, out, [part])
    assert [row["reason_code"] == "frame_fault" for row in rows] == [False, True, False, False]
    assert f"{part.rows[1].file} ended the process that read it {MOST_DEATHS} times" in rows[1]["reason"]
