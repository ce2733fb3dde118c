"""A station with all its outputs on does not grow; two minutes here, hours with SNL_SOAK_MINUTES or python -m benchmarks.soak --minutes N."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MINUTES = float(os.environ.get("SNL_SOAK_MINUTES", "2"))


@pytest.mark.station
def test_station_with_all_outputs_keeps_memory_threads_and_files():
    for package in ("asyncua", "pymodbus", "paho.mqtt.client", "prometheus_client"):
        pytest.importorskip(package, reason="needs pip install 'snl-edge[station]'")
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", str(MINUTES)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=MINUTES * 60 + 300)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
