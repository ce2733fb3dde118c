"""The wheel holds exactly the packages of the tree, under the names they install as."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALLED_NAMES = {"snl_runtime": "snl_runtime", "snl_train": "snl_train", "export": "snl_export", "calibration": "snl_calibration"}


def test_wheel_holds_every_source_file_and_nothing_else(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", *INSTALLED_NAMES], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in (*tracked, "pyproject.toml", "README.md", "LICENSE"):  # a copy: setuptools leaves a build folder behind
        copy = tmp_path / "tree" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(tmp_path / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"/".join((INSTALLED_NAMES[path.split("/")[0]], *path.split("/")[1:])) for path in tracked}
    assert packed == expected
