"""What holds for every test."""

import signal

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C work in tests and in processes they start: background jobs of a shell begin with SIGINT ignored, and their children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one file on one worker, so that its fixtures are made once; files that share a slow one name their own group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
