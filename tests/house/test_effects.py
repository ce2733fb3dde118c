"""docs/effects.md has a row for every command, and the tests of each package make writes fail for the commands that it holds."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(snl-[a-z]+)` \| ", re.MULTILINE)
TESTS = {"train": ("snl-train", "snl-eval"), "export": ("snl-export",), "calibration": ("snl-calibrate",), "runtime/cli": ("snl-run", "snl-sign")}


def test_every_command_has_its_rows() -> None:
    commands = set(re.findall(r"^(snl-[a-z]+) = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    rows = set(ROW.findall((ROOT / "docs" / "effects.md").read_text(encoding="utf-8")))
    assert commands
    assert commands <= rows


def test_writes_are_made_to_fail_for_every_command_that_writes_more_than_an_engine() -> None:
    for folder, commands in TESTS.items():
        contract = (ROOT / "tests" / folder / "test_effects.py").read_text(encoding="utf-8").splitlines()[0]
        assert all(command in contract for command in commands), folder
