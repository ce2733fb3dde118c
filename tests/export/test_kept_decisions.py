"""A decision survives the adding of a product where golden samples and synthetic defects have the same anomaly maps; else it is refused by name."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from snl_export.bundle_writer import ExportedBundle, ExportOptions, export_bundle  # noqa: E402
from snl_export.kept_decisions import KeptDecisions, keep_decisions  # noqa: E402
from snl_export.publishing import keeping_history  # noqa: E402
from snl_runtime.errors import ConfigError  # noqa: E402
from snl_runtime.files import sha256_file  # noqa: E402
from snl_runtime.model.manifest import DecisionChange, Manifest, NormalizationFile, ReferenceSample, TileGrid, read_manifest, update_manifest  # noqa: E402
from snl_runtime.scorer import Scorer  # noqa: E402
from snl_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from snl_train.config import DataConfig, ModelConfig, ScoreConfig, TrainConfig  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.models import build_model  # noqa: E402
from snl_train.models.memory import remembered_features  # noqa: E402

SIZE_PX = 64


def checkpoint_of(path: Path, golden: np.ndarray, classes: list[str], extra: torch.Tensor | None, **changes: object) -> Path:
    """Save a memory of random centers and, behind them, ``extra`` (n, D) for layer2."""
    count = 0 if extra is None else len(extra)
    model_config = ModelConfig(method="memory", teacher="resnet18", teacher_weights="random")
    config = TrainConfig(
        model=model_config,
        memory=MemoryConfig(centers=8 + count, layers=(2,)),
        score=ScoreConfig(smoothing_sigma=2.0),
        image_size=(SIZE_PX, SIZE_PX),
    )
    model = build_model(config.model, config.memory).eval()
    centers = torch.randn(8, 128, generator=torch.Generator().manual_seed(1)) / 128**0.5
    (book,) = model.memory.books
    book.set_centers(centers if extra is None else torch.cat([centers, extra]))
    checkpoint = Checkpoint(
        config=config,
        state_dict=model.state_dict(),
        classes=sorted(set(classes)),
        seed=0,
        epochs_done=0,
        training_image_sha256=["0" * 64],
        golden_images=golden,
        golden_classes=classes,
        provenance={"is_complete": True, "steps_done": 0, "total_steps": 0},
    )
    save_checkpoint(path, dataclasses.replace(checkpoint, **changes))
    return path


@pytest.fixture(scope="module")
def golden() -> np.ndarray:
    """Coarse noise, one image of each of two products."""
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def base(golden: np.ndarray, make_decision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a decision for each product."""
    folder = tmp_path_factory.mktemp("base")
    bundle = export_bundle(checkpoint_of(folder / "first.pt", golden, ["bolt", "nut"], None), folder / "line.onnx", ExportOptions())
    for product in ("bolt", "nut"):
        decision = make_decision(product=product, model_sha256=bundle.manifest.model_sha256, roi_xyxy=None)
        update_manifest(folder / "line.json", lambda manifest, decision=decision: manifest.with_decision(decision))
    return folder / "line.onnx"


def extend(base: Path, folder: Path, golden: np.ndarray, extra: torch.Tensor) -> Path:
    fact = {"products": ["cap"], "to_sha256": sha256_file(base.with_name("first.pt"))}
    provenance = {"is_complete": True, "steps_done": 0, "total_steps": 0, "added": [fact]}
    return checkpoint_of(folder / "second.pt", golden, ["bolt", "nut"], extra, provenance=provenance)


@pytest.fixture(scope="module")
def far(base: Path, golden: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two centers that are the nearest of nothing, |c|^2 / 2 being what it is; beside its checkpoint, not yet in place of the base."""
    folder = tmp_path_factory.mktemp("far")
    second = extend(base, folder, golden, torch.full((2, 128), 10.0))
    return export_bundle(second, folder / "line.onnx", ExportOptions()).model_path


def compared(base: Path, new: Path, earlier: Manifest | None = None, *, precision: str = "fp32") -> KeptDecisions:
    checkpoint = load_checkpoint(new.with_name("second.pt"))
    earlier = earlier or read_manifest(base.with_suffix(".json"))
    return keep_decisions(checkpoint, earlier, base, new, precision=precision)


def test_decisions_hold_where_no_map_changes(base: Path, far: Path):
    before = read_manifest(base.with_suffix(".json"))
    kept = compared(base, far)
    assert [decision.product for decision in kept.decisions] == ["bolt", "nut"]
    bolt = kept.decisions[0]
    assert (bolt.model_sha256, bolt.change.kept_from) == (sha256_file(far), before.model_sha256)
    assert 9.9999 < bolt.pass_threshold <= before.decisions[0].pass_threshold, "less what float32 sums of more centers differ by"
    same = dict.fromkeys(("pass_threshold", "reject_threshold", "floor"), 1.0) | {"model_sha256": "", "change": None}
    assert dataclasses.replace(bolt, **same) == dataclasses.replace(before.decisions[0], **same)
    assert "bolt: the decision holds, its anomaly maps are the same" in kept.notes


@pytest.fixture(scope="module")
def near(base: Path, golden: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> ExportedBundle:
    """The same with centers on features of the second product, put in place of a copy of the base by the command."""
    folder = tmp_path_factory.mktemp("near") / "line"
    shutil.copytree(base.parent, folder)
    model = build_model(ModelConfig(method="memory", teacher="resnet18", teacher_weights="random"), MemoryConfig(centers=1)).eval()
    with torch.no_grad():
        features = remembered_features(model.teacher(model.normalize(torch.from_numpy(golden[1:])))[1])
    second = extend(base, folder, golden, features.movedim(1, -1).flatten(0, -2)[::8])
    return export_bundle(second, folder / "line.onnx", ExportOptions(keep_decisions=True))


@pytest.fixture(scope="module")
def fall(base: Path, near: ExportedBundle, golden: np.ndarray) -> float:
    """Largest difference of the maps of the second product's golden sample."""
    with Scorer(base) as before, Scorer(near.model_path) as after:
        (old,), (new,) = before.score_inputs(golden[1:])[1], after.score_inputs(golden[1:])[1]
    return float(np.abs(old - new).max())


def test_decisions_of_products_whose_maps_fell_are_refused_by_name(base: Path, near: ExportedBundle, fall: float):
    """The map of the second product falls; its threshold lies where it does, and the command writes no decision for it."""
    assert fall > 0.01, "of a pass threshold of 10 that is what fp32 may differ by"
    assert "nut" not in near.manifest.decisions_for(near.manifest.model_sha256)
    (note,) = [note for note in near.notes if note.startswith("nut: ")]
    assert note.startswith("nut: the decision does not hold, its anomaly maps differ by up to")
    assert near.manifest.decisions[:2] == read_manifest(base.with_suffix(".json")).decisions  # the earlier ones stay as history


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("threshold_in_falls", "highest", "holds"),
    [(1e6, None, True), (1e6, 2.0, True), (1e6, 1e4, False), (900.0, None, False), (20.0, None, False)],
    ids=["far below", "far below with a normalization map", "not far below with a high one", "beyond a thousandth", "within what int8 may differ by"],
)
def test_difference_counts_by_the_threshold_whatever_the_precision(
    base: Path, near: ExportedBundle, fall: float, threshold_in_falls: float, highest: float | None, holds: bool, precision: str
):
    earlier = read_manifest(base.with_suffix(".json"))
    file = None if highest is None else NormalizationFile(file="line.normalization.nut.0.npz", sha256="1" * 64, highest=highest)
    threshold = threshold_in_falls * fall
    reference = ReferenceSample(scores=[1.0], brightness=[1.0], sharpness=[1.0])
    changes = {"pass_threshold": threshold, "reject_threshold": threshold, "floor": threshold / 2, "normalization": file, "reference": reference}
    nut = dataclasses.replace(earlier.decisions[1], **changes)
    graph = {**earlier.graph, "precision": precision}
    kept = compared(base, near.model_path, dataclasses.replace(earlier, decisions=[nut], graph=graph), precision=precision)
    assert [decision.product for decision in kept.decisions] == ["nut"] * holds
    for decision in kept.decisions:
        guarded = fall * (highest or 1.0)
        assert decision.pass_threshold <= threshold - guarded, "what scored above the threshold and fell by that does not pass"
        assert decision.floor >= threshold / 2 + guarded
        assert decision.reference == reference


def test_decision_that_is_kept_twice_names_the_file_that_it_was_fitted_on(base: Path, far: Path):
    earlier = read_manifest(base.with_suffix(".json"))
    once = DecisionChange(written_at="2026-01-01T00:00:00+00:00", written_by="Ada", kept_from="1" * 64)
    kept = compared(base, far, dataclasses.replace(earlier, decisions=[dataclasses.replace(earlier.decisions[0], change=once), earlier.decisions[1]]))
    assert [decision.change.kept_from for decision in kept.decisions] == ["1" * 64, earlier.model_sha256]


def test_kept_decisions_come_behind_the_history(base: Path, far: Path):
    earlier = read_manifest(base.with_suffix(".json"))
    kept = compared(base, far)
    new = dataclasses.replace(read_manifest(far.with_suffix(".json")), decisions=kept.decisions)
    once = keeping_history(new, earlier)
    assert once.decisions == [*earlier.decisions, *kept.decisions]
    assert keeping_history(once, earlier) == once  # the manifest is read once more when it is replaced


def test_product_that_is_not_inspected_as_its_golden_samples_show_it_is_refused(base: Path, far: Path):
    earlier = read_manifest(base.with_suffix(".json"))
    with_roi = dataclasses.replace(earlier.decisions[0], roi_xyxy=(0, 0, 32, 32))
    unseen = dataclasses.replace(earlier.decisions[0], product="ring")
    tiles = TileGrid(tile_px=SIZE_PX, overlap_px=0, map_hw=(SIZE_PX, 2 * SIZE_PX), count=2)
    on_tiles = dataclasses.replace(earlier.decisions[0], product="cap", tiles=tiles)
    kept = compared(base, far, dataclasses.replace(earlier, decisions=[*earlier.decisions, with_roi, unseen, on_tiles]))
    assert [decision.product for decision in kept.decisions] == ["nut"]
    assert kept.refused["bolt"].startswith("it looks at a region of interest")
    assert kept.refused["ring"].startswith("there is no golden sample")
    assert kept.notes[-1] == "until then name the product of each part: one without is ERROR"
    assert kept.refused["cap"] == f"it looks at tiles of {SIZE_PX} px, and the golden samples show whole frames"


@pytest.mark.parametrize(("trained_on_both", "judged_by_both"), [(True, True), (True, False), (False, True)])
def test_decision_is_refused_where_golden_samples_may_show_tiles_and_no_whole_frame_or_the_other_way_round(
    base: Path, far: Path, trained_on_both: bool, judged_by_both: bool
):
    """With more centers a whole frame may score lower though no tile does."""
    earlier, checkpoint = read_manifest(base.with_suffix(".json")), load_checkpoint(far.with_name("second.pt"))
    tiles = TileGrid(tile_px=SIZE_PX, overlap_px=0, map_hw=(SIZE_PX, 2 * SIZE_PX), count=2 + judged_by_both, with_whole_frame=judged_by_both)
    earlier = dataclasses.replace(earlier, decisions=[dataclasses.replace(earlier.decisions[0], tiles=tiles)])
    data = DataConfig(tile_px=SIZE_PX, tile_overlap_px=0, with_whole_frame=trained_on_both)
    checkpoint = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, data=data))
    kept = keep_decisions(checkpoint, earlier, base, far, precision="fp32")
    assert not kept.decisions
    assert kept.refused["bolt"] == "it or the model looks at tiles and at whole frames, and the golden samples may show one of them only"


def test_files_that_do_not_follow_each_other_keep_nothing(base: Path, far: Path):
    earlier = read_manifest(base.with_suffix(".json"))
    other = dataclasses.replace(earlier, training={**earlier.training, "checkpoint_sha256": "f" * 64})
    with pytest.raises(ConfigError, match="the checkpoint is not that of"):
        compared(base, far, other)
    with pytest.raises(ConfigError, match=r"is fp32 and the new file fp16"):
        compared(base, far, precision="fp16")
    with pytest.raises(ConfigError, match="has no decision to keep"):
        compared(base, far, dataclasses.replace(earlier, decisions=[]))
