"""The libraries of the outputs: each belongs to an extra and is imported when an output is made."""

import importlib
from types import ModuleType

from snl_runtime.errors import ConfigError


def import_for(output: str, module: str, *, extra: str) -> ModuleType:
    """Return a module of a library that only one kind of output needs.

    Raises:
        ConfigError: If the library is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ConfigError(f"output {output} needs the package {package}: pip install 'snl-edge[{extra}]'") from error
