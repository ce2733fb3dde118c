"""A producer of DLPack capsules, as CuPy or torch are, for memory of the fake GPU."""

import ctypes

import numpy as np

from snl_runtime.cuda import dlpack

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", ctypes.pythonapi))
_kept = {}
"""By the address of the structure that the consumer got: what must stay in memory until it lets go."""


def make_capsule(address, shape, dtype, *, device_type, device, release):
    """Return a capsule for a dense array; ``release`` is called when its consumer lets go. Every capsule made in a test is taken."""
    element = np.dtype(dtype)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = dlpack._ManagedTensor()
    managed.tensor.data = address
    managed.tensor.device = dlpack._Device(device_type, device)
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = dlpack._DataType(dlpack._KINDS[element.kind], element.itemsize * 8, 1)
    managed.tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = ctypes.cast(_delete, ctypes.c_void_p)
    key = ctypes.addressof(managed)
    _kept[key] = (managed, sizes, release)
    return _new_capsule(key, b"dltensor", None)


def _let_go(key):
    _, _, release = _kept.pop(key)
    release()


_delete = _Deleter(_let_go)
