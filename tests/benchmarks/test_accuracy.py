"""A protocol is run once, whatever stops it in between, with the product's own training and evaluation, and leaves one whole JSON per run."""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from snl_runtime.errors import ConfigError, DataError, TrainingDivergedError
from snl_runtime.files import exclusive_lock
from snl_train.checkpoint import load_checkpoint
from snl_train.resume import resume_path

ROOT = Path(__file__).resolve().parents[2]
ONE = "fd_32_all_multi_s0"


def session_for(data: Path, out: Path, is_asked_to_stop=lambda: False, **changes):
    from benchmarks.accuracy.protocol import load_protocol
    from benchmarks.accuracy.session import Job, Session

    job = Job(protocol=load_protocol("tiny"), data=data, out=out, classes=("cap", "nut"))
    return Session(dataclasses.replace(job, **changes), is_asked_to_stop)


def run_named(name: str):
    from benchmarks.accuracy.protocol import expand, load_protocol

    (run,) = (run for run in expand(load_protocol("tiny"), ["cap", "nut"]) if run.name == name)
    return run


def stops_after(count: int):
    """Ask to stop from the ``count``-th question on."""
    left = iter(range(count - 1))
    return lambda: next(left, None) is None


def record(out: Path, name: str) -> dict:
    return json.loads((out / "tiny" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(one_thread: None, two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, never stopped."""
    out = tmp_path_factory.mktemp("finished")
    assert session_for(two_classes, out).perform(run_named(ONE)) == "finished"
    return out


# One run


def test_record_holds_figures_settings_images_and_origin(finished: Path):
    facts = record(finished, ONE)
    assert facts["evaluation"]["classes"].keys() == {"cap", "nut"}
    assert facts["evaluation"]["classes"]["cap"]["metrics"]["pixel_auroc"]["value"] is None  # image-level labels only
    assert facts["config"]["model"]["method"] == "fd"
    assert facts["config"]["epochs"] == facts["training"]["epochs_done"] == 2
    assert facts["data"]["training_images"] == {"cap": 4, "nut": 4}
    assert {"commit", "device", "versions", "command", "threads", "finished_at"} <= facts["provenance"].keys()
    assert [piece["to_step"] for piece in facts["slices"]] == [4]  # 8 images in batches of 4, twice


def test_figures_are_those_of_the_product_s_own_commands(finished: Path, two_classes: Path, tmp_path: Path, quick_files: None, capsys):
    from snl_train.cli.evaluate import main as evaluate
    from snl_train.cli.train import main as train

    settings = "--method fd --teacher resnet18 --teacher-weights random --image-size 32 --batch-size 4 --epochs 2 --device cpu --threads 1".split()
    assert train(["--data", str(two_classes), "--out", str(tmp_path / "x.pt"), *settings, "--set", "golden_samples=2"]) == 0
    capsys.readouterr()
    assert evaluate(["--ckpt", str(tmp_path / "x.pt"), "--data", str(two_classes), "--bootstrap", "20", "--device", "cpu", "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    ours = record(finished, ONE)["evaluation"]
    assert ours["classes"] == theirs["classes"]
    assert [image["score"] for image in ours["images"]] == [image["score"] for image in theirs["images"]]


def test_training_state_is_removed_and_the_checkpoint_kept(finished: Path):
    names = {path.name for path in (finished / "tiny").iterdir()}
    assert {f"{ONE}.json", f"{ONE}.pt", f"{ONE}.slices.json"} <= names
    assert resume_path(Path(f"{ONE}.pt")).name not in names


def test_no_path_of_the_machine_is_recorded(finished: Path, two_classes: Path):
    assert str(two_classes.parent) not in (finished / "tiny" / f"{ONE}.json").read_text()


# Stopping and going on


def test_training_stopped_in_a_slice_goes_on_to_the_same_figures(finished: Path, two_classes: Path, tmp_path: Path, quick_files: None):
    assert session_for(two_classes, tmp_path, stops_after(3)).perform(run_named(ONE)) == "stopped"
    assert not (tmp_path / "tiny" / f"{ONE}.json").exists()
    assert session_for(two_classes, tmp_path).perform(run_named(ONE)) == "finished"
    resumed = record(tmp_path, ONE)
    assert resumed["evaluation"] == record(finished, ONE)["evaluation"]
    assert [piece["to_step"] for piece in resumed["slices"]] == [2, 4]


def test_measurement_stopped_in_a_slice_is_made_in_the_next_without_training(finished: Path, two_classes: Path, tmp_path: Path, quick_files: None):
    # Asked once before the run and once per step (4); the sixth question comes after the first measured batch.
    assert session_for(two_classes, tmp_path, stops_after(6)).perform(run_named(ONE)) == "stopped"
    assert not (tmp_path / "tiny" / f"{ONE}.json").exists()
    assert session_for(two_classes, tmp_path).perform(run_named(ONE)) == "finished"
    assert [piece["to_step"] for piece in record(tmp_path, ONE)["slices"]] == [4]  # the second one trained nothing
    assert record(tmp_path, ONE)["evaluation"] == record(finished, ONE)["evaluation"]


def with_settings(protocol, **overrides):
    """The protocol with other settings in all its runs."""
    return dataclasses.replace(protocol, base={**protocol.base, **overrides})


def copied(finished: Path, out: Path) -> Path:
    """The run's files without its record."""
    shutil.copytree(finished / "tiny", out / "tiny")
    (out / "tiny" / f"{ONE}.json").unlink()
    return out


def test_other_score_is_measured_on_the_trained_checkpoint_with_the_figures_of_a_training_of_its_own(
    finished: Path, two_classes: Path, tmp_path: Path, monkeypatch
):
    from benchmarks.accuracy import session
    from benchmarks.accuracy.protocol import load_protocol

    smoothed = with_settings(load_protocol("tiny"), score={"smoothing_sigma": 2.0})
    session_for(two_classes, tmp_path / "anew", protocol=smoothed).perform(run_named(ONE))
    again = copied(finished, tmp_path / "again")
    monkeypatch.setattr(session, "train", None)  # nothing is trained
    session_for(two_classes, again, protocol=smoothed).perform(run_named(ONE))
    facts, expected, before = record(again, ONE), record(tmp_path / "anew", ONE), record(finished, ONE)
    assert facts["config"]["score"]["smoothing_sigma"] == 2.0
    assert facts["evaluation"]["classes"] == expected["evaluation"]["classes"] != before["evaluation"]["classes"]
    assert facts["slices"] == before["slices"], "the training is still that of then"
    assert load_checkpoint(again / "tiny" / f"{ONE}.pt").config.score.smoothing_sigma == 2.0


def test_other_whitening_is_fitted_on_the_trained_checkpoint_as_its_own_training_would_have(
    finished: Path, two_classes: Path, tmp_path: Path, monkeypatch
):
    from benchmarks.accuracy import session
    from benchmarks.accuracy.protocol import load_protocol

    base = load_protocol("tiny").base["model"]
    whitened = with_settings(
        load_protocol("tiny"), model={**base, "whitening": True, "whitening_expectation": 0.5, "whitening_normalization": "maximum"}
    )
    session_for(two_classes, tmp_path / "anew", protocol=whitened).perform(run_named(ONE))
    again = copied(finished, tmp_path / "again")
    monkeypatch.setattr(session, "train", None)  # nothing is trained
    session_for(two_classes, again, protocol=whitened).perform(run_named(ONE))
    of_training, of_refit = (load_checkpoint(out / "tiny" / f"{ONE}.pt") for out in (tmp_path / "anew", again))
    assert of_refit.config == of_training.config
    assert of_refit.state_dict.keys() == of_training.state_dict.keys()
    for name, tensor in of_training.state_dict.items():
        np.testing.assert_allclose(of_refit.state_dict[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)
    (again / "tiny" / f"{ONE}.json").unlink()
    session_for(two_classes, again).perform(run_named(ONE))
    assert record(again, ONE)["evaluation"] == record(finished, ONE)["evaluation"], "and taken out again"


@pytest.mark.parametrize("change", [{"optim": {"learning_rate": 1e-4}}, {"data": {"max_per_class": 2}}], ids=["settings", "images"])
def test_other_trainings_or_images_are_trained_anew(change, finished: Path, two_classes: Path, tmp_path: Path):
    from benchmarks.accuracy.protocol import load_protocol

    again = copied(finished, tmp_path)
    session_for(two_classes, again, protocol=with_settings(load_protocol("tiny"), **change)).perform(run_named(ONE))
    assert record(again, ONE)["slices"] != record(finished, ONE)["slices"]


def test_run_after_the_budget_is_not_begun(two_classes: Path, tmp_path: Path):
    session = session_for(two_classes, tmp_path, deadline_s=time.monotonic() + 1, reserve_s=2)
    assert session.perform(run_named(ONE)) == "stopped"
    assert not (tmp_path / "tiny").exists()


def test_measurement_longer_than_a_whole_budget_is_an_error_and_no_endless_loop(two_classes: Path, tmp_path: Path, quick_files: None, monkeypatch):
    from benchmarks.accuracy import session as module

    def out_of_time(*_):
        raise module.OutOfTimeError

    monkeypatch.setattr(module.Session, "_evaluate", out_of_time)
    with contextlib.suppress(ConfigError):
        session_for(two_classes, tmp_path).perform(run_named(ONE))  # trains; on a slow machine the measurement is left to the next slice
    with pytest.raises(ConfigError, match="measuring takes longer than the whole budget"):
        session_for(two_classes, tmp_path).perform(run_named(ONE))


def test_budget_stops_the_command_with_status_0(two_classes: Path, tmp_path: Path, command):
    status, out, _ = command("--protocol", "tiny", "--data", two_classes, "--out", tmp_path, "--jobs", 1, "--device", "cpu", "--budget-s", 0.01)
    assert status == 0
    assert "not finished: 0 of 8 runs of tiny are done" in out


def test_runs_are_chosen_by_their_name_and_seed(two_classes: Path, tmp_path: Path, command):
    arguments = ["--protocol", "tiny", "--data", two_classes, "--out", tmp_path, "--list", "--only", "one-cap"]
    for seeds, expected in (("1", [1]), ("0,1", [0, 1]), ("1,7", [1])):
        status, out, _ = command(*arguments, "--seeds", seeds)
        assert (status, out.split()) == (0, [word for seed in expected for word in ("open", f"fd_32_all_one-cap_s{seed}")])
    status, _, err = command(*arguments, "--seeds", "7")
    assert (status, err.count("\n")) == (2, 1)
    assert "--seeds 7 fits no run; their seeds are 0, 1" in err


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("rd_128", ["rd_128_realmix_multi_s0", "snl-rd_128_realmix_multi_s0"]),
        ("rd_128*", ["rd_128_realmix_multi_s0"]),
        ("rd_128_realmix_multi_s?", ["rd_128_realmix_multi_s0"]),
        ("*rd_128*", ["rd_128_realmix_multi_s0", "snl-rd_128_realmix_multi_s0"]),
    ],
)
def test_a_pattern_chooses_by_the_whole_name(only: str, expected: list[str]):
    from benchmarks.accuracy.command import chosen_runs
    from benchmarks.accuracy.protocol import expand, load_protocol

    protocol = load_protocol("long")
    runs = expand(protocol, [*protocol.development, *protocol.held_out])
    assert [run.name for run in chosen_runs(runs, [only], [0])] == expected


@pytest.mark.parametrize("text", ["zero", "1,", "-1", "0.5"])
def test_seeds_that_are_no_numbers_are_refused(text: str):
    from benchmarks.accuracy.command import seed_list

    with pytest.raises(argparse.ArgumentTypeError, match="must be numbers like 0,2, got"):
        seed_list(text)


def test_killed_command_goes_on_after_the_last_finished_run(two_classes: Path, tmp_path: Path, command):
    arguments = ["--protocol", "tiny", "--data", two_classes, "--out", tmp_path, "--jobs", 1, "--device", "cpu", "--only", "one-cap"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.accuracy", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if "fd_32_all_one-cap_s1: started" in line:
                process.send_signal(signal.SIGKILL)
    first = tmp_path / "tiny" / "fd_32_all_one-cap_s0.json"
    before = first.read_bytes()
    for path in (tmp_path / "tiny").glob("*.json"):
        json.loads(path.read_text())  # whatever is there is whole
    status, out, _ = command(*arguments)
    assert status == 0
    assert "fd_32_all_one-cap_s0: started" not in out
    assert "finished: all 2 runs" in out
    assert first.read_bytes() == before


def test_two_processes_give_the_figures_of_one(finished: Path, two_classes: Path, tmp_path: Path, command):
    status, out, err = command(
        "--protocol", "tiny", "--data", two_classes, "--out", tmp_path, "--jobs", 2, "--device", "cpu", "--only", "fd_32_all_multi_s0"
    )  # two runs: FD and SNL(FD)
    assert (status, err) == (0, "")
    assert "finished: all 2 runs" in out
    assert record(tmp_path, ONE)["evaluation"] == record(finished, ONE)["evaluation"]


def test_second_command_on_the_same_runs_is_refused(two_classes: Path, tmp_path: Path, command):
    (tmp_path / "tiny").mkdir()
    with exclusive_lock(tmp_path / "tiny", what="test", blocking=False):
        status, _, err = command("--protocol", "tiny", "--data", two_classes, "--out", tmp_path, "--device", "cpu")
    assert status == 2
    assert f"{tmp_path / 'tiny'} is in use by another command on this protocol" in err


# What does not fit


def test_finished_run_with_other_settings_is_refused(finished: Path, two_classes: Path, tmp_path: Path, command):
    plain = yaml.safe_load((ROOT / "benchmarks/accuracy/protocols/tiny.yaml").read_text())
    plain["base"]["epochs"] = 3
    changed = tmp_path / "tiny.yaml"
    changed.write_text(yaml.safe_dump(plain))
    status, _, err = command("--protocol", changed, "--data", two_classes, "--out", finished, "--only", ONE)
    assert status == 2
    assert "config.epochs was 2 and is 3" in err


@pytest.mark.parametrize(("value", "status"), [("mean", 0), ("maximum", 2)])
def test_record_from_before_a_setting_stands_for_its_default_alone(value, status, finished: Path, two_classes: Path, tmp_path: Path, command):
    again = copied(finished, tmp_path / "again")
    plain = record(finished, ONE)
    del plain["config"]["model"]["whitening_normalization"]
    (again / "tiny" / f"{ONE}.json").write_text(json.dumps(plain))
    changed = yaml.safe_load((ROOT / "benchmarks/accuracy/protocols/tiny.yaml").read_text())
    changed["base"]["model"]["whitening_normalization"] = value
    protocol = tmp_path / "tiny.yaml"
    protocol.write_text(yaml.safe_dump(changed))
    found, _, err = command("--protocol", protocol, "--data", two_classes, "--out", again, "--only", ONE, "--jobs", 1, "--device", "cpu")
    assert found == status
    assert ("config.model.whitening_normalization was mean and is maximum" in err) == (status == 2)
    assert json.loads((again / "tiny" / f"{ONE}.json").read_text()) == plain  # neither trained nor measured again


def test_exported_rows_are_the_figures_of_the_run(finished: Path, tmp_path: Path, command):
    from benchmarks.accuracy.results import ACCURACY
    from benchmarks.accuracy.tables import read_rows

    status, _, err = command("--out", finished, "--export", "--results", tmp_path)
    assert (status, err) == (0, "")
    facts = record(finished, ONE)
    rows = {row["class"]: row for row in read_rows(tmp_path / "tiny.csv", ACCURACY) if (row["variant"], row["seed"]) == ("FD", "0")}
    assert rows.keys() == facts["evaluation"]["classes"].keys()
    for name, group in facts["evaluation"]["classes"].items():
        assert float(rows[name]["image_auroc"]) == pytest.approx(group["metrics"]["image_auroc"]["value"], abs=1e-8)
        assert (rows[name]["pixel_auroc"] == "") == (group["metrics"]["pixel_auroc"]["value"] is None)
        assert (rows[name]["commit"], rows[name]["date"]) == (facts["provenance"]["commit"], facts["provenance"]["finished_at"][:10])


def test_half_written_record_is_named(tmp_path: Path):
    from benchmarks.accuracy.records import read_records

    (tmp_path / "x.json").write_text('{"record": 1, "prot')
    with pytest.raises(DataError, match=r"x\.json"):
        read_records(tmp_path)


def test_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    from benchmarks.accuracy.records import write_record

    write_record(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_diverged_training_is_a_result(two_classes: Path, tmp_path: Path, monkeypatch):
    from benchmarks.accuracy import session as module

    def diverge(*_, **__):
        raise TrainingDivergedError("the loss is no longer finite at step 3 of 4")

    monkeypatch.setattr(module, "train", diverge)
    assert session_for(two_classes, tmp_path).perform(run_named(ONE)) == "finished"
    assert "no longer finite" in record(tmp_path, ONE)["failure"]


def test_records_of_baselines_do_not_disturb_the_own_runs(finished: Path, two_classes: Path, tmp_path: Path, quick_files: None):
    baseline = record(finished, ONE) | {"source": "anomalib 2.7.0", "variant": "PatchCore"}
    del baseline["evaluation_s"]
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "baseline-x.json").write_text(json.dumps(baseline))
    assert session_for(two_classes, tmp_path).perform(run_named(ONE)) == "finished"


def test_failed_run_does_not_keep_the_others_from_being_done(two_classes: Path, tmp_path: Path, command, monkeypatch):
    from benchmarks.accuracy import session as module

    real = module.train

    def train(config, *args, **kwargs):
        if config.model.method == "fd":
            raise ConfigError("no such thing")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(module, "train", train)
    status, out, err = command("--protocol", "tiny", "--data", two_classes, "--out", tmp_path, "--jobs", 1, "--device", "cpu", "--only", "multi_s0")
    assert status == 2
    assert "snl-fd_32_all_multi_s0: finished" in out
    assert "fd_32_all_multi_s0: no such thing" in err
