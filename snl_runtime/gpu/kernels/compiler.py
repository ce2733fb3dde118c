"""Compile the kernels with NVRTC, which needs neither a GPU nor a CUDA toolkit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snl_runtime.errors import BackendError, BackendUnavailableError

_SOURCE_FILES = ("common.cu", "frame.cu", "map.cu", "regions.cu")
KERNEL_NAMES = (
    "frame_rows",
    "frame_columns",
    "cut_views",
    "input_sums",
    "normalization_cells",
    "map_to_frame",
    "map_statistics",
    "label_cells",
    "join_cells",
    "number_regions",
    "measure_regions",
)
"""Every kernel that the sources define, in the order in which a frame meets them."""
COMPILE_OPTIONS = ("--std=c++17",)
"""Exact division stays on (no fast math): the shares of a resize must be those of the NumPy reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelImage:
    """Compiled kernels.

    Attributes:
        code: A cubin, or PTX text, which the driver compiles when it is loaded.
        is_cubin: Which of the two.
        compute_capability: SM number the code is for; PTX runs on newer GPUs as well.
    """

    code: bytes
    is_cubin: bool
    compute_capability: int


def kernel_source() -> str:
    """Return the one translation unit that holds every kernel; it includes nothing."""
    folder = Path(__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _SOURCE_FILES)


def nvrtc_version() -> tuple[int, int]:
    """Return the version of the compiler here.

    Raises:
        BackendUnavailableError: If there is none.
    """
    nvrtc = _load_nvrtc()
    major, minor = _check(nvrtc.nvrtcVersion())
    return int(major), int(minor)


def supported_compute_capabilities() -> list[int]:
    """Return the SM numbers that the compiler here knows, ascending.

    Raises:
        BackendUnavailableError: If there is no compiler.
    """
    nvrtc = _load_nvrtc()
    (numbers,) = _check(nvrtc.nvrtcGetSupportedArchs())
    return sorted(int(number) for number in numbers)


def compile_kernels(compute_capability: int) -> KernelImage:
    """Return the kernels for one SM: a cubin, or PTX for the nearest older SM where the GPU is newer than the compiler.

    Raises:
        BackendUnavailableError: If there is no compiler, or none of its targets runs on that GPU.
        BackendError: If the source does not compile, with the compiler's words.
    """
    nvrtc = _load_nvrtc()
    known = supported_compute_capabilities()
    older = [number for number in known if number <= compute_capability]
    if not older:
        raise BackendUnavailableError(
            f"this NVRTC ({'.'.join(map(str, nvrtc_version()))}) knows no GPU as old as SM{compute_capability}, its oldest is SM{min(known)}; "
            "install an older one: pip install 'nvidia-cuda-nvrtc-cu12'"
        )
    is_cubin = older[-1] == compute_capability
    architecture = f"{'sm' if is_cubin else 'compute'}_{older[-1]}"
    code = _compile(nvrtc, kernel_source(), (f"--gpu-architecture={architecture}", *COMPILE_OPTIONS), is_cubin=is_cubin)
    return KernelImage(code=code, is_cubin=is_cubin, compute_capability=older[-1])


def _compile(nvrtc: Any, source: str, options: tuple[str, ...], *, is_cubin: bool) -> bytes:
    (program,) = _check(nvrtc.nvrtcCreateProgram(source.encode("utf-8"), b"snl_edge.cu", 0, [], []))
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode("ascii") for option in options])[0]
        if int(status) != 0:
            raise BackendError(
                f"the CUDA kernels do not compile with {' '.join(options)}: {_log(nvrtc, program)}; report this with the version of NVRTC"
            )
        size, get = (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if is_cubin else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        (byte_count,) = _check(size(program))
        code = bytearray(int(byte_count))
        _check(get(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _log(nvrtc: Any, program: Any) -> str:
    (byte_count,) = _check(nvrtc.nvrtcGetProgramLogSize(program))
    text = bytearray(int(byte_count))
    _check(nvrtc.nvrtcGetProgramLog(program, text))
    return " ".join(text.decode("utf-8", "replace").rstrip("\0").split())[:600]


def _check(answer: Any) -> tuple[Any, ...]:
    status, *values = answer
    if int(status) != 0:
        raise BackendError(f"NVRTC gave {getattr(status, 'name', status)}; install cuda-bindings and NVRTC of one CUDA version")
    return tuple(values)


def _load_nvrtc() -> Any:
    """Return the bindings of a compiler whose library is really there: they load it at the first call only."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, OSError, RuntimeError) as failure:
        words = " ".join(str(failure).split())
        raise BackendUnavailableError(
            f"the CUDA kernels need NVRTC: pip install 'snl-edge[gpu]' or 'snl-edge[tensorrt]' ({words[:300]})"
        ) from failure
    return nvrtc
