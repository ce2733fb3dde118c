"""The rules of a module of the runtime are found at the mirrored path under ``tests/runtime``: in test_<module>.py or test_<module>_<aspect>.py."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE, TESTS = ROOT / "snl_runtime", ROOT / "tests" / "runtime"
OVER_SEVERAL_MODULES = {
    "test_fault_table.py": "every fault from a file or a frame to the verdict",
    "test_fault_table_engines.py": "every fault from a file or a frame to the verdict",
    "test_fault_table_frames.py": "every fault from a file or a frame to the verdict",
    "test_public_names.py": "the names that the package itself exports",
    "cli/test_effects.py": "what two commands write, as docs/effects.md says",
    "gpu/test_gpu_checks.py": "the checks in tests/gpu, with planted faults",
    "gpu/test_speed_gpu.py": "benchmarks/speed, on the GPU in NumPy",
    "gpu/test_speed_gpu_aims.py": "benchmarks/speed, on the GPU in NumPy",
}


def is_named_after_a_module(path: str, package: Path = PACKAGE) -> bool:
    """Whether a test module, by its path below ``tests/runtime``, has the name of a module, a kernel file or a package there, or of that package."""
    folder, name = package / Path(path).parent, Path(path).stem.removeprefix("test_")
    beside = {entry.stem for entry in folder.glob("*") if entry.suffix in (".py", ".cu") or (entry / "__init__.py").is_file()} - {"__init__"}
    return name == folder.name or any(name == module or name.startswith(f"{module}_") for module in beside)


def test_every_test_module_of_the_runtime_is_named_after_what_it_tests() -> None:
    paths = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert len(paths) > 50
    assert {path for path in paths if not is_named_after_a_module(path)} == set(OVER_SEVERAL_MODULES)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("test_a.py", True),
        ("test_a_faults.py", True),
        ("test_ab.py", False),
        ("p/test_b.py", True),
        ("test_b.py", False),
        ("p/test_a.py", False),
        ("test_p.py", True),
        ("p/test_p.py", True),
        ("p/test_p_faults.py", False),
        ("p/test_kernel.py", True),
        ("p/test_notes.py", False),
        ("q/test_b.py", False),
    ],
)
def test_only_the_name_of_a_module_at_the_mirrored_path_counts(tmp_path: Path, path: str, expected: bool) -> None:
    (tmp_path / "p").mkdir()
    for name in ("__init__.py", "a.py", "p/__init__.py", "p/b.py", "p/kernel.cu", "p/notes.txt"):
        (tmp_path / name).touch()
    assert is_named_after_a_module(path, tmp_path) is expected
