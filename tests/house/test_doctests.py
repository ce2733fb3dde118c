"""Every example in a docstring gives what it shows."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED_NAMES = {"snl_runtime": "snl_runtime", "snl_train": "snl_train", "export": "snl_export", "calibration": "snl_calibration"}


def modules_with_examples() -> list[str]:
    found = []
    for folder, name in INSTALLED_NAMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found.append(".".join((name, *(part for part in parts if part != "__init__"))))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_module(name: str) -> None:
    # Examples that need a model file are marked +SKIP; the README's blocks run the same calls.
    assert doctest.testmod(importlib.import_module(name)).failed == 0
