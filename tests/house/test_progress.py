"""Progress bars are drawn by commands; the library reports to whom its caller names and is silent by default."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("snl_runtime", "snl_train", "calibration", "export")
MODULES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
COMMANDS = [path for path in MODULES if "cli" in (*path.parent.parts, path.stem)]
LIBRARY = [path for path in MODULES if path not in COMMANDS and path != Path("snl_runtime", "progress.py")]


def uses_bar(source):
    """Say whether a module names the bar, as its own import or through the module that defines it."""
    tree = ast.parse(source)
    return any(
        (isinstance(node, ast.alias) and node.name.split(".")[-1] == "Progress")
        or (isinstance(node, ast.Name) and node.id == "Progress")
        or (isinstance(node, ast.Attribute) and node.attr == "Progress")
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_library_names_no_progress_bar(path):
    assert not uses_bar((ROOT / path).read_text(encoding="utf-8"))


def test_commands_name_the_bar():
    assert {path.as_posix() for path in COMMANDS if uses_bar((ROOT / path).read_text(encoding="utf-8"))} >= {
        "snl_train/cli/train.py",
        "snl_train/cli/evaluate.py",
        "calibration/cli.py",
        "export/cli.py",
        "snl_runtime/cli/rebuild.py",
        "snl_runtime/cli/run.py",
        "snl_runtime/cli/bench.py",
    }
