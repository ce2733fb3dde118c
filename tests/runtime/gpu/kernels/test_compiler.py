"""NVRTC turns every kernel into code for every supported GPU, on a machine without one; what was compiled is kept and checked."""

import logging

import pytest

from snl_runtime.errors import BackendError, BackendUnavailableError
from snl_runtime.gpu.kernels import KERNEL_NAMES, cached_image, compile_kernels, compiler, kernel_source, loader

COMPUTE_CAPABILITIES = (75, 80, 86, 87, 89, 90, 120, 121)


@pytest.fixture
def nvrtc():
    try:
        return compiler.nvrtc_version()
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("compute_capability", COMPUTE_CAPABILITIES)
def test_every_kernel_compiles_to_a_cubin(nvrtc, compute_capability):
    image = compile_kernels(compute_capability)
    assert image.is_cubin
    assert image.compute_capability == compute_capability
    assert image.code[:4] == b"\x7fELF"
    missing = [name for name in KERNEL_NAMES if f".text.{name}".encode() not in image.code]
    assert missing == []


@pytest.mark.parametrize("compute_capability", [75, 87, 120])
def test_no_kernel_needs_a_stack(nvrtc, compute_capability):
    """Spilled registers cost more than the arithmetic; the assembler says whether there are some."""
    bindings = compiler._load_nvrtc()
    options = [f"--gpu-architecture=sm_{compute_capability}", *compiler.COMPILE_OPTIONS, "--ptxas-options=-v"]
    (program,) = compiler._check(bindings.nvrtcCreateProgram(kernel_source().encode(), b"k.cu", 0, [], []))
    compiler._check(bindings.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
    log = bytearray(int(bindings.nvrtcGetProgramLogSize(program)[1]))
    bindings.nvrtcGetProgramLog(program, log)
    bindings.nvrtcDestroyProgram(program)
    frames = [line for line in log.decode().splitlines() if "stack frame" in line]
    assert len(frames) == len(KERNEL_NAMES)
    assert all("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in line for line in frames), frames


def test_the_sources_define_exactly_the_named_kernels():
    declared = [line.split("(")[0].split()[-1] for line in kernel_source().splitlines() if line.startswith('extern "C" __global__')]
    assert tuple(declared) == KERNEL_NAMES
    assert "#include" not in kernel_source()


def test_a_gpu_newer_than_the_compiler_gets_ptx(nvrtc):
    newest = compiler.supported_compute_capabilities()[-1]
    image = compile_kernels(newest + 7)
    assert (image.is_cubin, image.compute_capability) == (False, newest)
    assert f".target sm_{newest}".encode() in image.code


def test_a_gpu_too_old_for_the_compiler_is_refused_in_one_sentence(nvrtc):
    with pytest.raises(BackendUnavailableError, match="knows no GPU as old as SM30"):
        compile_kernels(30)


def test_source_that_does_not_compile_gives_the_compilers_words(nvrtc, monkeypatch):
    monkeypatch.setattr(compiler, "kernel_source", lambda: "__global__ void broken() { undeclared = 1; }")
    with pytest.raises(BackendError, match='identifier "undeclared" is undefined'):
        compile_kernels(86)


def test_a_second_start_takes_the_kept_code(nvrtc, monkeypatch, tmp_path):
    first = cached_image(86, cache_folder=tmp_path / "cache")
    monkeypatch.setattr(loader, "compile_kernels", lambda number: pytest.fail("compiled again"))
    assert cached_image(86, cache_folder=tmp_path / "cache") == first
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0, "the GPU runs what lies there"


@pytest.fixture
def compiled(monkeypatch):
    """A compiler that takes no time; returns the SM numbers it was asked for."""
    asked = []

    def compile_at_once(number):
        asked.append(number)
        return compiler.KernelImage(code=b"\x7fELF code for SM%d" % number * 9, is_cubin=True, compute_capability=number)

    monkeypatch.setattr(loader, "compile_kernels", compile_at_once)
    monkeypatch.setattr(loader, "nvrtc_version", lambda: (13, 2))
    return asked


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:70] + b"x" + content[71:], lambda content: b""])
def test_damaged_code_is_compiled_anew(compiled, tmp_path, caplog, damage):
    whole = cached_image(86, cache_folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cached_image(86, cache_folder=tmp_path) == whole
    assert "damaged" in caplog.text
    assert path.read_bytes()[64:] == whole
    assert compiled == [86, 86]


@pytest.mark.parametrize("change", ["source", "version", "gpu"])
def test_kept_code_belongs_to_source_compiler_and_gpu(compiled, monkeypatch, tmp_path, change):
    cached_image(86, cache_folder=tmp_path)
    if change == "source":
        monkeypatch.setattr(loader, "kernel_source", lambda: kernel_source() + "\n")
    if change == "version":
        monkeypatch.setattr(loader, "nvrtc_version", lambda: (99, 9))
    cached_image(89 if change == "gpu" else 86, cache_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(compiled) == 2


def test_a_folder_that_cannot_be_written_only_costs_time(compiled, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    assert cached_image(86, cache_folder=tmp_path / "file")[:4] == b"\x7fELF"
    assert "cannot be written" in caplog.text


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailableError, match=r"need NVRTC: pip install 'snl-edge\[gpu\]'"):
        compile_kernels(86)
