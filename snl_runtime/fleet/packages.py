"""The packages of the extra ``fleet``, imported when they are used."""

import importlib
from typing import Any

from snl_runtime.errors import BackendUnavailableError


def load_package(name: str) -> Any:
    """Return a module of Ray or Arrow, e.g. ``pyarrow.parquet``.

    Raises:
        BackendUnavailableError: If it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BackendUnavailableError(f"this needs the package {package}: pip install 'snl-edge[fleet]'") from error
