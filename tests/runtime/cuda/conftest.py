"""Helper modules of this folder, handed out as fixtures."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dlpack_producer():
    """Makes DLPack capsules as another package would."""
    spec = importlib.util.spec_from_file_location("snl_tests_cuda_dlpack_producer", Path(__file__).with_name("dlpack_producer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
