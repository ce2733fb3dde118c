"""``snl-train`` turns a folder into a checkpoint, says in one line what is wrong, and can be interrupted and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from snl_runtime.errors import ConfigError
from snl_train.checkpoint import load_checkpoint
from snl_train.cli.train import build_parser, main, resolve_config
from snl_train.config import preset_config

SHARED = Path(__file__).resolve().parents[3] / "shared"
TINY = "--method fd --teacher resnet18 --teacher-weights random --image-size 32 --batch-size 4 --device cpu --threads 1".split()


def config_of(*flags: str):
    return resolve_config(build_parser().parse_args(["--data", "d", "--out", "x.pt", *flags]))


# Settings


def test_defaults_are_the_paper_preset():
    assert config_of() == preset_config("paper")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--method fd", lambda c: c.model.method == "fd"),
        ("--teacher resnet34 --teacher-weights a.pth", lambda c: (c.model.teacher, c.model.teacher_weights) == ("resnet34", "a.pth")),
        ("--image-size 128", lambda c: c.image_size == (128, 128)),
        ("--image-size 128x192", lambda c: c.image_size == (128, 192)),
        ("--epochs 3 --batch-size 5 --seed 9", lambda c: (c.epochs, c.batch_size, c.seed) == (3, 5, 9)),
        ("--steps 30", lambda c: (c.steps, c.epochs) == (30, None)),
        ("--lr 0.25 --hold-out 0.2", lambda c: (c.optim.learning_rate, c.data.hold_out) == (0.25, 0.2)),
        ("--device cpu --skip-unreadable", lambda c: (c.device, c.data.skip_unreadable) == ("cpu", True)),
        ("--preset best", lambda c: c == preset_config("best")),
        ("--tile 256 --overlap 48", lambda c: c.data.tiles == (256, 48, False)),
        ("--tile 256 --with-whole-frame", lambda c: c.data.tiles == (256, 32, True)),
        ("--set optim.schedule=cosine --set loss.intra_weight=0", lambda c: (c.optim.schedule, c.loss.intra_weight) == ("cosine", 0.0)),
    ],
)
def test_flags_and_overrides_set_the_configuration(flags, expected):
    assert expected(config_of(*flags.split()))


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 4\nseed: 2\noptim:\n  schedule: constant\n")
    config = config_of("--config", str(file), "--seed", "3")
    assert (config.epochs, config.seed, config.optim.schedule, config.batch_size) == (4, 3, "constant", 8)


def test_unknown_setting_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        config_of("--set", "optim.learning_rte=1")


# Results


def test_json_is_one_object_that_names_what_was_written(plain_root, tmp_path, capsys):
    out = tmp_path / "x.pt"
    assert main(["--data", str(plain_root), "--out", str(out), *TINY, "--epochs", "2", "--hold-out", "0.34", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(out)
    assert result["classes"] == ["bolt", "ring"]
    assert (result["training_images"], result["held_out_images"], result["epochs_done"], result["steps_done"]) == (8, 4, 2, 4)
    assert result["images_per_s"] > 0
    assert result["loss"]["total"] > 0
    assert Path(result["metrics"]).is_file()
    assert not (tmp_path / "x.resume.pt").exists()
    checkpoint = load_checkpoint(out)
    assert checkpoint.epochs_done == 2
    assert len(checkpoint.held_out) == 4


def test_text_names_checkpoint_classes_and_speed(plain_root, tmp_path, capsys):
    out = tmp_path / "x.pt"
    assert main(["--data", str(plain_root), "--out", str(out), *TINY, "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    for part in (str(out), "bolt, ring", "12 images", "images/s"):
        assert part in captured.out
    for part in ("read: 12/12 images, 100 %", "train: 12/12 images, 100 %", "step 3/3"):
        assert part in captured.err


def test_left_out_files_are_listed(plain_root, tmp_path, capsys):
    broken = plain_root / "bolt" / "003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (plain_root / "notes.txt").write_text("text")
    out = tmp_path / "x.pt"
    assert main(["--data", str(plain_root), "--out", str(out), *TINY, "--epochs", "1", "--skip-unreadable", "--list-left-out", "--json"]) == 0
    captured = capsys.readouterr()
    assert "12 images taken, 0 cannot be taken, 1 files left out" in captured.err
    assert f"left out: {plain_root / 'notes.txt'} is not an image" in captured.err
    assert [entry["path"] for entry in json.loads(captured.out)["left_out"]] == [str(broken)]
    assert f"left out {broken}" in captured.err
    assert load_checkpoint(out).provenance["left_out"][0]["path"] == str(broken)


def test_bit_depth_is_saved_with_the_checkpoint_and_read_by_it(tmp_path, capsys):
    for seed in range(4):
        values = np.random.default_rng(seed).integers(0, 4096, (40, 48)).astype(np.uint16)
        (tmp_path / "data" / "cap").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "data" / "cap" / f"{seed}.png"), values)
    out = tmp_path / "x.pt"
    command = ["--data", str(tmp_path / "data"), "--out", str(out), *TINY, "--epochs", "1"]
    assert main(command) == 2
    assert "--bit-depth 12" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--bit-depth", "12"]) == 0
    checkpoint = load_checkpoint(out)
    assert checkpoint.config.data.bit_depth == 12
    assert checkpoint.golden_images.max() > 200


def test_resume_takes_its_settings_from_the_interrupted_training(plain_root, tmp_path, capsys):
    out = tmp_path / "x.pt"
    assert main(["--data", str(plain_root), "--out", str(out), *TINY, "--epochs", "1", "--json"]) == 0
    assert main(["--data", str(plain_root), "--out", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[1])["epochs_done"] == 1


def test_fetch_teacher_writes_the_named_file(tmp_path, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr("snl_train.models.fetch_teacher", lambda architecture, out: fetched.append((architecture, out)))
    out = tmp_path / "resnet18.safetensors"
    assert main(["--fetch-teacher", "resnet18", "--out", str(out), "--json"]) == 0
    assert fetched == [("resnet18", out)]
    assert json.loads(capsys.readouterr().out) == {"teacher": "resnet18", "file": str(out)}


def test_help_works_without_torch():
    code = "import sys; sys.modules.update(torch=None, torchvision=None, cv2=None)\nfrom snl_train.cli.train import main\nmain(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--hold-out" in done.stdout


# What the user did wrong


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "{tmp}/nowhere"], "nowhere"),
        (["--out", "{tmp}/nowhere/x.pt"], "nowhere"),
        (["--out", "{tmp}"], "folder"),
        (["--out", "{tmp}/x.resume.pt"], "x.pt"),
        (["--epochs", "0"], "epochs"),
        (["--batch-size", "1", "--method", "rd"], "--batch-size 2"),
        (["--image-size", "40"], "multiples of 16"),
        (["--threads", "0"], "--threads"),
        (["--hold-out", "1"], "hold_out"),
        (["--teacher-weights", "{tmp}/gone.pth"], "gone.pth"),
        (["--config", "{tmp}/gone.yaml"], "gone.yaml"),
        (["--set", "epochs"], "name=value"),
        (["--resume"], "nothing to resume"),
        (["--with-whole-frame"], "data.with_whole_frame adds the whole image to tiles, and data.tile_px gives none; give --tile N, or leave it out"),
        pytest.param(["--device", "cuda"], "GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
)
def test_user_error_is_one_line_and_exit_status_2(plain_root, tmp_path, capsys, flags, named):
    base = ["--data", str(plain_root), "--out", str(tmp_path / "x.pt"), *TINY, "--epochs", "1"]
    assert main([*base, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("snl-train: error: ")
    assert named in last
    assert not (tmp_path / "x.pt").exists()


def test_missing_data_is_named(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "x.pt")]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["abc", "12x", "1x2x3", "-5"])
def test_image_size_in_another_form_is_refused(tmp_path, capsys, text):
    with pytest.raises(SystemExit) as caught:
        main(["--data", "d", "--out", str(tmp_path / "x.pt"), f"--image-size={text}"])
    assert caught.value.code == 2
    assert "256x320" in capsys.readouterr().err


def test_dataset_error_names_the_file(mvtec_root, tmp_path, capsys):
    broken = mvtec_root / "nut" / "train" / "good" / "003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert main(["--data", str(mvtec_root), "--out", str(tmp_path / "x.pt"), *TINY]) == 2
    assert str(broken) in capsys.readouterr().err.splitlines()[-1]


# Real images


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images and weights are not beside the checkout")
def test_real_images_train_with_real_weights(tmp_path, capsys):
    weights = SHARED / "weights" / "resnet18_imagenet_stem-layer3.safetensors"
    flags = f"--teacher resnet18 --teacher-weights {weights} --image-size 64 --epochs 1 --hold-out 0.2 --set data.max_per_class=4 --device cpu --json"
    assert main(["--data", str(SHARED / "data" / "realmix"), "--out", str(tmp_path / "x.pt"), *flags.split()]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (len(result["classes"]), result["training_images"]) == (7, 28)
    assert result["held_out_images"] == 32 + 6 + 6 + 50 + 50 + 47 + 50  # a fifth of each class, rounded
    assert len(load_checkpoint(tmp_path / "x.pt").golden_images) == 14
