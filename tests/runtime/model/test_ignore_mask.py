"""What an ignore mask hides is not judged, everything else is, and nobody can take the hidden part for judged."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ManifestError, NormalizationError
from snl_runtime.model.guard_band import tightened
from snl_runtime.model.ignore_mask import IgnoreMask, ignore_mask_of, ignored_cells
from snl_runtime.model.manifest import TileGrid, read_manifest
from snl_runtime.model.map_factors import MapFactors, multiply_factors
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_ignore_mask, open_normalizations, write_map_file
from snl_runtime.types import OutputRequest, Verdict
from tolerances import TINY_MODEL_REL

SIZE = 32
SCRATCH = np.s_[6:16, 4:20]
"""Cells around the scratch of a bad frame, rows 10 and 11, columns 8 to 13: the network's window reaches 2 further."""


def ignored_scratch():
    ignored = np.zeros((SIZE, SIZE), bool)
    ignored[SCRATCH] = True
    return ignored


@given(arrays.arrays(bool, st.tuples(*[st.integers(1, 9)] * 2)), st.tuples(*[st.integers(1, 12)] * 2))
@settings(max_examples=60, deadline=None)
def test_cell_is_ignored_only_if_every_pixel_that_it_covers_is(ignored_px, map_hw):
    ignored = ignored_cells(ignored_px, map_hw)
    (height, width), (rows, columns) = ignored_px.shape, map_hw
    for row in range(rows):
        for column in range(columns):
            top, bottom = row * height // rows, -(-(row + 1) * height // rows)
            left, right = column * width // columns, -(-(column + 1) * width // columns)
            assert ignored[row, column] == ignored_px[top:bottom, left:right].all()


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.full((2, 2), 0.5), np.full((2, 2), 2.0), np.array([[np.nan, 1.0]]), np.array([[-1.0, 1.0]])])
def test_ignore_mask_is_zero_or_one_and_judges_something(values):
    with pytest.raises(NormalizationError):
        IgnoreMask(values.astype(np.float32))


def test_normalization_and_mask_multiply():
    mask, values = ignore_mask_of(ignored_scratch()), np.random.default_rng(0).uniform(0.5, 2, (SIZE, SIZE)).astype(np.float32)
    both = multiply_factors(NormalizationMap(values), mask)
    assert np.array_equal(both.values, np.where(ignored_scratch(), 0, values))
    assert np.array_equal(both.ignored, ignored_scratch())
    assert both.ignored_share == pytest.approx(160 / 1024)
    assert MapFactors(values).ignored is None


def test_defect_under_the_mask_passes_and_one_beside_it_does_not(model_folder, fixtures):
    model = model_folder.write()
    bad, elsewhere = fixtures.bad_frame(1), np.ascontiguousarray(fixtures.bad_frame(1)[::-1])
    with SnlDetector(model) as detector:
        assert detector.detect(bad).verdict is Verdict.REJECT
    model_folder.give_ignore_mask(ignored_scratch())
    with SnlDetector(model) as detector:
        hidden, seen = detector.detect(bad), detector.detect(elsewhere)
        assert (hidden.verdict, seen.verdict) == (Verdict.PASS, Verdict.REJECT)
        assert np.array_equal(hidden.ignored, ignored_scratch())
        assert hidden.ignored_share == pytest.approx(160 / 1024)
        expected = fixtures.reference_map(bad[:, :, ::-1]) * ~ignored_scratch()
        assert hidden.score == pytest.approx(expected.max(), rel=TINY_MODEL_REL)
        assert hidden.score == hidden.anomaly_map.max()
        assert detector.detect(None).ignored_share == pytest.approx(160 / 1024)  # an ERROR says it too
        (note,) = detector.notes
        assert "15.6 % of the inspected part is not judged" in note


def test_output_that_is_not_finite_under_the_mask_is_an_error(model_folder, fixtures):
    model = model_folder.write()
    model_folder.give_ignore_mask(ignored_scratch())

    def spoil(image, anomaly_map, anomaly_score):
        fixtures.answer(image, anomaly_map, anomaly_score)
        anomaly_map[:, 0, 8, 8] = np.nan

    with SnlDetector(model, backend=fixtures.FakeBackend(spoil, healthy_calls=3)) as detector:
        assert detector.detect(fixtures.good_frame(1)).reason_code == "output_not_finite"


def test_overlay_hatches_what_is_not_judged(model_folder, fixtures):
    model = model_folder.write()
    frame = fixtures.good_frame(1)
    with SnlDetector(model, outputs=OutputRequest(overlay=True)) as detector:
        plain = detector.detect(frame).overlay
    model_folder.give_ignore_mask(ignored_scratch())
    with SnlDetector(model, outputs=OutputRequest(overlay=True), keep_maps=False) as detector:
        hatched = detector.detect(frame).overlay
    changed = (hatched != plain).any(axis=2)
    assert changed[SCRATCH].all()
    assert hatched[SCRATCH].mean() < 0.6 * plain[SCRATCH].mean()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot read .* the ignore mask of product 'bottle'.*snl-calibrate"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "altered.*--ignore-mask"),
    ],
)
def test_missing_or_altered_mask_is_refused_at_opening(model_folder, spoil, message):
    model = model_folder.write()
    spoil(model_folder.give_ignore_mask(ignored_scratch()))
    with pytest.raises(ManifestError, match=message):
        SnlDetector(model)


def test_share_that_the_file_does_not_have_is_refused(model_folder):
    model = model_folder.write()
    file, _ = encode_ignore_mask(model, "bottle", ignore_mask_of(ignored_scratch()))
    model_folder.give_ignore_mask(ignored_scratch())
    (decision,) = read_manifest(model_folder.manifest).decisions
    assert decision.ignore_mask == file
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ManifestError, match="share"):
            dataclasses.replace(file, ignored_share=share)


def test_every_decision_that_names_a_file_is_held_against_it(fixtures, tmp_path):
    """The second says another share of the same file, as a record would; or its tiles give a larger map."""
    model, mask = tmp_path / "line.onnx", ignore_mask_of(ignored_scratch())
    file, data = encode_ignore_mask(model, "bottle", mask)
    write_map_file(model, file, data)
    first = fixtures.make_decision(ignore_mask=file)
    assert list(open_normalizations(model, [first, first], (SIZE, SIZE))) == [file.sha256]
    tiles = TileGrid(tile_px=SIZE, overlap_px=0, map_hw=(2 * SIZE, 2 * SIZE), count=4)
    for changes, message in (
        ({"ignore_mask": dataclasses.replace(file, ignored_share=0.01)}, "ignored share of 0.15625"),
        ({"ignore_mask": file, "tiles": tiles}, r"for maps of \(32, 32\) cells"),
    ):
        with pytest.raises(ManifestError, match=message):
            open_normalizations(model, [first, fixtures.make_decision(product="cap", **changes)], (SIZE, SIZE))


def test_unnamed_product_ignores_only_what_every_product_ignores(model_folder, fixtures):
    model = model_folder.write(decisions=[{}, {"product": "cap"}])
    model_folder.give_ignore_mask(ignored_scratch(), "cap")
    with SnlDetector(model) as detector:
        result = detector.detect(fixtures.bad_frame(1))
        assert (result.verdict, result.ignored) == (Verdict.REJECT, None)
        assert detector.detect(fixtures.bad_frame(1), product="cap").verdict is Verdict.PASS


def test_engine_keeps_the_largest_map_difference_from_a_masked_threshold(fixtures):
    """The graph's own score may agree exactly while the judged cells differ."""
    file, _ = encode_ignore_mask("line.onnx", "bottle", ignore_mask_of(ignored_scratch()))
    inherited = tightened(fixtures.make_decision(ignore_mask=file), guard_band=0.0, map_max_abs=0.5)
    assert 9.4 < inherited.pass_threshold < 9.5
    assert 2.5 < inherited.floor < 2.6
