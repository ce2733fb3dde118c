"""The service file says what systemd and snl-run understand, and grants a station as little as it needs."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snl_runtime.cli.run import main

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "snl-run.service").read_text(encoding="utf-8")
MOST_EXPOSURE = 2.0
"""Of 10, by ``systemd-analyze security``; an unhardened service has 9.6."""


def systemd_analyze(*arguments):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250 or newer")
    return done


@pytest.fixture
def unit(tmp_path):
    """The service with the snl-run of this environment, because systemd looks for the program."""
    path = tmp_path / "snl-run.service"
    path.write_text(UNIT.replace("/opt/snl-edge/bin/snl-run", str(Path(sys.executable).with_name("snl-run"))))
    return path


def test_systemd_accepts_every_line_of_the_service(unit):
    done = systemd_analyze("verify", str(unit))
    assert (done.returncode, [line for line in done.stderr.splitlines() if "snl-run" in line]) == (0, [])


def test_service_is_hardened(unit):
    done = systemd_analyze("security", "--offline=yes", str(unit))
    exposure = re.search(r"exposure level for snl-run.service: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= MOST_EXPOSURE


def test_command_of_the_service_with_the_example_settings_is_understood_by_snl_run(capsys):
    lines = (DEPLOY / "station.env.example").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    (command,) = re.findall(r"^ExecStart=\S+ (.*)$", UNIT, re.MULTILINE)
    used = set(re.findall(r"\$\{?(SNL_\w+)", command))
    assert used == set(settings)
    arguments = re.sub(r"\$\{?(SNL_\w+)\}?", lambda name: settings[name[1]], command).replace("%S", "/var/lib")
    assert main(shlex.split(arguments)) == 2  # there is no such model here: it is the model that is missed, not an option
    assert re.search(r"/etc/snl-edge/model/line\.onnx|/var/lib/snl-edge", capsys.readouterr().err)
