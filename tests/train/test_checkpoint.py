"""A checkpoint comes back as it was saved, or is refused with one error, and never runs code."""

import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from snl_runtime.errors import CheckpointError, SinkError
from snl_train.checkpoint import Checkpoint, dump_tensors, load_checkpoint, save_checkpoint
from snl_train.config import ModelConfig, TrainConfig
from snl_train.models import build_model

CONFIG = TrainConfig(model=ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights="random", centers=4), image_size=(32, 48))


def make_checkpoint(**changes) -> Checkpoint:
    torch.manual_seed(5)
    model = build_model(CONFIG.model)
    values = {
        "config": CONFIG,
        "state_dict": model.state_dict(),
        "classes": ["bolt", "ring"],
        "seed": 5,
        "epochs_done": 3,
        "training_image_sha256": ["a" * 64, "b" * 64],
        "held_out": [{"path": "bolt/1.png", "sha256": "c" * 64, "class_name": "bolt"}],
        "golden_images": np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8),
        "golden_classes": ["bolt", "ring", "bolt"],
        "provenance": {"versions": {"torch": "2"}, "steps_done": 7, "is_complete": True},
    }
    return Checkpoint(**{**values, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "x.pt"
    save_checkpoint(path, make_checkpoint())
    return path


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_every_field_comes_back(saved):
    before, after = make_checkpoint(), load_checkpoint(saved)
    assert after.config == before.config
    for name in ("classes", "seed", "epochs_done", "training_image_sha256", "held_out", "golden_classes", "provenance"):
        assert getattr(after, name) == getattr(before, name)
    assert np.array_equal(after.golden_images, before.golden_images)
    assert set(after.state_dict) == set(before.state_dict)
    assert all(torch.equal(after.state_dict[name], tensor) for name, tensor in before.state_dict.items())


def test_file_holds_tensors_and_plain_values_only(saved):
    def walk(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                assert type(key) is str
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        else:
            assert type(value) in (torch.Tensor, str, int, float, bool, type(None))

    walk({**torch.load(saved, weights_only=True), "state_dict": dict(torch.load(saved, weights_only=True)["state_dict"])})


def test_model_is_rebuilt_with_its_teacher_without_weights_at_hand(tmp_path):
    absent = TrainConfig(
        model=ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights=str(tmp_path / "gone.pth"), centers=4), image_size=(32, 48)
    )
    original = make_checkpoint()
    path = tmp_path / "x.pt"
    save_checkpoint(path, make_checkpoint(config=absent))
    model = load_checkpoint(path).build_model()
    assert not model.training
    assert all(torch.equal(tensor, original.state_dict[name]) for name, tensor in model.state_dict().items())


def test_rebuilding_a_model_does_not_disturb_the_random_numbers(saved):
    torch.manual_seed(0)
    load_checkpoint(saved).build_model()
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_weights_of_another_network_are_refused(tmp_path):
    state = dict(make_checkpoint().state_dict)
    state.pop(next(name for name in state if name.startswith("student")))
    with pytest.raises(CheckpointError, match="do not fit"):
        make_checkpoint(state_dict=state).build_model()


def test_missing_file_is_named(tmp_path):
    assert "does not exist" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(saved, tmp_path, share):
    data = saved.read_bytes()
    path = tmp_path / "x.pt"
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


def test_single_altered_byte_in_any_tensor_is_found(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    rng = random.Random(0)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(saved) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size > 1000]
    for entry in rng.sample(entries, 5):
        position = entry.header_offset + 300 + rng.randrange(500)
        data[position] ^= 0x10
        path.write_bytes(data)
        assert "damaged" in refused(path)
        data[position] ^= 0x10


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_over_a_checkpoint_load_equal_or_are_refused(saved, tmp_path, seed):
    data = bytearray(saved.read_bytes())
    rng = random.Random(seed)
    for _ in range(4):
        start = rng.choice([rng.randrange(3000), len(data) - rng.randrange(1, 3000), rng.randrange(len(data))])
        data[start : start + 8] = rng.randbytes(8)
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    try:
        loaded = load_checkpoint(path)
    except CheckpointError:
        return
    assert loaded.classes == ["bolt", "ring"]
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in make_checkpoint().state_dict.items())


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_random_bytes_are_refused(tmp_path, size):
    path = tmp_path / "x.pt"
    path.write_bytes(random.Random(size).randbytes(size))
    refused(path)


class _RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["torch", "pickle", "inside"])
def test_file_that_carries_code_is_refused_and_does_not_run_it(saved, tmp_path, form):
    path, marker = tmp_path / "x.pt", tmp_path / "ran"
    if form == "torch":
        torch.save({"kind": "snl-edge checkpoint", "schema": 1, "config": _RunsCode(marker)}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(_RunsCode(marker)))
    else:
        torch.save({**torch.load(saved, weights_only=True), "provenance": _RunsCode(marker)}, path)
    refused(path)
    assert not marker.exists()


def test_another_schema_is_named(saved, tmp_path):
    path = tmp_path / "x.pt"
    dump_tensors(path, {**torch.load(saved, weights_only=True), "schema": 99})
    assert "99" in refused(path)


def test_plain_state_dict_is_not_taken_for_a_checkpoint(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(make_checkpoint().state_dict, path)
    refused(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state_dict", {"weight": 3}),
        ("state_dict", None),
        ("classes", None),
        ("golden_images", torch.zeros(3, 32, 48, 3)),
        ("golden_images", torch.zeros(3, 3, 32, 48, dtype=torch.uint8)),
        ("golden_classes", ["bolt"]),
        ("config", {"epoch": 3}),
        ("config", 7),
        ("seed", "abc"),
        ("held_out", ["path"]),
        ("provenance", 3),
    ],
)
def test_field_of_another_kind_is_refused(saved, tmp_path, key, value):
    path = tmp_path / "x.pt"
    dump_tensors(path, {**torch.load(saved, weights_only=True), key: value})
    refused(path)


@pytest.mark.parametrize("key", ["config", "state_dict", "classes", "golden_images", "training_image_sha256", "provenance"])
def test_missing_field_is_refused(saved, tmp_path, key):
    stored = torch.load(saved, weights_only=True)
    del stored[key]
    path = tmp_path / "x.pt"
    dump_tensors(path, stored)
    assert key in refused(path)


def test_failed_write_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SinkError, match="No space left"):
        save_checkpoint(path, make_checkpoint())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_stopped_training_is_told_by_its_checkpoint():
    assert make_checkpoint().unfinished is None
    stopped = make_checkpoint(provenance={"is_complete": False, "steps_done": 7, "total_steps": 90})
    assert stopped.unfinished == "the training is not finished (step 7 of 90); continue it with snl-train --resume"
