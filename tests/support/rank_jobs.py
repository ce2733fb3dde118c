"""Trainings on several processes for tests: what starts the processes, and what each of them does."""

import contextlib
import dataclasses
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from snl_runtime.errors import ConfigError
from snl_train import training
from snl_train.batch_norm import synchronize_batch_norm
from snl_train.budget import EarlyStopConfig
from snl_train.config import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from snl_train.data.dataset import load_training_data
from snl_train.launch import launch_of
from snl_train.memory_config import MemoryConfig
from snl_train.models.whitening import ResidualWhitening, fit_own_whitening
from snl_train.ranks import ALONE, ProcessGroup, join_ranks
from snl_train.resume import resume_path
from snl_train.synthetic_anomaly_config import SyntheticAnomalyConfig
from snl_train.training import train

DEADLINE_S = 240.0
STUDENT = ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights="random", centers=4, whitening=True, whitening_normalization="maximum")
COMMON = {"image_size": (32, 32), "epochs": 1, "batch_size": 4, "seed": 7, "device": "cpu"}
SAME = TrainConfig(
    model=STUDENT,
    loss=LossConfig(inter_weight=0.0),
    optim=OptimConfig(average_last_share=0.7, learning_rate=1e-3, gradient_clip=1.0),
    **COMMON,
)
"""Settings under which several processes compute what one computes."""
REMEMBERING = TrainConfig(
    model=ModelConfig(method="fd", teacher="resnet18", teacher_weights="random"),
    memory=MemoryConfig(centers=4),
    optim=OptimConfig(schedule="constant", learning_rate=1e-3),
    early_stop=EarlyStopConfig(patience=1, every_steps=1, min_improvement=0.99),
    **COMMON,
)
"""A student with a memory, which is float32 whatever the training is; its second step ends it, because no step improves by 99 %."""
STATISTICS_BATCHES = 6
"""Instead of 64, which are most of the time of a training of three steps."""
GROUPED = TrainConfig(
    model=ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights="random", centers=4),
    loss=LossConfig(inter_pairing="roll", channel_focus=1.0),
    optim=OptimConfig(schedule="constant", learning_rate=1e-3),
    **COMMON,
)
"""Settings under which each process computes its losses over its own images."""
RANDOM = TrainConfig(
    model=ModelConfig(method="snl-fd", teacher="resnet18", teacher_weights="random", centers=4),
    loss=LossConfig(affinity_positions=8),
    optim=OptimConfig(optimizer="muon", average_decay=0.9),
    synthetic_anomalies=SyntheticAnomalyConfig(share=0.7),
    **{**COMMON, "epochs": 2},
)
"""Settings that draw random numbers in every step."""


def environments(count):
    """Return what a launcher sets for each of ``count`` processes of one training on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@contextlib.contextmanager
def processes(count, *command):
    """Yield ``count`` running processes of one training; they are gone afterwards."""
    with contextlib.ExitStack() as ended:
        started = []
        for environment in environments(count):
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            ended.callback(process.communicate)
            ended.callback(process.kill)
            started.append(process)
        yield started


def run_job(name, root, folder, *, count=2):
    """Let ``count`` processes do a job on the images in ``root``; they write into ``folder``."""
    with processes(count, __file__, name, root, folder) as started:
        said = [process.communicate(timeout=DEADLINE_S)[1] for process in started]
        assert [process.returncode for process in started] == [0] * count, "\n".join(said)


def load(root):
    return load_training_data(root, (32, 32), config=DataConfig(), threads=1)


def job_train(ranks, root, folder):
    """Check what processes do together, train with a memory, and train in float64, where only rounding could hide a difference."""
    check_together(ranks)
    training.STATISTICS_BATCHES = STATISTICS_BATCHES
    train(REMEMBERING, load(root), folder / "memory.pt", ranks=ranks)
    torch.set_default_dtype(torch.float64)
    for name, config in (("same", SAME), ("grouped", GROUPED)):
        train(config, load(root), folder / f"{name}.pt", ranks=ranks)


def job_resume(ranks, root, folder):
    """Train straight, and stopped in the middle and resumed; only the second process is asked to stop."""
    data = load(root)
    train(RANDOM, data, folder / "straight.pt", ranks=ranks)
    calls = itertools.count(1)
    stopped = train(RANDOM, data, folder / "x.pt", ranks=ranks, should_stop=lambda: next(calls) >= 2 and ranks.rank == 1)
    assert (stopped.is_complete, stopped.steps_done) == (False, 2)
    assert resume_path(folder / "x.pt").exists()
    torch.rand(100)
    train(RANDOM, data, folder / "x.pt", ranks=ranks, resume=True)


def job_group_on_cpu(ranks, root, folder, device="cpu"):
    """Train alone, and in a process group of one, which does all that several processes do."""
    config = dataclasses.replace(SAME, device=device, mixed_precision=False)
    train(config, load(root), folder / "alone.pt", ranks=ranks)
    train(config, load(root), folder / "group.pt", ranks=ProcessGroup(launch_of(), timeout_s=DEADLINE_S))


def job_group_on_cuda(ranks, root, folder):
    """Do the same over NCCL with PyTorch's SyncBatchNorm."""
    job_group_on_cpu(ranks, root, folder, device="cuda")


def check_together(ranks):
    """Compare what processes do together with the same thing computed at once."""
    own = torch.tensor([1.0, 10.0]) * (1 + ranks.rank)
    assert torch.equal(ranks.sum(own), torch.tensor([3.0, 30.0]))
    assert torch.equal(ranks.gather(own), torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
    assert ranks.total(1 + ranks.rank) == 3
    assert ranks.mean({"a": own[0], "b": own[1]}) == {"a": torch.tensor(1.5), "b": torch.tensor(15.0)}
    assert (ranks.largest(5 - ranks.rank), ranks.any(ranks.rank == 1), ranks.any(False)) == (5, True, False)
    ranks.require_same("color", "red")
    assert refusal(lambda: ranks.require_same("color", ["red", "blue"][ranks.rank])) == (
        "all processes need the same color, but process 0 has red and process 1 has blue"
    )
    assert refusal(lambda: ranks.check(dataclasses.replace(SAME, seed=ranks.rank))) == (
        "all processes need the same setting seed, but process 0 has 0 and process 1 has 1"
    )
    _check_batch_norm(ranks)
    _check_whitening(ranks)
    torch.manual_seed(3)
    ranks.seed_apart()
    drawn = ranks.gather(torch.rand(4))
    assert torch.equal(drawn[0], torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(drawn[0], drawn[1])


def refusal(call):
    try:
        call()
    except ConfigError as error:
        return str(error)
    return None


def _check_whitening(ranks):
    """Compare a whitening that two processes fit to half of each batch with one fitted to all."""
    batches = torch.randn(3, 4, 8, 3, 3, generator=torch.Generator().manual_seed(1))  # teacher and student, 4 channels each
    half = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    fitted = []
    for parts, together in ((batches, ALONE), (batches[:, half], ranks)):
        model = nn.Identity()
        model.forward = lambda x: ([x[:, :4]], [x[:, 4:]])
        model.whitening = nn.ModuleList([ResidualWhitening(4, floor=0.1, expectation=0.5)])
        fit_own_whitening(model, lambda parts=parts: iter(parts), "maximum", together)
        fitted.append(model.whitening.state_dict())
    for name, tensor in fitted[0].items():
        torch.testing.assert_close(fitted[1][name], tensor, msg=name)


def _check_batch_norm(ranks):
    generator = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(6, 3, 2, 4, generator=generator, dtype=torch.float64) * 5 + 40 for _ in range(2))
    norms = []
    for part in (slice(None), slice(3 * ranks.rank, 3 * ranks.rank + 3)):
        model = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.ReLU()).double()
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([0.5, -2.0, 3.0]))
        if part != slice(None):
            synchronize_batch_norm(model)
        x = images[part].clone().requires_grad_()
        for scale in (1.0, 2.0):
            y = model(x * scale)
        (y * weights[part]).sum().backward()
        norms.append((model[0], x.grad, y))
    (whole, whole_gradient, whole_y), (own, own_gradient, own_y) = norms
    part = slice(3 * ranks.rank, 3 * ranks.rank + 3)
    torch.testing.assert_close(own_y, whole_y[part])
    torch.testing.assert_close(own_gradient, whole_gradient[part])
    torch.testing.assert_close(ranks.sum(own.weight.grad), whole.weight.grad)
    torch.testing.assert_close(ranks.sum(own.bias.grad), whole.bias.grad)
    torch.testing.assert_close(own.running_mean, whole.running_mean)
    torch.testing.assert_close(own.running_var, whole.running_var)
    assert own.num_batches_tracked == 2
    own.eval()
    whole.eval()
    torch.testing.assert_close(own(images), whole(images))


if __name__ == "__main__":
    torch.set_num_threads(1)
    job, images_root, out_folder = globals()[f"job_{sys.argv[1]}"], Path(sys.argv[2]), Path(sys.argv[3])
    with join_ranks(launch_of(), timeout_s=DEADLINE_S) as joined:
        job(joined, images_root, out_folder)
