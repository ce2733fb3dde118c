"""Arrays in an npz file, read so that nothing in it is ever executed and no foreign exception needs guessing."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

FOREIGN_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    Warning,  # where a host program turns warnings into errors
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise in :func:`read_arrays` for a file that is truncated, altered or no npz at all."""


def read_arrays(data: bytes, names: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of an npz file that must hold exactly these.

    Raises:
        ValueError: If it holds others.
        Exception: Any of :data:`FOREIGN_ERRORS`.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in names):
            raise ValueError(f"expected the arrays {', '.join(names)}, found {', '.join(archive.namelist()) or 'none'}")
        return {name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False) for name in names}
