"""What a training made is never lost to the next one at the same ``--out``: refused, or kept until the new one has saved."""

import itertools
import json
import shutil

import cv2
import numpy as np
import pytest

from snl_runtime.errors import CheckpointError, ConfigError, DataError, SinkError
from snl_train.checkpoint import load_checkpoint
from snl_train.cli.train import main
from snl_train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from snl_train.data.dataset import load_training_data
from snl_train.metrics_log import metrics_path
from snl_train.output import claim_output, replaced_path
from snl_train.resume import read_resume_point, resume_path
from snl_train.training import train

TINY = "--method fd --teacher resnet18 --teacher-weights random --image-size 32 --batch-size 4 --device cpu --threads 1 --epochs 1".split()


def make_config(epochs=1, **changes):
    model = ModelConfig(method="fd", teacher="resnet18", teacher_weights="random", centers=4)
    return TrainConfig(**{"model": model, "image_size": (32, 32), "epochs": epochs, "batch_size": 4, "seed": 7, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, a finished training of two steps on them, and one stopped after step 1 of 4; made once."""
    folder = tmp_path_factory.mktemp("made")
    for index in range(8):
        picture = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        (folder / "images" / "bolt").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / "images" / "bolt" / f"{index}.png"), picture)
    data = load_training_data(folder / "images", (32, 32), config=DataConfig(), threads=1)
    for name, epochs, stop in (("finished", 1, lambda: False), ("unfinished", 2, stop_after(1))):
        (folder / name).mkdir()
        train(make_config(epochs), data, folder / name / "x.pt", should_stop=stop)
    return folder


@pytest.fixture
def data(made):
    return load_training_data(made / "images", (32, 32), config=DataConfig(), threads=1)


@pytest.fixture
def finished(made, tmp_path):
    shutil.copytree(made / "finished", tmp_path, dirs_exist_ok=True)
    return tmp_path / "x.pt"


@pytest.fixture
def unfinished(made, tmp_path):
    shutil.copytree(made / "unfinished", tmp_path, dirs_exist_ok=True)
    return tmp_path / "x.pt"


def stop_after(steps):
    calls = itertools.count(1)
    return lambda: next(calls) >= steps


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refusal(out, *, resume=False, overwrite=False):
    before = contents(out.parent)
    with pytest.raises((ConfigError, CheckpointError, SinkError)) as caught, claim_output(out, resume=resume, overwrite=overwrite):
        pass
    assert contents(out.parent) == before
    return str(caught.value)


def claim(out, *, resume=False, overwrite=False):
    before = contents(out.parent)
    with claim_output(out, resume=resume, overwrite=overwrite):
        pass
    assert contents(out.parent) == before


# Who may write


def test_finished_model_is_refused_and_described(finished):
    message = refusal(finished)
    for part in ("holds a finished model of 1 product (bolt)", "step 2 of 2", load_checkpoint(finished).provenance["saved_at"], "--overwrite"):
        assert part in message
    assert "--resume" not in message
    claim(finished, overwrite=True)
    claim(finished, resume=True)


def test_unfinished_training_is_refused_with_both_ways_out(unfinished):
    message = refusal(unfinished)
    for part in ("an unfinished training", "step 1 of 4", "continue it with --resume", "replace it with --overwrite"):
        assert part in message
    claim(unfinished, overwrite=True)
    claim(unfinished, resume=True)


def test_state_without_its_checkpoint_is_refused_too(unfinished):
    unfinished.unlink()
    assert "x.resume.pt holds an unfinished training on 8 images, step 1" in refusal(unfinished)
    claim(unfinished, resume=True)


def test_state_that_cannot_be_read_is_still_somebodys_work(unfinished):
    unfinished.unlink()
    resume_path(unfinished).write_bytes(b"half")
    assert "a training state that cannot be read" in refusal(unfinished)


def test_unfinished_checkpoint_without_its_state_cannot_be_resumed(unfinished):
    resume_path(unfinished).unlink()
    assert "x.resume.pt does not exist; copy it" in refusal(unfinished, resume=True)
    assert "--resume" not in refusal(unfinished)


@pytest.mark.parametrize("content", [b"", b"drawings of the line", b"PK\x03\x04 half an archive"])
@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_file_that_no_training_wrote_is_never_replaced(unfinished, content, flags):
    unfinished.write_bytes(content)
    assert "it is not replaced: move it away or name another --out" in refusal(unfinished, **flags)


def test_free_out_is_claimed_without_a_trace(tmp_path):
    claim(tmp_path / "x.pt")
    assert "nothing to resume" in refusal(tmp_path / "x.pt", resume=True)


def test_training_that_went_on_where_it_was_set_aside_is_not_removed(made, data, unfinished):
    aside = replaced_path(unfinished)
    for name in ("x.pt", "x.resume.pt", "x.metrics.jsonl"):
        shutil.copy(made / "unfinished" / name, unfinished.with_name(name.replace("x.", "x.replaced.", 1)))
    assert f"{aside} is a training of its own" in refusal(unfinished, overwrite=True)
    train(make_config(epochs=2), data, unfinished, resume=True)
    assert all(path.exists() for path in (aside, resume_path(aside), metrics_path(aside)))
    unfinished.unlink()
    metrics_path(unfinished).unlink()
    with pytest.raises(Killed):
        train(make_config(), data, unfinished, should_stop=raise_after(1, Killed))
    assert all(path.exists() for path in (aside, resume_path(aside), metrics_path(aside)))


@pytest.mark.parametrize("name", ["x", "x.bin", "x.resume.pt", ".pt"])
def test_name_whose_side_files_another_checkpoint_has_is_refused(tmp_path, capsys, name):
    assert main(["--data", "d", "--out", str(tmp_path / name), *TINY]) == 2
    assert "ends in .pt and not in .resume.pt" in capsys.readouterr().err


def test_second_trainer_is_refused_while_the_first_works(tmp_path):
    with claim_output(tmp_path / "x.pt", resume=False, overwrite=False):
        with pytest.raises(SinkError, match="another training"), claim_output(tmp_path / "x.pt", resume=False, overwrite=True):
            pass
        with claim_output(tmp_path / "y.pt", resume=False, overwrite=False):
            pass
    claim(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.pt", "x.resume.pt", "x.metrics.jsonl"])
def test_output_that_cannot_be_written_is_refused_before_an_image_is_read(plain_root, tmp_path, capsys, name):
    (plain_root / "bolt" / "000.png").write_bytes(b"would be named, if it were read")
    (tmp_path / name).mkdir()
    assert main(["--data", str(plain_root), "--out", str(tmp_path / "x.pt"), *TINY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {tmp_path / name}: it is a folder" in line


def test_resume_and_overwrite_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["--data", "d", "--out", "x.pt", "--resume", "--overwrite"])
    assert "not allowed with" in capsys.readouterr().err


def test_fetched_weights_replace_nothing_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("snl_train.models.fetch_teacher", lambda architecture, out: out.write_text("fetched"))
    out = tmp_path / "resnet18.safetensors"
    out.write_text("fitted by hand")
    assert main(["--fetch-teacher", "resnet18", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "fitted by hand"
    assert main(["--fetch-teacher", "resnet18", "--out", str(out), "--overwrite"]) == 0
    assert out.read_text() == "fetched"


# Replacing


class Killed(BaseException):
    """Ends a training where a killed process would."""


def raise_after(steps, error):
    calls = itertools.count(1)

    def should_stop():
        if next(calls) >= steps:
            raise error
        return False

    return should_stop


@pytest.mark.parametrize("existing", ["finished", "unfinished"])
def test_replacement_that_fails_before_its_first_save_leaves_what_was_there(data, tmp_path, existing, request):
    out = request.getfixturevalue(existing)
    before = contents(tmp_path)
    with pytest.raises(Killed):
        train(make_config(seed=8), data, out, should_stop=raise_after(1, Killed))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("existing", ["finished", "unfinished"])
@pytest.mark.parametrize("stop", [stop_after(1), lambda: False], ids=["stopped", "complete"])
def test_replacement_that_saved_leaves_nothing_of_the_other_one(data, tmp_path, existing, request, stop):
    out = request.getfixturevalue(existing)
    result = train(make_config(seed=8), data, out, should_stop=stop)
    names = {"x.pt", "x.metrics.jsonl"} | (set() if result.is_complete else {"x.resume.pt"})
    assert set(contents(tmp_path)) == names
    assert load_checkpoint(out).seed == 8
    assert [json.loads(line)["step"] for line in metrics_path(out).read_text().splitlines()][-1] == result.steps_done


def test_state_is_whole_or_unchanged_when_a_save_fails(data, unfinished, monkeypatch):
    """Second half of a save that meets a full disk: checkpoint and state stay those of one moment."""
    before = contents(unfinished.parent)

    def full(path, stored):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("snl_train.resume.dump_tensors", full)
    with pytest.raises(SinkError, match=r"x\.resume\.pt: No space left"):
        train(make_config(epochs=2), data, unfinished, resume=True, should_stop=stop_after(1))
    after = contents(unfinished.parent)
    assert {name: after[name] for name in ("x.pt", "x.resume.pt")} == {name: before[name] for name in ("x.pt", "x.resume.pt")}
    assert read_resume_point(resume_path(unfinished)).state["steps_done"] == 1


# Complete trainings


def test_complete_training_has_no_state_to_add_epochs_to(data, tmp_path):
    optim = OptimConfig(schedule="constant")
    train(make_config(epochs=1, optim=optim), data, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="complete after 2 steps"):
        train(make_config(epochs=2, optim=optim), data, tmp_path / "x.pt", resume=True)


def test_complete_training_on_other_images_is_not_taken_for_this_one(data, plain_root, picture, tmp_path):
    train(make_config(), data, tmp_path / "x.pt")
    picture(plain_root / "ring" / "900.png", 900)
    other = load_training_data(plain_root, (32, 32), config=DataConfig())
    with pytest.raises(DataError, match="are not those it was trained on"):
        train(make_config(), other, tmp_path / "x.pt", resume=True)
