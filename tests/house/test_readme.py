"""The README is true: every block runs, or fails here with the one clear error that it must give."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (?P<mark>[^>]+?) -->\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)

EXPECTED_ERRORS = {
    "snl-train --data": (2, "--teacher-weights"),
    "snl-train --fetch-teacher": (2, "resnet18"),
    "snl-run --camera": (2, "snl-run: error: "),
}
"""First words of a block that needs a download or a device -> exit status and a word of the error it gives without."""


class Block(NamedTuple):
    mark: str
    language: str
    text: str


def blocks(mark: str) -> list[Block]:
    found = [Block(*match.groups()) for match in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]
    return [block for block in found if block.mark.split(":")[0] == mark]


def run(text: str, language: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_every_code_block_is_marked() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("```") - 2 * text.count("```text") == 2 * sum(len(blocks(mark)) for mark in ("run", "error", "not run"))


@pytest.mark.parametrize("block", blocks("run"), ids=lambda block: block.text.split("\n")[0][:40])
def test_block_runs(block: Block, demo_folder: Path) -> None:
    done = run(block.text, block.language, demo_folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("error"), ids=lambda block: block.text.split("\n")[0][:40])
def test_block_that_needs_more_than_a_checkout_gives_one_clear_error(block: Block, demo_folder: Path) -> None:
    status, word = next(expected for start, expected in EXPECTED_ERRORS.items() if block.text.startswith(start))
    done = run(block.text, block.language, demo_folder)
    if "download" in block.mark and done.returncode == 0:
        pytest.skip("this machine reaches the download, so there is no error to see")
    assert done.returncode == status, done.stdout + done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
