"""DLPack capsules (the unversioned ``dltensor``), read through the C structures that the standard lays down.

Only the parts that dense arrays need. The standard: https://dmlc.github.io/dlpack/latest/c_api.html
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DEVICE_CPU = 1
DEVICE_CUDA = 2

_NAME = b"dltensor"
_USED_NAME = b"used_dltensor"
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
_CODES = {code: kind for kind, code in _KINDS.items()}


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("contexts", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImportedTensor:
    """What a capsule holds.

    Attributes:
        address: Of the first element.
        shape: Sizes.
        strides: Steps in elements, None for a dense array.
        dtype: Type of an element.
        device_type: ``DEVICE_CPU``, ``DEVICE_CUDA`` or another number of the standard.
        device: Index of the device.
        release: Tells the producer that the memory is no longer used; to be called once.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[np.generic]
    device_type: int
    device: int
    release: Callable[[], None]


def take_capsule(capsule: object) -> ImportedTensor:
    """Take over what a producer's ``__dlpack__`` returned; the caller must call ``release``.

    Raises:
        ValueError: If it is no unused DLPack capsule, or holds an element type that NumPy does not have.
    """
    if not _is_valid(capsule, _NAME):
        raise ValueError("it is no DLPack capsule, or one that was used before")
    address = _get_pointer(capsule, _NAME)
    managed = _ManagedTensor.from_address(address)
    tensor = managed.tensor
    kind = _CODES.get(tensor.dtype.code)
    if kind is None or tensor.dtype.contexts != 1 or tensor.dtype.bits % 8:
        raise ValueError(f"its elements (DLPack type {tensor.dtype.code}, {tensor.dtype.bits} bits) have no NumPy type")
    dtype = np.dtype(f"{kind}{tensor.dtype.bits // 8}")
    imported = ImportedTensor(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=dtype,
        device_type=int(tensor.device.type),
        device=int(tensor.device.index),
        release=lambda: _Deleter(managed.deleter)(address) if managed.deleter else None,
    )
    _set_name(capsule, _USED_NAME)  # from now on the release is ours, not the capsule's
    return imported
