"""Helper modules of this folder, handed out as fixtures: with import-mode importlib a test cannot import its neighbor."""

import importlib.util
from pathlib import Path

import pytest


def _load(name):
    spec = importlib.util.spec_from_file_location(f"snl_tests_runtime_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fixtures():
    """The tiny calibrated model, its NumPy reference and the fake backends."""
    return _load("detector_fixtures")


@pytest.fixture
def model_folder(fixtures, tmp_path):
    return fixtures.ModelFolder(tmp_path)
