"""The example plug-in installs with pip and runs a line with its source and its sink."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that pip installed the plug-in into, from a copy because setuptools leaves files behind."""
    folder = tmp_path_factory.mktemp("plugin")
    copy = shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--target",
        str(folder / "site"),
        str(copy),
    ]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def snl_run(installed, *arguments):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "snl_runtime.cli.run", *arguments]
    return subprocess.run(command, env=environment, cwd=installed, capture_output=True, text=True, timeout=120)


@pytest.fixture
def frames(model, tmp_path):
    """Two good parts, a buffer that was never filled, a bad part."""
    good = [model.good_frame(seed)[:, :, ::-1] for seed in range(2)]
    np.save(tmp_path / "frames.npy", np.stack([*good, np.zeros_like(good[0]), model.bad_frame(0)[:, :, ::-1]]))
    return tmp_path / "frames.npy"


@pytest.fixture
def receiver():
    """A server on the loopback address; ``lines()`` waits for the end of the one connection."""
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def receive():
            connection, _ = server.accept()
            with connection, connection.makefile("r", encoding="ascii") as stream:
                received.extend(stream.read().splitlines())

        thread = threading.Thread(target=receive)
        thread.start()

        def lines():
            thread.join(60)
            return received

        yield server.getsockname()[1], lines
        thread.join(60)


def test_source_and_sink_of_the_package_run_a_line(installed, engine, frames, receiver):
    port, lines = receiver
    done = snl_run(installed, "--engine", str(engine), "--camera", f"numpy://{frames}", "--product", "bottle", "--sink", f"tcp:127.0.0.1:{port}")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["verdict"] for record in records] == ["PASS", "PASS", "ERROR", "REJECT"]
    assert "never filled" in records[2]["reason"]
    assert lines() == [f"{record['frame_index']} {record['verdict']}" for record in records]


def test_sink_without_a_receiver_is_one_clear_error(installed, engine, frames):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = snl_run(installed, "--engine", str(engine), "--camera", f"numpy://{frames}", "--product", "bottle", "--sink", f"tcp:127.0.0.1:{port}")
    assert done.returncode == 2, done.stderr
    assert f"no verdict reached 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argument", ["", "127.0.0.1", "host:", "host:port"])
def test_sink_needs_host_and_port(installed, engine, frames, argument):
    done = snl_run(installed, "--engine", str(engine), "--camera", f"numpy://{frames}", "--sink", f"tcp:{argument}")
    assert (done.returncode, "HOST:PORT" in done.stderr) == (2, True), done.stderr


def test_source_names_a_file_that_it_cannot_read(installed, engine, tmp_path):
    done = snl_run(installed, "--engine", str(engine), "--camera", f"numpy://{tmp_path}/missing.npy", "--product", "bottle")
    assert done.returncode == 2, done.stderr
    assert "missing.npy" in done.stderr
    assert "Traceback" not in done.stderr
