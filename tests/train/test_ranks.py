"""Several processes train what one process trains with the same total batch, to rounding; where they cannot, what they compute is stated here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rank_jobs import GROUPED, RANDOM, REMEMBERING, SAME, STATISTICS_BATCHES, load, run_job
from snl_runtime.errors import ConfigError, RankLostError
from snl_train.checkpoint import load_checkpoint
from snl_train.config import LossConfig, ModelConfig, TrainConfig
from snl_train.data.sampling import BalancedBatches
from snl_train.launch import Launch
from snl_train.losses import structural_loss
from snl_train.metrics_log import metrics_path
from snl_train.models import build_model
from snl_train.ranks import ALONE, ProcessGroup, Ranks, join_ranks
from snl_train.resume import read_resume_point, resume_path
from snl_train.schedule import learning_rate
from snl_train.training import train

RELATIVE = 1e-6
"""Of float64 results: 4e-10 was measured; a float32 slip anywhere shows as 1e-4 or more after three Adam steps."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes of the jobs have: with more, sums are taken in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, picture_root):
    folder = tmp_path_factory.mktemp("two")
    run_job("train", picture_root, folder)  # checks sums, statistics and random numbers first, see there
    return folder


def last_losses(out: Path):
    return json.loads(metrics_path(out).read_text().splitlines()[-1])["loss"]


def assert_close(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        scale = float(tensor.double().abs().max())
        assert (found[name].double() - tensor.double()).abs().max() <= RELATIVE * scale, name


# What is equal


def test_losses_and_final_weights_are_those_of_one_process_with_the_same_total_batch(two_processes, picture_root, tmp_path, in_float64, monkeypatch):
    monkeypatch.setattr("snl_train.training.STATISTICS_BATCHES", STATISTICS_BATCHES)
    train(SAME, load(picture_root), tmp_path / "one.pt")
    assert last_losses(two_processes / "same.pt") == pytest.approx(last_losses(tmp_path / "one.pt"), rel=RELATIVE)
    found, expected = load_checkpoint(two_processes / "same.pt"), load_checkpoint(tmp_path / "one.pt")
    assert_close(found.state_dict, expected.state_dict)  # averaged weights, batch statistics and whitening among them
    assert (found.provenance["processes"], expected.provenance["processes"]) == (2, 1)


def test_memory_is_to_the_bit_that_of_one_process_and_the_plateau_is_found_at_its_step(two_processes, picture_root, tmp_path):
    train(REMEMBERING, load(picture_root), tmp_path / "one.pt")
    stored = [load_checkpoint(out) for out in (two_processes / "memory.pt", tmp_path / "one.pt")]
    found, expected = (checkpoint.state_dict for checkpoint in stored)
    of_memory = [name for name in expected if name.startswith("memory.codebooks")]
    assert len(of_memory) >= 6
    assert all(torch.equal(found[name], expected[name]) for name in of_memory)
    assert float(found["memory.student_weight"]) == pytest.approx(float(expected["memory.student_weight"]), rel=0.01)  # after float32 steps
    facts, facts_of_one = (checkpoint.provenance["stopped_early"] for checkpoint in stored)
    assert (facts["step"], facts["best_step"]) == (2, 1)
    assert facts == pytest.approx(facts_of_one, rel=0.01)


def test_losses_between_images_are_the_mean_over_the_processes_own_images(two_processes, picture_root, in_float64):
    """The same training as a plain loop on one process: one batch normalization over all, losses within each half of the batch."""
    data, config = load(picture_root), GROUPED
    torch.manual_seed(config.seed)
    model = build_model(config.model).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], betas=config.optim.betas, weight_decay=0.0)
    batches = BalancedBatches(data.labels, config.batch_size, seed=config.seed)
    totals = []
    for step, numbers in zip(range(batches.batches_per_epoch), batches):
        images = torch.from_numpy(data.inputs.read([data.samples[number] for number in numbers]))
        features = model(model.normalize(images))
        halves = [[[scale[begin : begin + 2] for scale in side] for side in features] for begin in (0, 2)]
        loss = torch.stack([structural_loss(*half, config.loss)["total"] for half in halves]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(step, batches.batches_per_epoch, config.optim)
        optimizer.step()
        totals.append(loss.item())
    assert last_losses(two_processes / "grouped.pt")["total"] == pytest.approx(np.mean(totals), rel=RELATIVE)
    assert_close(load_checkpoint(two_processes / "grouped.pt").state_dict, model.state_dict())


def test_one_process_alone_writes(two_processes):
    trained = ("same", "grouped", "memory")
    assert {path.name for path in two_processes.iterdir()} == {f"{name}.{end}" for name in trained for end in ("pt", "metrics.jsonl")}


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]),
    ],
)
def test_process_group_of_one_trains_what_a_process_alone_trains(picture_root, tmp_path, device):
    run_job(f"group_on_{device}", picture_root, tmp_path, count=1)
    assert last_losses(tmp_path / "group.pt") == pytest.approx(last_losses(tmp_path / "alone.pt"), rel=1e-3)  # float32, three steps of Adam


# Resuming


@pytest.mark.slow
def test_training_that_one_process_stopped_resumes_to_the_bit_on_as_many(picture_root, tmp_path):
    run_job("resume", picture_root, tmp_path)
    straight, resumed = (load_checkpoint(tmp_path / name).state_dict for name in ("straight.pt", "x.pt"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    assert not resume_path(tmp_path / "x.pt").exists()


def test_resuming_on_another_number_of_processes_is_refused(picture_root, tmp_path):
    out = tmp_path / "x.pt"
    train(RANDOM, load(picture_root), out, should_stop=lambda: True)
    state = read_resume_point(resume_path(out)).state
    with pytest.raises(ConfigError, match="cannot resume on 2 processes what was trained on 1; start 1, or train anew"):
        Ranks(Launch(rank=1, world_size=2)).set_random_state(state, torch.device("cpu"))


def test_random_state_of_a_version_that_knew_one_process_is_continued():
    torch.manual_seed(5)
    stored = {"random": torch.get_rng_state(), "random_cuda": None}
    expected = torch.rand(3)
    ALONE.set_random_state(stored, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


# Shares and settings


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_of_a_batch_are_disjoint_and_equally_large(count):
    batch = np.array([5, 3, 9, 1, 7, 2])
    shares = [Ranks(Launch(rank=rank, world_size=count)).share(batch) for rank in range(count)]
    assert np.array_equal(np.concatenate(shares), batch)
    assert {len(share) for share in shares} == {6 // count}


def check(count, **changes):
    group = ProcessGroup.__new__(ProcessGroup)  # not joined: settings are refused before anything is sent
    Ranks.__init__(group, Launch(world_size=count))
    group.require_same = lambda what, value: None
    group.check(TrainConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10}, "batch_size is the total over 4 processes and must be a multiple of 4, got 10"),
        ({"batch_size": 4}, "batch_size 4 leaves each of 4 processes one image, with no other to compare it with; take a multiple of 8"),
        ({"model": ModelConfig(method="memory")}, "the method memory trains nothing that several processes could share"),
    ],
)
def test_settings_that_cannot_be_shared_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(4, **changes)


def test_one_image_for_each_process_is_enough_where_no_two_are_compared():
    check(4, batch_size=4, loss=LossConfig(inter_weight=0.0))


def test_process_that_does_not_come_is_named_as_late(monkeypatch):
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RankLostError, match="of this training on 2 did not answer for 1 s"), join_ranks(Launch(world_size=2), timeout_s=1):
        pass


def test_pytorch_without_distributed_trains_on_one_process_only(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    with join_ranks(Launch()) as ranks:
        assert ranks.world_size == 1
    with pytest.raises(ConfigError, match="was built without torch.distributed"), join_ranks(Launch(world_size=2)):
        pass


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 86401])
def test_waiting_for_no_time_or_more_than_a_day_is_refused(timeout_s):
    with pytest.raises(ConfigError, match="must be above 0 and at most 86400 s"), join_ranks(Launch(), timeout_s=timeout_s):
        pass
