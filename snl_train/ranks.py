"""The processes of one training, its ranks: what they do together. With one process all of it is trivial.

A training on several processes is PyTorch's distributed data-parallel training: each process holds the whole model and a part of every batch, and
their gradients are averaged before each step, so that all hold the same weights. Tensors of the model go over NCCL on GPUs; what the processes agree
on, and everything on CPUs, goes over gloo.
"""

# ruff: noqa: D102  # what the methods of ProcessGroup do is said where Ranks declares them
import contextlib
import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist

from snl_runtime.errors import ConfigError, RankLostError, SnlError
from snl_train.batch_norm import synchronize_batch_norm
from snl_train.config import TrainConfig, to_plain
from snl_train.launch import DEFAULT_TIMEOUT_S, Launch

_LONGEST_TIMEOUT_S = 86400.0
_FAREWELL_S = 10.0
"""How long a process that failed waits for the answer whether it is the first one."""

Step = Callable[[Tensor, Tensor], dict[str, Tensor]]


class Ranks:
    """A training on one process, and what is asked of several.

    Methods in which processes talk to each other are called by all of them in the same order.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        self._launch = launch or Launch()

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self._launch.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._launch.world_size

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files, progress and results."""
        return self._launch.is_writer

    @property
    def command(self) -> str:
        """What starts as many processes again."""
        return self._launch.command

    def share(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return this process's part of a batch of image numbers, (B,) to (B / world size,)."""
        size = len(numbers) // self.world_size
        return numbers[self.rank * size : (self.rank + 1) * size]

    def seed_apart(self) -> None:
        """Let torch's global generator, seeded alike on all processes, go on differently on each; rank 0 goes on as if it were alone."""
        for _ in range(self.rank):
            torch.manual_seed(int(torch.randint(2**62, ())))

    def random_state(self, device: torch.device) -> dict[str, Any]:
        """Return the states of torch's generators of all processes, for :meth:`set_random_state`."""
        return {
            "processes": self.world_size,
            "random": self.gather(torch.get_rng_state()),
            "random_cuda": self.gather(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
        }

    def set_random_state(self, stored: Mapping[str, Any], device: torch.device) -> None:
        """Let torch's generators go on as where the states were taken.

        Raises:
            ConfigError: If they were taken on another number of processes.
        """
        processes = int(stored.get("processes", 1))  # versions that knew one process only stored its states alone
        if processes != self.world_size:
            raise ConfigError(f"cannot resume on {self.world_size} processes what was trained on {processes}; start {processes}, or train anew")
        # Copies, because PyTorch 2.14 reads a state from the beginning of its storage, wherever the tensor begins.
        torch.set_rng_state(stored["random"].view(processes, -1)[self.rank].clone())
        if device.type == "cuda" and stored["random_cuda"] is not None:
            torch.cuda.set_rng_state(stored["random_cuda"].view(processes, -1)[self.rank].clone(), device)

    def check(self, config: TrainConfig) -> None:
        """Refuse settings that cannot be trained with on so many processes, or that differ between them.

        Raises:
            ConfigError: Naming the setting.
        """

    def place(self, device: torch.device) -> torch.device:
        """Return the device of this process: of several GPUs the one with its local rank.

        Raises:
            ConfigError: If the processes of a node outnumber its GPUs, or some have a GPU and others none.
        """
        return device

    def synchronize_batch_norm(self, model: nn.Module) -> None:
        """Let batch normalization, in place, take its statistics over the batches of all processes."""

    def copy_from_writer(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""

    def parallel(self, model: nn.Module, step: Step) -> Step:
        """Return ``step``, which computes losses with ``model``, such that a backward pass averages the gradients over the processes.

        All begin with the weights of rank 0.
        """
        del model
        return step

    def mean(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scalars averaged over the processes, detached."""
        return {name: loss.detach() for name, loss in losses.items()}

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes, of the same shape."""
        return tensor

    def total(self, number: float) -> float:
        """Return the sum of the processes' numbers."""
        return number

    def average(self, number: float) -> float:
        """Return the mean of the processes' numbers."""
        return self.total(number) / self.world_size

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, along a new first dimension: (...) to (world size, ...)."""
        return tensor[None]

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return number

    def any(self, flag: bool) -> bool:
        """Return whether it is true on any process."""
        return self.largest(int(flag)) != 0

    def require_same(self, what: str, value: str) -> None:
        """Refuse processes that differ in what must be alike.

        Raises:
            ConfigError: Naming two of them and their values.
        """

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def is_first_to_end(self) -> bool:
        """Return whether no other process failed or was stopped before, so that it is on this one to say why."""
        return True


ALONE = Ranks()
"""A training on one process."""


class ProcessGroup(Ranks):
    """Several processes that are joined.

    Args:
        launch: Which of them this one is.
        timeout_s: How long to wait for each other.

    Raises:
        ConfigError: If this PyTorch cannot join processes.
    """

    def __init__(self, launch: Launch, *, timeout_s: float) -> None:
        if not dist.is_available():
            raise ConfigError("this PyTorch was built without torch.distributed and trains on one process only; start it as one: snl-train")
        from torch.distributed.rendezvous import rendezvous  # not there without it

        super().__init__(launch)
        self._timeout_s = timeout_s
        timeout = datetime.timedelta(seconds=timeout_s)
        self._store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
        dist.init_process_group(backend, store=self._store, rank=rank, world_size=world_size, timeout=timeout)
        self._agreement: Any = dist.new_group(backend="gloo", timeout=timeout)  # what is agreed on never waits for a GPU

    def check(self, config: TrainConfig) -> None:
        count = self.world_size
        if not config.model.has_student:
            raise ConfigError("the method memory trains nothing that several processes could share; start it as one process: snl-train")
        if config.batch_size % count:
            raise ConfigError(f"batch_size is the total over {count} processes and must be a multiple of {count}, got {config.batch_size}")
        if config.batch_size == count and config.loss.inter_weight:
            raise ConfigError(
                f"batch_size {count} leaves each of {count} processes one image, with no other to compare it with; take a multiple of {2 * count}, "
                "or set loss.inter_weight to 0"
            )
        for name, value in to_plain(config).items():
            self.require_same(f"setting {name}", str(value))

    def place(self, device: torch.device) -> torch.device:
        self.require_same("device", device.type)
        if device.type != "cuda":
            return device
        local_rank, found = self._launch.local_rank, torch.cuda.device_count()
        if local_rank >= found:
            raise ConfigError(
                f"process {local_rank} of this node has no GPU, it has {found}; start as many processes as there are GPUs, or take --device cpu"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def synchronize_batch_norm(self, model: nn.Module) -> None:
        synchronize_batch_norm(model)

    def copy_from_writer(self, model: nn.Module) -> None:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)

    def parallel(self, model: nn.Module, step: Step) -> Step:
        self.copy_from_writer(model)  # a node may hold another file of teacher weights
        return nn.parallel.DistributedDataParallel(_Computation(model, step))

    def mean(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = torch.stack([loss.detach() for loss in losses.values()])
        dist.all_reduce(values)
        return dict(zip(losses, values / self.world_size, strict=True))

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def total(self, number: float) -> float:
        return float(self.sum(torch.tensor(number, dtype=torch.float64)))

    def gather(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def largest(self, number: int) -> int:
        found = torch.tensor(number)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._agreement)
        return int(found)

    def require_same(self, what: str, value: str) -> None:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._agreement)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ConfigError(f"all processes need the same {what}, but process 0 has {values[0]} and process {rank} has {other}")

    def barrier(self) -> None:
        dist.monitored_barrier(self._agreement, timeout=datetime.timedelta(seconds=self._timeout_s))

    def is_first_to_end(self) -> bool:
        try:
            self._store.set_timeout(datetime.timedelta(seconds=_FAREWELL_S))
            return bool(self._store.add("snl_train/ended", 1) == 1)
        except RuntimeError:  # the process that held the store is gone
            return True


class _Computation(nn.Module):
    """A step as the forward pass of a module, which is what PyTorch parallelizes.

    It holds what is trained and no buffers, which PyTorch would send at every step; synchronized batch normalization keeps them alike.
    """

    def __init__(self, model: nn.Module, step: Step) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameter for parameter in model.parameters() if parameter.requires_grad)
        self._step = step

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses."""
        return self._step(images, labels)


@contextlib.contextmanager
def join_ranks(launch: Launch, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[Ranks]:
    """Yield the processes that a launcher started, joined; each of them calls this.

    If one of them fails, is stopped or is killed, all end: the first one raises why, the others leave by SystemExit, which prints nothing.

    Args:
        launch: What this process was told; with one process nothing is joined.
        timeout_s: How long to wait for a process that is late.

    Raises:
        ConfigError: If ``timeout_s`` is not above 0 and at most a day, or this PyTorch cannot join processes.
        RankLostError: If another process ended without a word, or is late.
    """
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise ConfigError(f"the time that processes wait for each other must be above 0 and at most {_LONGEST_TIMEOUT_S:g} s, got {timeout_s:g} s")
    if launch.world_size == 1:
        yield Ranks(launch)
        return
    with _naming_losses(launch, timeout_s):
        ranks = ProcessGroup(launch, timeout_s=timeout_s)
    try:
        with _naming_losses(launch, timeout_s):
            ranks.barrier()
            yield ranks
            ranks.barrier()
    except BaseException as error:
        if not ranks.is_first_to_end() and isinstance(error, SnlError | KeyboardInterrupt):
            raise SystemExit(getattr(error, "exit_status", 130)) from error
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def _naming_losses(launch: Launch, timeout_s: float) -> Iterator[None]:
    """Turn what PyTorch raises where a process is missing into one sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, _LOSSES) and not any(mark in text for mark in _MARKS):
            raise
        late = re.search(r"[Rr]ank (\d+) failed to pass", text)
        which = f"process {late[1]}" if late else "another process"
        what = f"did not answer for {timeout_s:g} s" if late or "imed out" in text or "imeout" in text else "ended or lost its connection"
        raise RankLostError(
            f"{which} of this training on {launch.world_size} {what}, so all of them end; its own output and the launcher's report say why, "
            "and --resume continues what was saved"
        ) from error


_LOSSES = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
_MARKS = ("gloo/", "monitoredBarrier")
