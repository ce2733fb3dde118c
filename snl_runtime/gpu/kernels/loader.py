"""Kernels ready to launch: compiled at first use, kept on disk for the next start."""

from pathlib import Path

from snl_runtime.cache import Cache
from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.resources import CudaModule
from snl_runtime.files import sha256_bytes
from snl_runtime.gpu.kernels.compiler import COMPILE_OPTIONS, compile_kernels, kernel_source, nvrtc_version


def load_kernels(api: CudaApi, *, cache_folder: Path | None = None) -> CudaModule:
    """Return the kernels for the calling thread's current device; the caller closes them after their last launch is done.

    Args:
        api: CUDA.
        cache_folder: Folder of compiled kernels, the default cache if None.

    Raises:
        BackendUnavailableError: If NVRTC is missing or too new for that device.
        BackendError: If the kernels do not compile or load.
    """
    return CudaModule(api, cached_image(api.describe(api.current_device()).compute_capability, cache_folder=cache_folder))


def cached_image(compute_capability: int, *, cache_folder: Path | None = None) -> bytes:
    """Return the code for one SM from the cache, or compile and keep it.

    Raises:
        BackendUnavailableError: If NVRTC is missing or too new for that SM.
        BackendError: If the kernels do not compile.
    """
    version = ".".join(map(str, nvrtc_version()))
    key = sha256_bytes("\0".join((kernel_source(), version, *COMPILE_OPTIONS)).encode("utf-8"))
    cache, name = Cache.at(cache_folder), f"kernels-sm{compute_capability}-{key[:32]}.bin"
    code = cache.read(name)
    if code is None:
        code = compile_kernels(compute_capability).code
        cache.write(name, code)
    return code
