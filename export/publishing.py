"""Putting a finished bundle in place of an earlier one, so that no reader ever opens a mixture.

Three files cannot be renamed at once. The order is: keep links to the earlier files, rename the model and the golden samples, write the manifest
last, drop the links. An error on the way puts the earlier files back. If the process is killed on the way, the hashes in the manifest do not fit the
files beside it, so every reader refuses them, and ``restore_interrupted`` (run by the next export) puts the earlier files back. The manifest is
never put back: it is the earlier one, with what others added since, until it is the new one.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from snl_runtime.errors import ManifestError, SinkError
from snl_runtime.files import check_writable, exclusive_lock, sha256_file
from snl_runtime.model.manifest import Manifest, read_manifest, replace_manifest

_NAMES = "names"


def check_targets(paths: Sequence[Path]) -> None:
    """Refuse files of one folder that could not be written; where the folder is yet to be made, look at the one it goes into.

    Raises:
        SinkError: If one of them could not be written.
    """
    folder = paths[0].absolute().parent
    if folder.exists():
        for path in paths:
            check_writable(path)
        return
    existing = next(parent for parent in folder.parents if parent.exists())
    check_writable(existing / f".{paths[0].name}")


@contextlib.contextmanager
def staging_folder(model_path: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target, on its file system, and remove it afterwards whatever happened; one export at a time has it.

    Raises:
        SinkError: If it cannot be made, or another export writes there.
    """
    folder = model_path.parent / f".{model_path.stem}.export"
    with made_folder(model_path.parent), exclusive_lock(model_path, what="export", blocking=False):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # a killed export left it
            folder.mkdir()
            yield folder
        except OSError as error:
            raise SinkError(f"cannot write {model_path}: {error.strerror or error}; check the folder, its permissions and the free space") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder for the block; if the block fails, the folders that were made for it are gone again, as far as they are empty.

    Raises:
        SinkError: If it cannot be made, or the block cannot write.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            for parent in missing:
                parent.rmdir()
        if isinstance(error, OSError):
            raise SinkError(f"cannot write into {folder}: {error.strerror or error}; check the folder and its permissions") from error
        raise


def publish(staged: Sequence[Path], manifest: Manifest, folder: Path, *, stem: str) -> Manifest:
    """Move finished files into ``folder``, over earlier ones of the same names, and write their manifest.

    Args:
        staged: Files in the order in which they appear; on the same file system as ``folder``.
        manifest: What the new manifest says; decisions and engines come from the one that it replaces, as that is when it is replaced.
        folder: Where they go.
        stem: Name of the bundle without suffix.

    Returns:
        The manifest as written.

    Raises:
        ManifestError: If the manifest that would be replaced is altered.
        SinkError: If a file cannot be written; the earlier files are then back in place and none of the new ones is left.
    """
    kept = _kept_folder(folder, stem)

    def put_in_place(earlier: Manifest | None) -> Manifest:
        _keep(kept, folder, [path.name for path in staged])
        for path in staged:
            path.replace(folder / path.name)
        _flush(folder)
        return manifest if earlier is None else keeping_history(manifest, earlier)

    try:
        for path in staged:
            _flush(path)
        written = replace_manifest(folder / f"{stem}.json", put_in_place)
    except BaseException as error:  # Ctrl-C included
        _undo(kept, folder, stem)
        if isinstance(error, OSError):
            raise SinkError(
                f"cannot write {folder / stem}.*: {error.strerror or error}; check the folder, its permissions and the free space"
            ) from error
        raise
    _drop(kept)
    return written


def keeping_history(manifest: Manifest, earlier: Manifest) -> Manifest:
    """Return a manifest with the decisions of the one it replaces before its own, and with its engines, if built from this very file."""
    engines = [engine for engine in earlier.engines if engine.onnx_sha256 == manifest.model_sha256]
    decisions = [*earlier.decisions, *(decision for decision in manifest.decisions if decision not in earlier.decisions)]
    return dataclasses.replace(manifest, decisions=decisions, engines=engines)


def restore_interrupted(folder: Path, *, stem: str) -> bool:
    """Undo an export that was killed while it replaced files; return whether there was one to undo.

    Raises:
        SinkError: If the earlier files cannot be put back.
    """
    kept = _kept_folder(folder, stem)
    shutil.rmtree(_dropped_folder(kept), ignore_errors=True)
    try:
        return _undo(kept, folder, stem)
    except OSError as error:
        raise SinkError(f"cannot put the files of {kept} back: {error.strerror or error}; move them into {folder} by hand") from error


def _keep(kept: Path, folder: Path, names: Sequence[str]) -> None:
    unfinished = _unfinished_folder(kept)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name in names:
        if (folder / name).exists():
            _link(folder / name, unfinished / name)
    # A name that is listed and not kept did not exist before: putting back means removing it.
    (unfinished / _NAMES).write_text("\n".join(names), encoding="utf-8", errors="surrogateescape")
    _flush(unfinished / _NAMES)
    unfinished.replace(kept)


def _undo(kept: Path, folder: Path, stem: str) -> bool:
    shutil.rmtree(_unfinished_folder(kept), ignore_errors=True)
    if not kept.is_dir():
        return False
    if _is_whole(folder / f"{stem}.json"):  # stopped before the first rename or after the manifest
        _drop(kept)
        return False
    _put_back(kept, folder)
    return True


def _put_back(kept: Path, folder: Path) -> None:
    for name in (kept / _NAMES).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if not (kept / name).exists():
            (folder / name).unlink(missing_ok=True)
            continue
        again = kept / f"{name}.again"  # the kept file itself stays until all are back: this may be killed too
        again.unlink(missing_ok=True)
        _link(kept / name, again)
        again.replace(folder / name)
    _flush(folder)
    _drop(kept)


def _drop(kept: Path) -> None:
    dropped = _dropped_folder(kept)
    shutil.rmtree(dropped, ignore_errors=True)
    kept.replace(dropped)  # at once: a half-deleted folder must not be taken for kept files
    shutil.rmtree(dropped, ignore_errors=True)


def _kept_folder(folder: Path, stem: str) -> Path:
    return folder / f".{stem}.replaced"


def _unfinished_folder(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.unfinished")


def _dropped_folder(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.dropped")


def _is_whole(manifest_path: Path) -> bool:
    try:
        manifest = read_manifest(manifest_path)
        return all(sha256_file(manifest_path.with_name(name)) == sha256 for name, sha256 in manifest.files.items())
    except (ManifestError, OSError):
        return False


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here (FAT, some network shares)
        shutil.copy2(source, target)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder; there the rename itself is journalled
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
