"""The small calibrated model of the runtime tests, as a file on disk."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model():
    """How to write the model, and how to draw good and bad frames for it."""
    path = Path(__file__).parents[1] / "runtime" / "detector_fixtures.py"
    spec = importlib.util.spec_from_file_location("snl_tests_examples_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def engine(model, tmp_path_factory):
    return model.ModelFolder(tmp_path_factory.mktemp("model")).write()
