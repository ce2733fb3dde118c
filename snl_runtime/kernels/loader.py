"""Kernels ready to launch: compiled at first use, kept on disk for the next start."""

import logging
from pathlib import Path

from snl_runtime.cuda_api import CudaApi
from snl_runtime.cuda_resources import CudaModule
from snl_runtime.engine_builder import default_cache_folder
from snl_runtime.errors import SinkError
from snl_runtime.files import atomic_write_bytes, sha256_bytes
from snl_runtime.kernels.compiler import COMPILE_OPTIONS, compile_kernels, kernel_source, nvrtc_version

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 64


def load_kernels(api: CudaApi, *, cache_folder: Path | None = None) -> CudaModule:
    """Return the kernels for the calling thread's current device; the caller closes them after their last launch is done.

    Args:
        api: CUDA.
        cache_folder: Folder of compiled kernels, the engine builder's if None.

    Raises:
        BackendUnavailableError: If NVRTC is missing or too new for that device.
        BackendError: If the kernels do not compile or load.
    """
    return CudaModule(api, cached_image(api.describe(api.current_device()).compute_capability, cache_folder=cache_folder))


def cached_image(compute_capability: int, *, cache_folder: Path | None = None) -> bytes:
    """Return the code for one SM from the cache, or compile and keep it. A folder that cannot be written costs a second at each start, no more.

    Raises:
        BackendUnavailableError: If NVRTC is missing or too new for that SM.
        BackendError: If the kernels do not compile.
    """
    version = ".".join(map(str, nvrtc_version()))
    key = sha256_bytes("\0".join((kernel_source(), version, *COMPILE_OPTIONS)).encode("utf-8"))
    path = (cache_folder or default_cache_folder()) / f"kernels-sm{compute_capability}-{key[:32]}.bin"
    code = _read(path)
    if code is not None:
        return code
    code = compile_kernels(compute_capability).code
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the GPU runs what lies here: nobody else may write
        atomic_write_bytes(path, sha256_bytes(code).encode("ascii") + code)
    except (OSError, SinkError) as failure:
        logger.warning("compiled kernels cannot be kept for the next start: %s", failure)
    return code


def _read(path: Path) -> bytes | None:
    """Return cached code if it is whole; damaged code is compiled anew."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if code and sha256_bytes(code).encode("ascii") == digest:
        return code
    logger.warning("the compiled kernels in %s are damaged; compiling anew", path)
    return None
