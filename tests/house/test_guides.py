"""The pages are true: Python blocks run on the demo or say why not and compile, and commands parse with the parsers of the commands."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from docs.reference import command_modules

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for folder in ("docs", "deploy", "examples") for page in (ROOT / folder).rglob("*.md"))
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]*) -->\n+)?(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)\n *```", re.DOTALL)
COMMANDS = command_modules()


class Block(NamedTuple):
    page: str
    reason: str | None
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            text = "\n".join(line.removeprefix(match["indent"]) for line in match["text"].split("\n"))
            found.append(Block(page.relative_to(ROOT).as_posix(), match["reason"], match["language"], text))
    return [block for block in found if block.language == language]


def snl_commands(text: str) -> list[list[str]]:
    """Return the words of every snl- command of a shell block, without what starts it on several processes and what it is piped into."""
    lines = re.sub(r"torchrun .*? -m snl_train", "snl-train", text.replace("\\\n", " ")).splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"\||&&|;", line)]
    return [shlex.split(part, comments=True) for part in parts if part.split(" ")[0] in COMMANDS]


PYTHON, SHELL = blocks("python"), blocks("bash")
CALLS = [(block.page, words) for block in SHELL for words in snl_commands(block.text)]


def test_pages_have_blocks_and_commands() -> None:
    assert {block.page for block in PYTHON} >= {"docs/index.md", "docs/guides/embed.md"}
    assert {words[0] for _, words in CALLS} >= {"snl-train", "snl-eval", "snl-export", "snl-calibrate", "snl-run", "snl-bench"}


@pytest.mark.parametrize("block", [block for block in PYTHON if block.reason is None], ids=lambda block: block.page)
def test_python_block_runs_on_the_demo(block: Block, demo_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block.text], cwd=demo_folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [block for block in PYTHON if block.reason is not None], ids=lambda block: block.page)
def test_python_block_that_is_not_run_says_why_and_compiles(block: Block) -> None:
    assert block.reason is not None
    assert len(block.reason.split()) > 2
    compile(block.text, block.page, "exec")


@pytest.mark.parametrize(("page", "words"), CALLS, ids=[f"{page}: {' '.join(words)}"[:90] for page, words in CALLS])
def test_command_of_a_page_parses(page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing that a page names lies there
    module = importlib.import_module(COMMANDS[words[0]])
    make_parser = next(getattr(module, name) for name in ("build_parser", "_parser", "parse_flags") if hasattr(module, name))
    parsed = make_parser(words[1:]) if make_parser.__name__ == "parse_flags" else make_parser().parse_args(words[1:])
    assert vars(parsed)
