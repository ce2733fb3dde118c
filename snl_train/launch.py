"""What a launcher such as ``torchrun`` tells each process of a training in its environment. Imports no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from snl_runtime.errors import ConfigError

DEFAULT_TIMEOUT_S = 1800.0
"""How long processes wait for one that is late, reading images from a slow disk or writing the checkpoint."""
_ADDRESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What PyTorch's ``env://`` needs. Some batch systems set a part of it for every program; only all of it starts a training on several processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Which process of how many this one is.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes of the training, on all nodes.
        local_rank: Number of this process on its node, which is the number of its GPU.
        local_world_size: Number of processes on its node.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files, progress and results: the one of rank 0."""
        return self.rank == 0

    @property
    def command(self) -> str:
        """What a user types to start as many processes again, as far as this process knows."""
        if self.world_size == 1:
            return "snl-train"
        nodes = "" if self.local_world_size == self.world_size else f"--nnodes {self.world_size // self.local_world_size} ... "
        return f"torchrun {nodes}--nproc-per-node {self.local_world_size} -m snl_train"


def launch_of(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return what the environment says; a process on its own if no launcher set it.

    Raises:
        ConfigError: If a variable is no number, or they contradict each other.

    Example:
        >>> launch_of({})
        Launch(rank=0, world_size=1, local_rank=0, local_world_size=1)
        >>> launched = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
        >>> launch_of({**launched, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
        Launch(rank=5, world_size=8, local_rank=1, local_world_size=4)
    """
    if not all(name in environment for name in _ADDRESS):
        return Launch()
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local_rank = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank
    local_world_size = _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else world_size
    if rank >= world_size:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE is {world_size}, but ranks are below it; start with torchrun, which sets both")
    return Launch(rank=rank, world_size=world_size, local_rank=local_rank, local_world_size=local_world_size)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"the environment variable {name} must be a whole number, got '{text}'; start with torchrun, which sets it, or unset it")
    return int(text)
