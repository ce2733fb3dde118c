"""A process knows from its environment alone which one of how many it is, and a process on its own is told nothing."""

import subprocess
import sys

import pytest

from snl_runtime.errors import ConfigError
from snl_train.launch import Launch, launch_of

LAUNCHED = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_launcher_tells_rank_and_size():
    launch = launch_of(LAUNCHED)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.is_writer) == (5, 8, 1, False)
    assert launch_of({**LAUNCHED, "RANK": "0"}).is_writer


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_part_of_the_variables_which_batch_systems_set_starts_nothing(missing):
    launch = launch_of({name: value for name, value in LAUNCHED.items() if name != missing})
    assert (launch.world_size, launch.is_writer, launch.command) == (1, True, "snl-train")


@pytest.mark.parametrize(
    ("changed", "command"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4"}, "torchrun --nproc-per-node 4 -m snl_train"),
        ({}, "torchrun --nnodes 2 ... --nproc-per-node 4 -m snl_train"),
    ],
)
def test_command_starts_as_many_again(changed, command):
    assert launch_of({**LAUNCHED, **changed}).command == command


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "8"}, "RANK is 8 and WORLD_SIZE is 8, but ranks are below it"),
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE must be a whole number, got 'two'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK must be a whole number, got '-1'"),
    ],
)
def test_contradictions_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        launch_of({**LAUNCHED, **changed})


def test_processes_without_local_numbers_count_on_one_node():
    environment = {name: value for name, value in LAUNCHED.items() if not name.startswith("LOCAL")}
    assert launch_of(environment) == Launch(rank=5, world_size=8, local_rank=5, local_world_size=8)


def test_package_is_the_command_for_launchers_that_start_modules():
    helped = subprocess.run([sys.executable, "-m", "snl_train", "-h"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage: snl-train ")
