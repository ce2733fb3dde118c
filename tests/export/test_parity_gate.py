"""A file that scores differently from its checkpoint is refused with exit status 3, leaves nothing behind and touches no earlier export."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from snl_export.bundle_writer import ExportOptions, export_bundle
from snl_export.cli import main
from snl_runtime.errors import DataError, ParityRefusedError
from snl_runtime.images.files import write_image
from snl_train import scoring
from snl_train.checkpoint import load_checkpoint, save_checkpoint

Edit = Callable[[onnx.ModelProto], None]
Install = Callable[..., None]


def initializer(model: onnx.ModelProto, shape: tuple[int, ...]) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tuple(tensor.dims) == shape]


def replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))


def scale_pixels(factor: float) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        scale = next(tensor for tensor in initializer(model, (3, 1, 1)) if (numpy_helper.to_array(tensor) > 0).all())
        replace(scale, numpy_helper.to_array(scale) * factor)

    return edit


def shift_pixels(model: onnx.ModelProto) -> None:
    offset = next(tensor for tensor in initializer(model, (3, 1, 1)) if (numpy_helper.to_array(tensor) < 0).all())
    replace(offset, numpy_helper.to_array(offset) + 1 / 255)


def swap_channels(model: onnx.ModelProto) -> None:
    for tensor in initializer(model, (64, 3, 7, 7)):
        replace(tensor, numpy_helper.to_array(tensor)[:, ::-1])


def plant_nan(model: onnx.ModelProto) -> None:
    tensor = initializer(model, (256, 256, 3, 3))[0]
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = np.nan
    replace(tensor, values)


def halve_score(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if "anomaly_score" in node.output)
    node.output[0] = "whole_score"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["whole_score", "half"], ["anomaly_score"]))


@contextlib.contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not [path for path in folder.iterdir() if path.is_dir()]


FAULTS = {
    "deviation changed by 1 %": scale_pixels(1.01),
    "pixels not divided by 255": scale_pixels(255.0),
    "mean shifted by one gray level": shift_pixels,
    "color order swapped in the graph": swap_channels,
    "NaN in one weight": plant_nan,
    "score is not the maximum of the map": halve_score,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_refused_and_earlier_export_stays(
    fault: str, checkpoint_path: Path, earlier: Path, ready_made: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    ready_made(FAULTS[fault])
    with nothing_changes(earlier.parent):
        assert main(["--ckpt", str(checkpoint_path), "--out", str(earlier)]) == 3
    assert capsys.readouterr().out == ""


def test_refused_first_export_leaves_an_empty_folder(checkpoint_path: Path, tmp_path: Path, ready_made: Install) -> None:
    ready_made(swap_channels)
    with nothing_changes(tmp_path), pytest.raises(ParityRefusedError, match="golden 0"):
        export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions())


def test_unchanged_file_passes_the_same_gate(checkpoint_path: Path, tmp_path: Path, ready_made: Install) -> None:
    ready_made()
    report = export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions()).manifest.parity[0]
    assert report.passed
    assert report.frame_count == 3 + 9
    assert report.frames_source == "golden crops, flips and noise"
    assert report.map_max_abs <= 1e-4 * report.map_scale


@pytest.mark.parametrize(("relative_change", "is_refused"), [(3e-4, True), (2e-5, False)])
def test_one_weight_may_move_the_map_by_less_than_the_tolerance_only(
    relative_change: float, is_refused: bool, checkpoint_path: Path, tmp_path: Path, ready_made: Install
) -> None:
    step = weight_step_that_moves_the_map_by(relative_change, checkpoint_path)

    def perturb(model: onnx.ModelProto) -> None:
        # Batch norms are folded into the convolutions, so the weight is found by its value in the checkpoint's own centers of CRAM.
        centers = load_checkpoint(checkpoint_path).state_dict["student.crams.0.centers"].numpy()
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.size == centers.size and np.allclose(values.reshape(-1), centers.T.reshape(-1)):
                changed = values.copy()
                changed.reshape(centers.T.shape)[0, 0] += step
                replace(tensor, changed)
                return
        raise AssertionError("the centers are not in the graph")

    ready_made(perturb)
    expectation = pytest.raises(ParityRefusedError, match="map differs by") if is_refused else contextlib.nullcontext()
    with expectation:
        export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions())


def weight_step_that_moves_the_map_by(relative_change: float, checkpoint_path: Path) -> float:
    """Find the step on one subtracted center value, in PyTorch, that moves the worst golden map by this share of its maximum."""
    checkpoint = load_checkpoint(checkpoint_path)
    model = checkpoint.build_model()
    cram = model.student.crams[0]
    images = torch.from_numpy(checkpoint.golden_images)

    def worst(step: float) -> float:
        def forward(features: torch.Tensor) -> torch.Tensor:
            # Eq. 8 with the centers as they are, Eq. 9 with one value moved: the graph holds the centers twice and one copy is perturbed.
            n = torch.arange(cram.centers.shape[0])
            residuals = features[:, None] - cram.centers[n][None, :, :, None, None]
            weights = (-cram.alpha * residuals.square().sum(2)).softmax(1)
            moved = cram.centers.clone()
            moved[0, 0] += step
            return features - torch.einsum("bnhw,nd->bdhw", weights, moved)

        with torch.no_grad():
            plain = scoring.anomaly_map(*model(model.normalize(images)), checkpoint.config.image_size)
            original, cram.forward = cram.forward, forward
            changed = scoring.anomaly_map(*model(model.normalize(images)), checkpoint.config.image_size)
            cram.forward = original
        return float(((changed - plain).abs().amax((1, 2, 3)) / plain.amax((1, 2, 3))).max())

    step = 1e-2
    for _ in range(3):  # the map moves nearly in proportion
        step *= relative_change / worst(step)
    assert worst(step) == pytest.approx(relative_change, rel=0.05)
    return step


def test_color_order_swapped_on_the_line_is_refused(
    checkpoint_path: Path, tmp_path: Path, ready_made: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snl_runtime import scorer

    ready_made()
    as_it_is = scorer.prepare
    monkeypatch.setattr(scorer, "prepare", lambda image, color, spec: as_it_is(image, "rgb", spec))
    with pytest.raises(ParityRefusedError, match="cropped"):
        export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions())


def test_checkpoint_with_nan_weights_is_refused(checkpoint_path: Path, tmp_path: Path, ready_made: Install) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    next(tensor for name, tensor in checkpoint.state_dict.items() if name.startswith("student.") and tensor.ndim == 4).view(-1)[0] = torch.nan
    save_checkpoint(tmp_path / "broken.pt", checkpoint)
    ready_made()
    assert main(["--ckpt", str(tmp_path / "broken.pt")]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]


def test_frames_of_the_user_are_named_in_the_report_and_labeled_by_folder(checkpoint_path: Path, tmp_path: Path, ready_made: Install) -> None:
    generator = np.random.default_rng(5)
    for name in ("good/0.png", "good/1.png", "scratch/0.png", "ground_truth/scratch/0.png"):
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, generator.integers(0, 256, (50, 80, 3), dtype=np.uint8))
    ready_made()
    options = ExportOptions(frames=tmp_path / "frames")
    report = export_bundle(checkpoint_path, tmp_path / "line.onnx", options).manifest.parity[0]
    assert report.frames_source == "--frames frames"
    assert report.frame_count == 3 + 3
    assert report.auroc_drift == 0.0


def test_unreadable_frame_is_named_and_nothing_is_written(checkpoint_path: Path, tmp_path: Path, ready_made: Install) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ready_made()
    with pytest.raises(DataError, match="torn.png"):
        export_bundle(checkpoint_path, tmp_path / "line.onnx", ExportOptions(frames=frames))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames"]
