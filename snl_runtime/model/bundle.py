"""A model file with what travels beside it, every hash checked before anything is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.errors import GoldenSampleError, ManifestError
from snl_runtime.files import sha256_file
from snl_runtime.images.preprocess import InputSpec
from snl_runtime.mixups import find_mix_up
from snl_runtime.model.golden import GoldenSamples, golden_path, golden_tolerance, read_golden
from snl_runtime.model.guard_band import guard_text
from snl_runtime.model.manifest import NOT_VERIFIED, EngineEntry, Manifest, manifest_path, read_manifest
from snl_runtime.model.signing import PublicKey, verify_manifest

_GOLDEN_SUFFIX = ".golden.npz"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ModelBundle:
    """An opened model.

    Attributes:
        path: The model file, ``x.onnx`` or ``x.trt``.
        sha256: Its hash.
        suffix: Its suffix, lower case; backends are chosen by it.
        manifest: What ``x.json`` says, None for a lone ``.onnx``: it scores, and every verdict is ERROR.
        golden: Samples of ``x.golden.npz``, None if the file is not there: then every verdict is ERROR too.
        spec: Input size from the manifest, None without one (the graph knows it).
        notes: What an operator must know, one sentence each.
    """

    path: Path
    sha256: str
    suffix: str
    manifest: Manifest | None
    golden: GoldenSamples | None
    spec: InputSpec | None
    notes: tuple[str, ...]

    @property
    def engine(self) -> EngineEntry | None:
        """The manifest's entry if the model file is an engine."""
        return None if self.manifest is None else self.manifest.engine_for(self.sha256)

    @property
    def calibrated_on(self) -> str | None:
        """Name of the backend that scored the sample of the newest decision on this very file, None without one."""
        decisions = () if self.manifest is None else self.manifest.decisions
        return next((decision.backend.partition(" ")[0] for decision in reversed(decisions) if decision.model_sha256 == self.sha256), None)

    @property
    def has_tiles(self) -> bool:
        """Whether a product is inspected in tiles on this very file."""
        return self.manifest is not None and any(decision.tiles is not None for decision in self.manifest.decisions_for(self.sha256).values())

    @property
    def golden_tolerance(self) -> float:
        """Allowed difference from the golden samples relative to their largest map value."""
        graph = {} if self.manifest is None else self.manifest.graph
        return golden_tolerance(graph, None if self.engine is None else self.engine.precision)

    def network_hw(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int, int]:
        """Return the size of the network's input, which a backend found in the graph and the manifest must confirm.

        Raises:
            ManifestError: If it says another one.
        """
        size_hw = (input_shape[1], input_shape[2])
        stated = None if self.manifest is None else self.manifest.size_hw
        if stated is not None and stated != size_hw:
            raise ManifestError(
                f"{self.path.name} takes {size_hw[0]}x{size_hw[1]} images, its manifest says {stated[0]}x{stated[1]}; export it again"
            )
        return size_hw


def open_bundle(model_path: str | os.PathLike[str], *, public_key: PublicKey | None = None) -> ModelBundle:
    """Return a model with its manifest and golden samples, found beside it by name and checked by hash.

    Args:
        model_path: ``x.onnx`` or an engine such as ``x.trt``.
        public_key: Ed25519 key; given, the manifest must be signed with it.

    Raises:
        ManifestError: If a file is missing, altered or belongs to another model; the message says what to run.
        SignatureError: If a key is given and the signature does not hold.
    """
    path = Path(model_path)
    if (mix_up := find_mix_up("", "--engine", path)) is not None:
        raise ManifestError(mix_up)
    sha256 = _hash(path)
    if not manifest_path(path).exists():
        return _open_lone_file(path, sha256, public_key)
    manifest = read_manifest(manifest_path(path))
    if public_key is not None:
        verify_manifest(manifest, public_key)
    _check_model_hash(path, sha256, manifest)
    _check_other_files(path, manifest)
    golden, notes = _open_golden(path, manifest)
    return ModelBundle(
        path=path,
        sha256=sha256,
        suffix=path.suffix.lower(),
        manifest=manifest,
        golden=golden,
        spec=InputSpec(size_hw=manifest.size_hw),
        notes=(*notes, *_engine_notes(path, manifest.engine_for(sha256)), *_inheritance_notes(path, manifest, sha256)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFiles:
    """The files that a manifest lists.

    Attributes:
        matching: Names of those that lie beside the model and have the recorded hash.
        missing: Names of those that do not lie there, which is allowed: engines, normalization maps and ignore masks of other stations, files that
            were left at home.
    """

    matching: tuple[str, ...]
    missing: tuple[str, ...]


def check_listed_files(model_path: str | os.PathLike[str], manifest: Manifest) -> CheckedFiles:
    """Compare every file that the manifest names with its hash: model, golden samples, engines, and what decisions name, earlier ones too.

    Raises:
        ManifestError: If one that lies beside the model has another hash.
    """
    path = Path(model_path)
    listed = {manifest.model_file: manifest.model_sha256, **manifest.files}
    listed |= {engine.file: engine.sha256 for engine in manifest.engines}
    listed |= {file.file: file.sha256 for decision in manifest.decisions for file in decision.map_files}
    matching, missing = [], []
    for name, expected in listed.items():
        other = _beside(path, name, manifest)
        if not other.exists():
            missing.append(name)
            continue
        if (actual := _hash(other)) != expected:
            raise ManifestError(
                f"{other} has sha256 {actual[:12]}, {manifest_path(path).name} records {expected[:12]}: the file is truncated, altered or from "
                "another build; copy it again or make it again before this is signed or trusted"
            )
        matching.append(name)
    return CheckedFiles(matching=tuple(matching), missing=tuple(missing))


def _beside(model_path: Path, name: str, manifest: Manifest) -> Path:
    """Return where a listed file lies; the files of a model may have been renamed together."""
    listed = model_path.with_name(name)
    stem = Path(manifest.model_file).stem
    return listed if listed.exists() or not name.startswith(f"{stem}.") else model_path.with_name(f"{model_path.stem}{name.removeprefix(stem)}")


def _engine_notes(path: Path, engine: EngineEntry | None) -> tuple[str, ...]:
    if engine is None:
        return ()
    if engine.parity is None:
        return (f"{path.name} is {NOT_VERIFIED} and has no threshold; build or verify it where it runs: snl-run --engine {path.name} --rebuild",)
    if not engine.parity.passed:
        reasons = "; ".join(engine.parity.failures[:2])
        return (f"{path.name} does not score like its ONNX file ({reasons}) and has no threshold; run the ONNX file instead",)
    if engine.parity.refused_by_guard_band:
        return (f"{path.name} never passes what its ONNX file would not{guard_text(engine.parity)}",)
    return ()


def _inheritance_notes(path: Path, manifest: Manifest, sha256: str) -> tuple[str, ...]:
    remedy = f"calibrate the engine: snl-calibrate --engine {path.name}"
    notes = []
    if without_room := ", ".join(manifest.products_without_room(sha256)):
        notes.append(f"the thresholds of {without_room} leave no room for the guard band of {path.name}; {remedy}")
    if on_tiles := ", ".join(manifest.products_on_tiles(sha256)):
        notes.append(f"{on_tiles}: inspected in tiles, on which {path.name} inherits no decision; {remedy}")
    return tuple(notes)


def _open_lone_file(path: Path, sha256: str, public_key: PublicKey | None) -> ModelBundle:
    missing = manifest_path(path)
    if path.suffix.lower() != ".onnx" or public_key is not None:
        why = "an engine opens only with its manifest" if public_key is None else "a public key was given"
        raise ManifestError(f"{missing} is missing and {why}; copy it beside {path.name} or export again: snl-export --ckpt x.pt")
    note = f"{path.name} has no manifest {missing.name}: it scores, and every verdict is ERROR; export it with snl-export"
    return ModelBundle(path=path, sha256=sha256, suffix=".onnx", manifest=None, golden=None, spec=None, notes=(note,))


def _check_model_hash(path: Path, sha256: str, manifest: Manifest) -> None:
    if path.suffix.lower() == ".onnx":
        if sha256 != manifest.model_sha256:
            raise ManifestError(
                f"{path} has sha256 {sha256[:12]}, {manifest_path(path).name} records {manifest.model_sha256[:12]}: the file is truncated, altered "
                f"or from another export; copy it again or export again: snl-export --ckpt x.pt --out {path.name}"
            )
        return
    if manifest.engine_for(sha256) is None:
        raise ManifestError(
            f"{path} has sha256 {sha256[:12]}, {manifest_path(path).name} lists no such engine: the file is truncated, altered or from another "
            f"build; rebuild it: snl-run --engine {path.name} --rebuild"
        )


def _check_other_files(path: Path, manifest: Manifest) -> None:
    """Compare the listed files that lie beside the model; one that is not there was left at home, which is allowed."""
    checked = {path.name, golden_path(path).name}
    for name, expected in manifest.files.items():
        other = path.with_name(name)
        if name in checked or name.endswith(_GOLDEN_SUFFIX) or not other.exists():
            continue
        if (actual := _hash(other)) != expected:
            raise ManifestError(
                f"{other} has sha256 {actual[:12]}, {manifest_path(path).name} records {expected[:12]}: the file is truncated, altered or from "
                "another export; copy it again, remove it or export again: snl-export --ckpt x.pt"
            )


def _open_golden(path: Path, manifest: Manifest) -> tuple[GoldenSamples | None, tuple[str, ...]]:
    source = golden_path(path)
    expected = next((sha256 for name, sha256 in manifest.files.items() if name.endswith(_GOLDEN_SUFFIX)), None)
    if not source.exists():
        return None, (f"{source.name} is missing: without the golden samples every verdict is ERROR; copy it beside {path.name} from the export",)
    actual = _hash(source)
    if actual != expected:
        raise ManifestError(
            f"{source} has sha256 {actual[:12]}, {manifest_path(path).name} records {'none' if expected is None else expected[:12]}: the golden "
            "samples are altered or from another export; copy them again or export again: snl-export --ckpt x.pt"
        )
    try:
        golden = read_golden(source)
    except GoldenSampleError as error:
        raise ManifestError(str(error)) from error
    if golden.images.shape[1:3] != manifest.size_hw:
        raise ManifestError(
            f"{source} holds samples of {golden.images.shape[1:3]} pixels, the model takes {manifest.size_hw}; export again: snl-export --ckpt x.pt"
        )
    return golden, ()


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        is_engine = path.suffix.lower() == ".trt"
        remedy = f"build it: snl-run --engine {path.name} --rebuild" if is_engine else "export the model: snl-export --ckpt x.pt"
        raise ManifestError(f"cannot read {path}: {reason}; check the path, or {remedy}") from error
