"""An archive in a store that speaks S3 has the rows of the same files in a folder, also after kills, and no credential is written anywhere."""

import json
import os
import signal
import subprocess
from urllib.parse import quote

import cv2
import pytest

from inspections import LONGEST_S, command, expected_rows, inspect, rows_of, wait_for, workers_of
from snl_runtime.fleet.results import SUCCESS, read_plan, read_results

pytestmark = pytest.mark.station
pytest.importorskip("ray.data")


def as_in_the_store(rows, folder, store):
    """The rows of files as those of the objects that were made of them; reasons name the place."""

    def place(text):
        name = text.removeprefix(f"{folder}/")
        return store.address(f"frames/{quote(name)}")

    moved = [{**row, "file": place(row["file"]), "reason": row["reason"].replace(row["file"], place(row["file"]))} for row in rows]
    return sorted(moved, key=lambda row: row["row_id"])


def test_rows_are_those_of_the_folder_bit_for_bit_and_hold_no_credential(engine, parts, tmp_path, store, secret, capsys):
    (parts / "a_good5.png").rename(parts / "a_part 5%25#\u00e4.png")
    store.put(parts, "frames")
    out = tmp_path / "results"
    status, stdout, stderr = inspect(engine, store.address("frames"), out, "--product", "bottle", "--workers", 2, "--maps", "--json")
    assert status == 0, stderr
    assert read_results(out, ["map"])["map"].null_count == 1  # of the file that cannot be read
    assert rows_of(out) == as_in_the_store(expected_rows(engine, parts, tmp_path), parts, store)
    assert json.loads(stdout)["verdicts"]["ERROR"] == 1
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert secret.encode() not in written
    assert secret not in stdout + stderr


def test_killed_worker_and_driver_lose_and_double_nothing(engine, parts, tmp_path, store, model, capsys):
    cv2.imwrite(str(parts / "d_large.png"), model.good_frame(0, 1200))  # large enough to be caught while it is judged
    for number in range(40):
        os.link(parts / "d_large.png", parts / f"e{number:02d}.png")
    store.put(parts, "frames")
    out = tmp_path / "results"
    options = ("--product", "bottle", "--workers", 2, "--part-rows", 3)
    arguments = command(engine, store.address("frames"), out, *options)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: list((out / "_deaths").glob("part-*.json")), driver)
        os.kill(wait_for(lambda: workers_of(driver.pid), driver)[0], signal.SIGKILL)
        wait_for(lambda: list(out.glob("product=*/day=*/part-*.parquet")), driver)
        driver.kill()
        driver.communicate(timeout=LONGEST_S)
    assert not (out / SUCCESS).exists()
    written = len(list(out.glob("product=*/day=*/part-*.parquet")))
    assert 0 < written < len(read_plan(out))
    status, stdout, stderr = inspect(engine, store.address("frames"), out, *options, "--json")
    assert status == 0, stderr
    assert json.loads(stdout)["kept"] >= 1
    assert rows_of(out) == as_in_the_store(expected_rows(engine, parts, tmp_path), parts, store)


def test_address_that_was_wrong_can_be_corrected_and_results_go_into_no_store(engine, parts, tmp_path, store, capsys):
    out = tmp_path / "results"
    wrong = store.address("frames").replace("plant", "nobucket")
    status, _, stderr = inspect(engine, wrong, out, "--product", "bottle")
    assert (status, len(stderr.splitlines())) == (2, 1)
    assert "NO_SUCH_BUCKET" in stderr
    assert not (out / "_run.json").exists()
    status, _, stderr = inspect(engine, store.address("frames"), "s3://plant/results", "--product", "bottle")
    assert (status, len(stderr.splitlines())) == (2, 1)
    assert "--out: s3://plant/results is an address; name a place in the file system" in stderr
